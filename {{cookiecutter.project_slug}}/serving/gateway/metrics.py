"""What the versions do and their engines tell of themselves, under one set of names for all of
them on `/metrics`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from serving.runtime.replica import Replica, State

_LABELS = ("model", "version", "engine", "replica")
#: figure -> its metric, whether it only grows, and what it says; see `engines.metrics`
_METRICS = {
    "running": ("serving_engine_requests_running", False, "Requests the engine works on"),
    "waiting": ("serving_engine_requests_waiting", False, "Requests that wait in the engine"),
    "kv_cache_usage": ("serving_engine_kv_cache_usage_ratio", False, "KV cache in use, 0 to 1"),
    "prompt_tokens": ("serving_engine_prompt_tokens", True, "Prompt tokens taken in"),
    "generated_tokens": ("serving_engine_generated_tokens", True, "Tokens generated"),
    "cached_tokens": ("serving_engine_cached_tokens", True, "Prompt tokens found in the cache"),
}


class Served(Protocol):
    """Whose figures they are; see `runtime.reconciler`."""

    @property
    def replicas(self) -> Iterable[Replica]: ...
    @property
    def states(self) -> Mapping[tuple[str, int], State]: ...
    @property
    def transitions(self) -> Mapping[tuple[str, int, State], int]: ...
    @property
    def queues(self) -> Mapping[tuple[str, int], int]: ...
    @property
    def swaps(self) -> Mapping[tuple[str, Any], int]: ...


class Figures(Collector):
    """Of all versions, their replicas and engines. `steps` are how the steps of rollouts ended, by
    model."""

    def __init__(self, served: Served, steps: Mapping[tuple[str, Any], int]) -> None:
        self._served = served
        self._steps = steps

    def collect(self) -> Iterator[Metric]:
        replicas = [(replica, _labels(replica)) for replica in self._served.replicas]
        for figure, (name, grows, said) in _METRICS.items():
            family = (CounterMetricFamily if grows else GaugeMetricFamily)(
                name, said, labels=_LABELS
            )
            for replica, labels in replicas:
                if figure in replica.figures:
                    family.add_metric(labels, replica.figures[figure])
            yield family
        yield from self._gateways_own(replicas)
        yield from self._versions()
        yield from self._changes()

    @staticmethod
    def _gateways_own(replicas: list[tuple[Replica, tuple[str, ...]]]) -> Iterator[Metric]:
        ready = GaugeMetricFamily(
            "serving_replica_ready", "Whether the replica answers requests", labels=_LABELS
        )
        in_flight = GaugeMetricFamily(
            "serving_replica_in_flight", "Requests the gateway has sent to it", labels=_LABELS
        )
        for replica, labels in replicas:
            ready.add_metric(labels, replica.state == State.READY)
            in_flight.add_metric(labels, replica.in_flight)
        yield ready
        yield in_flight

    def _versions(self) -> Iterator[Metric]:
        labels = ("model", "version", "state")
        states = GaugeMetricFamily(
            "serving_version_state", "1 for the state that the version is in", labels=labels
        )
        for (name, number), state in self._served.states.items():
            states.add_metric((name, str(number), state), 1)
        moves = CounterMetricFamily(
            "serving_version_transitions", "How often a version came into a state", labels=labels
        )
        for (name, number, state), count in self._served.transitions.items():
            moves.add_metric((name, str(number), state), count)
        queues = GaugeMetricFamily(
            "serving_queue_length",
            "Requests that wait for a place on one of the version's replicas",
            labels=labels[:2],
        )
        for (name, number), length in self._served.queues.items():
            queues.add_metric((name, str(number)), length)
        yield queues
        yield states
        yield moves

    def _changes(self) -> Iterator[Metric]:
        labels = ("model", "outcome")
        swaps = CounterMetricFamily(
            "serving_swaps",
            "How often another version came into production, or one beside that failed",
            labels=labels,
        )
        for counted, count in self._served.swaps.items():
            swaps.add_metric(counted, count)
        steps = CounterMetricFamily(
            "serving_rollout_steps",
            "How the steps of rollouts ended: passed, or rolled back by a gate",
            labels=labels,
        )
        for counted, count in self._steps.items():
            steps.add_metric(counted, count)
        yield swaps
        yield steps


def _labels(replica: Replica) -> tuple[str, ...]:
    version = replica.version
    return version.name, str(version.number), replica.engine.name, str(replica.index)
