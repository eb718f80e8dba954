"""What clients feel of the answers, for Prometheus, under the field's names: time to first token
(TTFT), inter-token latency (ITL), time per output token (TPOT), end to end, tokens, outcomes.

Counted here and not by prometheus_client, whose histogram costs more for each token than relaying
it does. Labels are models, versions and labels that are served: no client can make up a new one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from serving.runtime.outcome import ITL_BUCKETS, Outcome

#: Model, version, label.
Served = tuple[str, str, str]

_LABELS = ("model", "version", "label")
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_PER_TOKEN = (0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1)
_TOKENS = ("prompt", "completion", "cached", "reasoning")


@dataclass
class Histogram:
    """Counts by bucket, the last for what is above all bounds, and the sum of all values."""

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def add(self, counts: list[int], total: float) -> None:
        """Many values at once, by the same bounds."""
        for bucket, count in enumerate(counts):
            self.counts[bucket] += count
        self.total += total

    @property
    def buckets(self) -> list[tuple[str, float]]:
        """As Prometheus has them: each with all below it."""
        so_far, buckets = 0, []
        for bound, count in zip([*map(str, self.bounds), "+Inf"], self.counts, strict=True):
            so_far += count
            buckets.append((bound, float(so_far)))
        return buckets


_HISTOGRAMS = {
    "queue": (_SECONDS, "What the request waited before it went to its engine"),
    "time_to_first_token": (_SECONDS, "From the request's way to its engine to the first token"),
    "inter_token_latency": (ITL_BUCKETS, "Between two events of a stream with text in them"),
    "time_per_output_token": (_PER_TOKEN, "The rest of an answer by its other tokens"),
    "request": (_SECONDS, "From the request's way to its engine to the end of its answer"),
}


class Observed(Collector):
    """All requests since the start."""

    def __init__(self) -> None:
        self._histograms: dict[str, dict[Served, Histogram]] = {
            name: defaultdict(lambda bounds=bounds: Histogram(bounds))  # type: ignore[misc]
            for name, (bounds, _) in _HISTOGRAMS.items()
        }
        self._requests: Counter[tuple[*Served, str]] = Counter()
        self._tokens: Counter[tuple[*Served, str]] = Counter()
        self._errors: Counter[str] = Counter()

    def answered(self, outcome: Outcome, status: int) -> None:
        """One answer that reached a version, however it ended."""
        served = (outcome.model, str(outcome.number), outcome.label)
        self._requests[*served, str(status)] += 1
        if outcome.queued is not None:
            self._histograms["queue"][served].observe(outcome.queued)
        if outcome.ttft is not None:
            self._histograms["time_to_first_token"][served].observe(outcome.ttft)
            self._histograms["inter_token_latency"][served].add(outcome.gaps, outcome.gaps_sum)
        if outcome.usage is not None:
            for kind, tokens in zip(
                _TOKENS,
                (
                    outcome.usage.prompt_tokens,
                    outcome.usage.completion_tokens,
                    outcome.usage.prompt_tokens_details.cached_tokens,
                    outcome.usage.completion_tokens_details.reasoning_tokens,
                ),
                strict=True,
            ):
                self._tokens[*served, kind] += tokens
        if status != 200:
            return
        self._histograms["request"][served].observe(outcome.duration)
        if outcome.ttft is not None and outcome.tokens > 1:
            rest = (outcome.duration - outcome.ttft) / (outcome.tokens - 1)
            self._histograms["time_per_output_token"][served].observe(rest)

    def refused(self, code: str) -> None:
        """One error told to a client, by the contract's code for it."""
        self._errors[code] += 1

    def collect(self) -> Iterator[Metric]:
        for name, (_, said) in _HISTOGRAMS.items():
            family = HistogramMetricFamily(f"serving_{name}_seconds", said, labels=_LABELS)
            for served, histogram in self._histograms[name].items():
                family.add_metric(served, histogram.buckets, histogram.total)
            yield family
        requests = CounterMetricFamily(
            "serving_requests",
            "Requests that reached a version, by the status of their end",
            labels=(*_LABELS, "status"),
        )
        for labels, count in self._requests.items():
            requests.add_metric(labels, count)
        tokens = CounterMetricFamily(
            "serving_tokens", "Tokens of prompts and answers", labels=(*_LABELS, "kind")
        )
        for labels, count in self._tokens.items():
            tokens.add_metric(labels, count)
        errors = CounterMetricFamily(
            "serving_errors", "Errors told to clients, by their code", labels=("code",)
        )
        for code, count in self._errors.items():
            errors.add_metric((code,), count)
        yield from (requests, tokens, errors)
