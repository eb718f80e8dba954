"""What the engines tell of themselves, under one set of names for all of them on `/metrics`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from serving.runtime.replica import Replica, State

_LABELS = ("model", "version", "engine")
#: figure -> its metric, whether it only grows, and what it says; see `engines.metrics`
_METRICS = {
    "running": ("serving_engine_requests_running", False, "Requests the engine works on"),
    "waiting": ("serving_engine_requests_waiting", False, "Requests that wait in the engine"),
    "kv_cache_usage": ("serving_engine_kv_cache_usage_ratio", False, "KV cache in use, 0 to 1"),
    "prompt_tokens": ("serving_engine_prompt_tokens", True, "Prompt tokens taken in"),
    "generated_tokens": ("serving_engine_generated_tokens", True, "Tokens generated"),
    "cached_tokens": ("serving_engine_cached_tokens", True, "Prompt tokens found in the cache"),
}


class _EngineFigures(Collector):
    def __init__(self, replicas: Iterable[Replica]) -> None:
        self._replicas = list(replicas)

    def collect(self) -> Iterator[Metric]:
        for figure, (name, grows, said) in _METRICS.items():
            family = (CounterMetricFamily if grows else GaugeMetricFamily)(
                name, said, labels=_LABELS
            )
            for replica in self._replicas:
                if figure in replica.figures:
                    version = replica.version
                    labels = (version.name, str(version.number), replica.engine.name)
                    family.add_metric(labels, replica.figures[figure])
            yield family
        ready = GaugeMetricFamily(
            "serving_replica_ready", "Whether the replica answers requests", labels=_LABELS
        )
        in_flight = GaugeMetricFamily(
            "serving_replica_in_flight", "Requests the gateway has sent to it", labels=_LABELS
        )
        for replica in self._replicas:
            version = replica.version
            labels = (version.name, str(version.number), replica.engine.name)
            ready.add_metric(labels, replica.state == State.READY)
            in_flight.add_metric(labels, replica.in_flight)
        yield ready
        yield in_flight


def engine_metrics(replicas: Iterable[Replica]) -> str:
    """The replicas' part of `/metrics`, in Prometheus's text format."""
    registry = CollectorRegistry()
    registry.register(_EngineFigures(replicas))
    return generate_latest(registry).decode()
