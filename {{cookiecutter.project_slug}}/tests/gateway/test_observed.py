"""What clients feel, as Prometheus reads it."""

from __future__ import annotations

from typing import Any

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import CollectorRegistry

from serving.contract.events import CachedTokens, Delta, EngineEvent, ReasoningTokens, Usage
from serving.gateway.observed import Histogram, Observed
from serving.runtime.outcome import Outcome

SERVED = {"model": "chat", "version": "3", "label": "canary"}


def samples(observed: Observed) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    registry = CollectorRegistry()
    registry.register(observed)
    text = generate_latest(registry).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(observed: Observed, name: str, **labels: str) -> float:
    return samples(observed)[name, tuple(sorted(labels.items()))]


def answer(pieces: int = 4, **usage: Any) -> Outcome:
    outcome = Outcome("chat", 3, "canary", "vllm")
    for _ in range(pieces):
        outcome.note([EngineEvent([Delta(0, "x")])])
    counted = Usage(10, pieces, 10 + pieces, CachedTokens(8), ReasoningTokens(pieces // 2))
    outcome.note([EngineEvent(usage=counted)])
    return outcome.end(failed=False)


def test_values_fall_into_the_buckets_that_hold_them() -> None:
    histogram = Histogram((0.1, 1.0))
    for seconds in (0.05, 0.1, 0.5, 7):
        histogram.observe(seconds)
    histogram.add([1, 0, 2], 10)
    assert histogram.buckets == [("0.1", 3), ("1.0", 4), ("+Inf", 7)]
    assert histogram.total == 17.65


def test_an_answer_shows_in_every_figure() -> None:
    observed = Observed()
    observed.answered(answer(), 200)
    for name, count in (
        ("time_to_first_token", 1),
        ("inter_token_latency", 3),
        ("time_per_output_token", 1),
        ("request", 1),
    ):
        assert value(observed, f"serving_{name}_seconds_count", **SERVED) == count
        assert value(observed, f"serving_{name}_seconds_sum", **SERVED) > 0
    assert value(observed, "serving_requests_total", **SERVED, status="200") == 1
    for kind, tokens in (("prompt", 10), ("completion", 4), ("cached", 8), ("reasoning", 2)):
        assert value(observed, "serving_tokens_total", **SERVED, kind=kind) == tokens


def test_the_wait_for_its_turn_counts_where_there_was_a_queue() -> None:
    observed = Observed()
    observed.answered(answer(), 200)
    assert ("serving_queue_seconds_count", tuple(SERVED.items())) not in samples(observed)
    waited = answer()
    waited.queued = 0.25
    observed.answered(waited, 200)
    assert value(observed, "serving_queue_seconds_count", **SERVED) == 1
    assert value(observed, "serving_queue_seconds_sum", **SERVED) == 0.25


def test_one_that_was_cut_short_counts_as_far_as_it_came() -> None:
    observed = Observed()
    outcome = Outcome("chat", 3, "canary")
    outcome.note([EngineEvent([Delta(0, "x")])])
    outcome.cut_short(5)
    observed.answered(outcome.end(failed=False), 499)
    assert value(observed, "serving_requests_total", **SERVED, status="499") == 1
    assert value(observed, "serving_tokens_total", **SERVED, kind="completion") == 1
    assert not any(name.startswith("serving_request_seconds") for name, _ in samples(observed))


def test_errors_are_counted_by_their_code() -> None:
    observed = Observed()
    for code in ("rate_limit_exceeded", "rate_limit_exceeded", "model_not_found"):
        observed.refused(code)
    assert value(observed, "serving_errors_total", code="rate_limit_exceeded") == 2
