"""What is served now, and what is asked for, as an operator reads it."""

from __future__ import annotations

from datetime import datetime

import msgspec

from serving.runtime.reconciler import Reconciler
from serving.runtime.reload import Reloader
from serving.runtime.rollouts import Rollouts
from serving.runtime.served_version import ServedVersion
from serving.runtime.wanted import CANARY, Wanted


class ReplicaStatus(msgspec.Struct):
    """`pid` is null for a server that somebody else runs; `gpus` are the numbers of its devices."""

    state: str
    pid: int | None
    in_flight: int
    gpus: list[int]


class VersionStatus(msgspec.Struct):
    """`reason` says why it is not ready, when that is known; `labels` mean it now."""

    version: int
    state: str
    since: datetime
    engine: str
    labels: list[str]
    restarts: int
    replicas: list[ReplicaStatus]
    reason: str = ""


class LabelStatus(msgspec.Struct):
    """`version` is what the label means now, null when that is not loaded; `wanted` what it is
    asked to mean once that is ready."""

    version: int | None
    wanted: int


class RolloutStatus(msgspec.Struct):
    """A rollout of `version` that is under way: at which of its steps, from 1, the percentage of
    the traffic it has there, seconds since it began that step or null before, and `told`: how it
    does and what it waits for."""

    version: int
    step: int
    steps: list[int]
    percent: int
    elapsed: float | None
    every: float
    told: str


class ModelStatus(msgspec.Struct):
    """`pinned`: production moves only when somebody moves it; it follows the policy until then."""

    ready: bool
    pinned: bool
    labels: dict[str, LabelStatus]
    traffic: dict[str, int]
    shadow: float
    versions: list[VersionStatus]
    rollout: RolloutStatus | None = None


class SettingsStatus(msgspec.Struct):
    """`fault` is what is wrong with serving.yaml, whose last good settings are in force; `waiting`
    are the keys changed in it that need a restart."""

    fault: str
    waiting: list[str]


class Status(msgspec.Struct):
    """`fault` is what is wrong with state/routing.json, whose last good state is in force."""

    revision: int
    ready: bool
    models: dict[str, ModelStatus]
    settings: SettingsStatus
    fault: str = ""


def status(reconciler: Reconciler, rollouts: Rollouts, reloader: Reloader) -> Status:
    routing = reconciler.file.routing
    models = {}
    for name, labels in reconciler.labels.items():
        wanted = routing.of(name)
        versions = [
            _version(reconciler, version, [label for label, n in labels.items() if n == number])
            for number, version in sorted(reconciler.served[name].items())
        ]
        models[name] = ModelStatus(
            ready=reconciler.answers(name),
            pinned="production" in wanted.labels,
            labels={
                label: LabelStatus(labels.get(label), number)
                for label, number in {**labels, **wanted.labels}.items()
            },
            traffic=dict(wanted.traffic),
            shadow=wanted.shadow,
            versions=versions,
            rollout=_rollout(rollouts, name, wanted),
        )
    return Status(
        routing.revision,
        reconciler.ready,
        models,
        SettingsStatus(reloader.fault, reloader.waiting),
        reconciler.file.fault,
    )


def _rollout(rollouts: Rollouts, name: str, wanted: Wanted) -> RolloutStatus | None:
    rollout = wanted.rollout
    if rollout is None:
        return None
    watch = rollouts.watch(name)
    return RolloutStatus(
        version=wanted.labels[CANARY],
        step=rollout.step + 1,
        steps=rollout.steps,
        percent=rollout.percent,
        elapsed=watch.elapsed if watch else None,
        every=rollout.every,
        told=watch.told if watch else "",
    )


def _version(reconciler: Reconciler, served: ServedVersion, labels: list[str]) -> VersionStatus:
    return VersionStatus(
        version=served.version.number,
        state=served.state,
        since=reconciler.since(served),
        engine=served.section.name,
        labels=sorted(labels),
        restarts=served.restarts,
        replicas=[
            ReplicaStatus(r.state, r.pid, r.in_flight, [gpu.number for gpu in r.gpus])
            for r in served.started
        ],
        reason=served.reason,
    )
