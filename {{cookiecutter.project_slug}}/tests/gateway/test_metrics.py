"""The replicas' part of `/metrics`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from serving.engines.metrics import Gauges
from serving.gateway.metrics import Figures
from serving.runtime.replica import Replica, State

FIGURES = {
    "running": 3.0,
    "waiting": 2.0,
    "kv_cache_usage": 0.25,
    "prompt_tokens": 100.0,
    "generated_tokens": 40.0,
    "cached_tokens": 16.0,
}
NAMES = {
    "running": "serving_engine_requests_running",
    "waiting": "serving_engine_requests_waiting",
    "kv_cache_usage": "serving_engine_kv_cache_usage_ratio",
    "prompt_tokens": "serving_engine_prompt_tokens_total",
    "generated_tokens": "serving_engine_generated_tokens_total",
    "cached_tokens": "serving_engine_cached_tokens_total",
}


def replica(
    figures: dict[str, float],
    name: str = "chat",
    state: State = State.READY,
    in_flight: int = 0,
) -> Replica:
    """What the metrics need of a replica."""
    made = SimpleNamespace(
        version=SimpleNamespace(name=name, number=3),
        engine=SimpleNamespace(name="vllm"),
        figures=figures,
        state=state,
        in_flight=in_flight,
        index=0,
    )
    return cast(Replica, made)


def page(*replicas: Replica, steps: dict[Any, int] | None = None, **served: Any) -> str:
    registry = CollectorRegistry()
    nothing: dict[str, Any] = {"states": {}, "transitions": {}, "queues": {}, "swaps": {}}
    registry.register(
        Figures(SimpleNamespace(**{**nothing, "replicas": replicas, **served}), steps or {})
    )
    return generate_latest(registry).decode()


def samples(*replicas: Replica) -> dict[tuple[str, str], float]:
    """(metric, model) -> value; every sample has the same labels."""
    found = {}
    for family in text_string_to_metric_families(page(*replicas)):
        for sample in family.samples:
            model = sample.labels["model"]
            expected = {"model": model, "version": "3", "engine": "vllm", "replica": "0"}
            assert sample.labels == expected
            assert (sample.name, model) not in found
            found[sample.name, model] = sample.value
    return found


def test_each_figure_has_a_name_of_ours() -> None:
    found = samples(replica(FIGURES))
    assert {figure: found[name, "chat"] for figure, name in NAMES.items()} == FIGURES
    assert len(found) == len(NAMES) + 2


def test_all_figures_an_engine_can_tell_are_shown() -> None:
    assert set(NAMES) == set(Gauges.__dataclass_fields__)


def test_what_only_grows_is_a_counter_and_all_else_a_gauge() -> None:
    text = page(replica(FIGURES))
    kinds = {family.name: family.type for family in text_string_to_metric_families(text)}
    counters = {name for name, kind in kinds.items() if kind == "counter"}
    assert counters == {
        "serving_engine_prompt_tokens",
        "serving_engine_generated_tokens",
        "serving_engine_cached_tokens",
        "serving_rollout_steps",
        "serving_swaps",
        "serving_version_transitions",
    }
    assert {kind for name, kind in kinds.items() if name not in counters} == {"gauge"}


def test_a_figure_the_engine_does_not_tell_is_left_out_and_not_zero() -> None:
    found = samples(replica({"running": 0.0}))
    assert found[NAMES["running"], "chat"] == 0
    assert not any((name, "chat") in found for figure, name in NAMES.items() if figure != "running")


@pytest.mark.parametrize("state", State)
def test_only_a_ready_replica_counts_as_ready(state: State) -> None:
    found = samples(replica({}, state=state, in_flight=5))
    assert found == {
        ("serving_replica_ready", "chat"): float(state is State.READY),
        ("serving_replica_in_flight", "chat"): 5,
    }


def test_replicas_stand_side_by_side_under_their_models() -> None:
    busy, idle = replica({"running": 7.0}, "chat", in_flight=7), replica({"running": 0.0}, "code")
    found = samples(busy, idle)
    assert found[NAMES["running"], "chat"] == found["serving_replica_in_flight", "chat"] == 7
    assert found[NAMES["running"], "code"] == found["serving_replica_in_flight", "code"] == 0


def test_without_replicas_there_are_no_samples() -> None:
    assert samples() == {}


def test_each_metric_says_what_it_is_and_ends_its_line() -> None:
    text = page(replica(FIGURES))
    assert text.endswith("\n")
    assert all(family.documentation for family in text_string_to_metric_families(text))
    assert text.count("# HELP") == text.count("# TYPE") == len(NAMES) + 7


def test_each_look_shows_what_is_so_now() -> None:
    one = replica({})
    assert samples(one)["serving_replica_ready", "chat"] == 1
    one.state, one.figures = State.STOPPED, {"running": 1.0}
    found = samples(one)
    assert (found["serving_replica_ready", "chat"], found[NAMES["running"], "chat"]) == (0, 1)


def test_a_version_is_in_one_state_and_came_through_others() -> None:
    text = page(
        states={("chat", 3): State.READY, ("chat", 4): State.LOADING},
        transitions={("chat", 3, State.LOADING): 2, ("chat", 3, State.READY): 1},
    )
    found = {
        (sample.name, sample.labels["version"], sample.labels["state"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert found == {
        ("serving_version_state", "3", "ready"): 1,
        ("serving_version_state", "4", "loading"): 1,
        ("serving_version_transitions_total", "3", "loading"): 2,
        ("serving_version_transitions_total", "3", "ready"): 1,
    }


def test_swaps_and_steps_of_rollouts_are_counted_by_how_they_ended() -> None:
    text = page(swaps={("chat", "done"): 2}, steps={("chat", "rolled_back"): 1})
    assert 'serving_swaps_total{model="chat",outcome="done"} 2.0' in text
    assert 'serving_rollout_steps_total{model="chat",outcome="rolled_back"} 1.0' in text


def test_the_length_of_each_versions_queue_is_told() -> None:
    assert 'serving_queue_length{model="chat",version="1"} 7.0' in page(queues={("chat", 1): 7})
