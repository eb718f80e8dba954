"""Whether what is kept of callers is in order, for Prometheus: the ledger's rows and the limits."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from serving.accounts.ledger import Ledger
from serving.gateway.limits import Limiter


class Upkeep(Collector):
    def __init__(self, ledger: Ledger, limiter: Limiter) -> None:
        self._ledger = ledger
        self._limiter = limiter

    def collect(self) -> Iterator[Metric]:
        yield from self._rows()
        yield from self._limits()

    def _rows(self) -> Iterator[Metric]:
        ledger = self._ledger
        yield CounterMetricFamily(
            "serving_ledger_rows_lost",
            "Rows for which there was no room, or that no database takes",
            ledger.lost,
        )
        yield GaugeMetricFamily(
            "serving_ledger_rows_waiting", "Rows in memory for the next batch", ledger.waiting
        )
        yield GaugeMetricFamily(
            "serving_ledger_spool_bytes", "Rows on disk until the database is back", ledger.spooled
        )
        yield GaugeMetricFamily(
            "serving_ledger_database_away", "1 while the database takes no rows", bool(ledger.fault)
        )

    def _limits(self) -> Iterator[Metric]:
        refusals = CounterMetricFamily(
            "serving_limit_refusals",
            "Requests that were more than a key or a model may take, by the kind of limit",
            labels=("kind",),
        )
        for kind, count in self._limiter.refusals.items():
            refusals.add_metric((kind,), count)
        yield refusals
        yield CounterMetricFamily(
            "serving_limit_settle_errors",
            "Reservations that could not be settled",
            self._limiter.settle_errors,
        )
