"""One version while it is wanted: its replicas, its state, and its end without a cut stream."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from serving.runtime.balancing import BALANCING
from serving.runtime.devices import Devices
from serving.runtime.keeper import Keeper
from serving.runtime.queue import Line
from serving.runtime.replica import Replica, ReplicaDied, State
from serving.runtime.routing import Balance, Route
from serving.runtime.store import ModelStore, Version
from serving.settings import GpuEngine, ModelSection, Settings

log = logging.getLogger("bentoml.serving")

#: Seconds between two looks at whether a draining version is still answering.
DRAIN_CHECK = 0.05


class ServedVersion:
    """The replicas of one version, from the first start to the drained end.

    `refused` is why there can be none. `changed` is called whenever `state` may have changed.
    Unless `patient`, the first start must do.
    """

    def __init__(
        self,
        settings: Settings,
        store: ModelStore,
        version: Version,
        hooks: Path,
        changed: Callable[[], None],
        devices: Devices,
        *,
        refused: str = "",
        patient: bool = True,
    ) -> None:
        self.version = version
        self.section = settings.engine_of(version.name, version.number)
        self.cut = 0
        self.line: Line[Route] = Line()
        self._settings = settings
        self._store = store
        self._refused = refused
        self._changed = changed
        count = 0 if refused else self._model.replicas
        self._keepers = [
            Keeper(settings, store, version, hooks, changed, devices, index, patient=patient)
            for index in range(count)
        ]
        self._tasks: list[asyncio.Task[None]] = []
        self._in_use = ExitStack()
        self._draining = False
        self._ending: asyncio.Task[None] | None = None
        self._stopping = False
        self._stopped = False
        self._asleep = False

    @property
    def _model(self) -> ModelSection:
        return self._settings.models[self.version.name]

    @property
    def state(self) -> State:
        """`ready` only once every replica has had its first start: what is to take over the
        traffic needs them all."""
        if self._stopped:
            return State.STOPPED
        if self._asleep:
            return State.ASLEEP
        if self._draining:
            return State.DRAINING
        if self.failed:
            return State.FAILED
        if not self._tasks:
            return State.UNAVAILABLE
        states = {keeper.state for keeper in self._keepers}
        if State.READY in states and self.settled:
            return State.READY
        return State.WARMING if State.WARMING in states else State.LOADING

    @property
    def failed(self) -> bool:
        """Whether it has come to nothing, put away meanwhile or not."""
        return all(keeper.state == State.FAILED for keeper in self._keepers)

    @property
    def reason(self) -> str:
        """Why it is not ready, as far as that is known."""
        return self._refused or next((k.reason for k in self._keepers if k.reason), "")

    @property
    def settled(self) -> bool:
        """Whether every replica's first start has ended, well or not."""
        return all(keeper.settled.is_set() for keeper in self._keepers)

    @property
    def replicas(self) -> tuple[Replica, ...]:
        """Those that can answer."""
        if self._draining or self._stopped or self._asleep:
            return ()
        return tuple(r for r in self.started if r.state == State.READY)

    @property
    def started(self) -> list[Replica]:
        """Those that have been started and not yet put away."""
        return [keeper.replica for keeper in self._keepers if keeper.replica is not None]

    @property
    def takes_memory(self) -> bool:
        """Of the device: whether an engine of it runs or may be started at any moment."""
        if self._asleep:
            return False
        return bool(self.started) or (bool(self._tasks) and not self._stopped and not self.failed)

    @property
    def restarts(self) -> int:
        return sum(keeper.restarts for keeper in self._keepers)

    @property
    def lazy(self) -> bool:
        return self._model.load == "lazy"

    @property
    def adapters(self) -> frozenset[str]:
        return frozenset(self.section.lora) if isinstance(self.section, GpuEngine) else frozenset()

    @property
    def balance(self) -> Balance:
        return BALANCING[self._model.balance]

    def start(self) -> None:
        """Starts the replicas, once."""
        if self._tasks or self._refused:
            return
        # From now on nobody deletes it from the store.
        self._in_use.enter_context(self._store.in_use(self.version))
        self._tasks = [asyncio.ensure_future(keeper.run()) for keeper in self._keepers]
        self._changed()

    def end(self, drain: float) -> None:
        """Gets no new requests from now on, and stops when its running ones have finished or had
        `drain` seconds."""
        if self._asleep and self._ending is not None:
            self._ending.cancel()
            self._ending, self._asleep = None, False
        if self._ending is None:
            self._draining = True
            self._ending = asyncio.ensure_future(self._end(drain))

    def rest(self, drain: float) -> None:
        """As `end`, but sleeps then instead of stopping, if it can."""
        if self._ending is None and not self._asleep:
            self._draining = True
            self._ending = asyncio.ensure_future(self._rest(drain))

    def wake(self) -> None:
        """Serves again, after a sleep. Stops, if it cannot."""
        if self._asleep and self._ending is not None:
            self._ending.cancel()
            self._ending = asyncio.ensure_future(self._wake())

    def resume(self) -> bool:
        """Wanted again before it has ended. Returns whether it still could be kept."""
        if self._ending is not None and not self._stopping:
            self._ending.cancel()
            self._ending = None
            self._draining = False
        return self._ending is None

    async def _end(self, limit: float) -> None:
        await self._drain(limit)
        await self.stop()
        self._changed()

    async def _rest(self, limit: float) -> None:
        """From its last answers to its end asleep, unless it is woken."""
        await self._drain(limit)
        self._stopping = True  # too late to resume
        tag = self.version.tag
        try:
            # An engine that still works on what was cut would break.
            if self.cut:
                raise ReplicaDied(f"{self.cut} answers were cut")
            await asyncio.gather(*(keeper.sleep() for keeper in self._keepers))
            self._asleep, self._stopping, self._draining = True, False, False
            self._changed()
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
            if not self._stopping:
                log.warning("%s died in its sleep", tag)
        except ReplicaDied as error:
            log.warning("%s is ended and not put to sleep: %s", tag, error)
        self._asleep = False
        await self.stop()
        self._changed()

    async def _wake(self) -> None:
        self._asleep = False
        try:
            await asyncio.gather(*(keeper.wake() for keeper in self._keepers))
        except ReplicaDied as error:
            log.warning("%s does not wake up and is started anew: %s", self.version.tag, error)
            await self.stop()
        self._ending = None
        self._changed()

    async def _drain(self, limit: float) -> None:
        deadline = time.monotonic() + limit
        while self._busy and time.monotonic() < deadline:
            await asyncio.sleep(DRAIN_CHECK)
        self.cut = self._busy
        if self.cut:
            log.warning(
                "%s: %d answers are cut: they took over %g s to finish",
                self.version.tag,
                self.cut,
                limit,
            )

    @property
    def _busy(self) -> int:
        return sum(replica.in_flight for replica in self.started)

    async def stop(self) -> None:
        """Ends all replicas, at the same time, whatever they are doing."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(keeper.stop() for keeper in self._keepers))
        self._stopped = True
        self._in_use.close()
