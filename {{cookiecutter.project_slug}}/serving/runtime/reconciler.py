"""Drives what runs to what serving.yaml asks for: one version per model, kept alive.

Models load in the order of their priority. A replica that dies is replaced with growing pauses; one
that keeps dying, or whose files were tampered with, ends as `failed` with its reason. A server that
somebody else runs is asked again for ever: it comes back without anybody telling us.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime
from itertools import groupby
from pathlib import Path

from serving.contract.embeddings import EmbeddingRequest
from serving.engines import create_engine
from serving.engines.base import LocalEngine
from serving.runtime.checks import ModelRefused
from serving.runtime.replica import Replica, ReplicaDied, State, not_installed
from serving.runtime.routing import Router, Snapshot, Target
from serving.runtime.store import ModelStore, StoreError, Version
from serving.settings import GpuEngine, OpenAICompatibleEngine, Settings, SettingsError

log = logging.getLogger("bentoml.serving")


def plan(settings: Settings, store: ModelStore) -> list[Version]:
    """The version each model is to serve. Raises `SettingsError` for a model the store lacks, or an
    engine that is not installed or cannot serve it: better no start than a service that can never
    be ready."""
    versions = []
    for name in settings.models:
        try:
            version = _version(settings, store, name)
        except StoreError as error:
            raise SettingsError(f"serving.yaml: models.{name}: {error}") from None
        section = settings.engine_of(name, version.number)
        engine = create_engine(section, version.path, version.task)
        if isinstance(engine, LocalEngine) and not os.access(engine.program, os.X_OK):
            raise SettingsError(f"serving.yaml: {not_installed(engine.name, engine.program)}.")
        if version.task not in engine.tasks:
            raise SettingsError(
                f"serving.yaml: models.{name}: {version.tag} was imported to {version.task}, which "
                f"{engine.name} cannot do; choose vllm or sglang for it."
            )
        lacking = [file for file in engine.needs if not (version.path / file).is_file()]
        if lacking:
            raise SettingsError(
                f"serving.yaml: models.{name}: {engine.name} needs {lacking[0]}, which "
                f"{version.tag} lacks; choose another engine, or import a model that has it."
            )
        versions.append(version)
    return versions


def _version(settings: Settings, store: ModelStore, name: str) -> Version:
    """What a model's `versions` name. Raises `StoreError`."""
    numbers = settings.models[name].versions.numbers
    number = numbers[0] if numbers else 1
    section = settings.engine_of(name, number)
    if isinstance(section, OpenAICompatibleEngine):  # its files are on another machine
        task = "embed" if EmbeddingRequest.TASK in section.capabilities else "generate"
        return Version(name, number, Path(os.devnull), datetime.now(), section.url, [], task)
    return store.get(name, number) if numbers else store.latest(name)


class Reconciler:
    """Runs one keeper per model and publishes what they have to the router."""

    def __init__(
        self, settings: Settings, store: ModelStore, versions: list[Version], hooks: Path
    ) -> None:
        self.router = Router(settings.timeouts.lazy)
        self._settings = settings
        self._store = store
        self._in_use = ExitStack()
        self._keepers = {
            version.name: Keeper(settings, store, version, hooks, self._publish)
            for version in versions
        }
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        for keeper in self._keepers.values():  # from now on nobody deletes what is to be served
            self._in_use.enter_context(self._store.in_use(keeper.version))
        self._publish()
        self._tasks.append(asyncio.ensure_future(self._load_in_order()))

    async def stop(self) -> None:
        """Ends all engines, at the same time."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(keeper.stop() for keeper in self._keepers.values()))
        self._in_use.close()

    @property
    def replicas(self) -> Iterator[Replica]:
        """Those that have been started and not yet put away."""
        for keeper in self._keepers.values():
            if keeper.replica is not None:
                yield keeper.replica

    @property
    def ready(self) -> bool:
        """Whether every required model can answer. A lazy one can, at its own pace."""
        return all(
            keeper.state == State.READY
            or (keeper.state != State.FAILED and self._settings.models[name].load == "lazy")
            for name, keeper in self._keepers.items()
            if self._settings.models[name].required
        )

    async def _load_in_order(self) -> None:
        def priority(keeper: Keeper) -> int:
            return -self._settings.models[keeper.version.name].priority

        for _, group in groupby(sorted(self._keepers.values(), key=priority), key=priority):
            keepers = list(group)
            self._tasks += [asyncio.ensure_future(keeper.run()) for keeper in keepers]
            await asyncio.gather(*(keeper.settled.wait() for keeper in keepers))

    def _publish(self) -> None:
        self.router.publish(
            Snapshot({name: keeper.target() for name, keeper in self._keepers.items()})
        )


class Keeper:
    """Keeps one replica of one version running.

    `settled` is set once the first start has ended, well or not, or is left to the first request.
    `publish` is called after each change of `state` that a request would notice.
    """

    def __init__(
        self,
        settings: Settings,
        store: ModelStore,
        version: Version,
        hooks: Path,
        publish: Callable[[], None],
    ) -> None:
        self.version = version
        self.settled = asyncio.Event()
        self.reason = ""
        self._settings = settings
        self._store = store
        self._hooks = hooks
        self._publish = publish
        self.replica: Replica | None = None
        self._stopped = False
        self._wanted = asyncio.Event()
        self._idle_state = State.UNLOADED
        if settings.models[version.name].load != "lazy":
            self._want()

    @property
    def state(self) -> State:
        return self.replica.state if self.replica is not None else self._idle_state

    def target(self) -> Target:
        """This version as the snapshot shows it."""
        ready = self.replica if self.state == State.READY else None
        version = self.version
        lazy = self._settings.models[version.name].load == "lazy"
        section = self._settings.engine_of(version.name, version.number)
        adapters = frozenset(section.lora) if isinstance(section, GpuEngine) else frozenset()
        return Target(
            name=version.name,
            number=version.number,
            created=version.created,
            state=self.state,
            replica=ready,
            load=self._want,
            lazy=lazy,
            adapters=adapters,
        )

    async def run(self) -> None:
        """Starts the replica, and starts it again, until it is cancelled or a crash loop."""
        restarts = self._settings.restarts
        section = self._settings.engine_of(self.version.name, self.version.number)
        elsewhere = isinstance(section, OpenAICompatibleEngine)
        attempts = math.inf if elsewhere else restarts.attempts
        if not self._wanted.is_set():
            self.settled.set()
            await self._wanted.wait()
        deaths = 0
        while deaths < attempts:
            served = await self._one_life()
            if served is None:
                return
            self.settled.set()
            deaths = 1 if served >= restarts.healthy_after else deaths + 1
            if deaths < attempts:
                pause = min(restarts.backoff * 2.0 ** min(deaths - 1, 64), restarts.backoff_max)
                log.error("%s: %s; next start in %g s", self.version.tag, self.reason, pause)
                await asyncio.sleep(pause)
        self._fail(f"{self.reason}; {deaths} starts in a row ended so, giving up")

    async def stop(self) -> None:
        """Ends the engine; `run` must have been cancelled."""
        self._stopped = True
        if self.replica is not None:
            await self.replica.stop()

    async def _one_life(self) -> float | None:
        """From start to death: the seconds it served, or None when another start is no use."""
        began: float | None = None
        try:
            await asyncio.to_thread(self._store.verify, self.version, self._still_wanted)
            self.replica = Replica(self._settings, self.version, self._hooks)
            await self.replica.start()
            began = time.monotonic()
            self._publish()
            self.settled.set()
            self.reason = await self.replica.until_dead()
        except ReplicaDied as error:
            self.reason = str(error)
        except ModelRefused as error:
            self._fail(str(error))
            return None
        except Exception as error:  # a defect of ours: as visible as any other way to fail
            log.exception("%s: the replica's keeper failed", self.version.tag)
            broken, self.replica = self.replica, None
            self._fail(f"internal error: {error}")
            if broken is not None:
                await broken.stop()
            return None
        self._idle_state = State.LOADING
        dead, self.replica = self.replica, None
        self._publish()  # no new request may meet the dead replica while it is put away
        if dead is not None:
            await dead.stop()
        return 0.0 if began is None else time.monotonic() - began

    def _still_wanted(self, _: int) -> None:
        """Called for each block of a file that is verified: its thread would hold up a stop."""
        if self._stopped:
            raise ReplicaDied("the service stops")

    def _want(self) -> None:
        self._idle_state = State.LOADING
        self._wanted.set()

    def _fail(self, reason: str) -> None:
        log.error("%s failed: %s", self.version.tag, reason)
        self.reason = reason
        self._idle_state = State.FAILED
        self.settled.set()
        self._publish()
