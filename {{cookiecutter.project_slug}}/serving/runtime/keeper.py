"""Keeps one replica of one version running, through every way an engine can end."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path

from serving.runtime.checks import ModelRefused
from serving.runtime.devices import Devices, visible
from serving.runtime.memory import shortage
from serving.runtime.replica import Replica, ReplicaDied, State
from serving.runtime.store import ModelStore, Version
from serving.settings import OpenAICompatibleEngine, Settings

log = logging.getLogger("bentoml.serving")


class Keeper:
    """Keeps one replica of one version running. A replica that dies is replaced with growing
    pauses; one that keeps dying, or whose files were tampered with, ends as `failed` with its
    `reason`. A server that somebody else runs is asked again for ever: it comes back without
    anybody telling us.

    `settled` is set once the first start has ended, well or not. `changed` is called after each
    change of `state` that a request would notice. Unless `patient`, the first start must do.
    """

    def __init__(
        self,
        settings: Settings,
        store: ModelStore,
        version: Version,
        hooks: Path,
        changed: Callable[[], None],
        devices: Devices,
        index: int = 0,
        *,
        patient: bool = True,
    ) -> None:
        self.version = version
        self.settled = asyncio.Event()
        self.reason = ""
        self.restarts = 0
        self.replica: Replica | None = None
        self._settings = settings
        self._store = store
        self._hooks = hooks
        self._changed = changed
        self._devices = devices
        self._index = index
        self._patient = patient
        self._resting = False
        self._stopped = False
        self._idle_state = State.LOADING

    @property
    def state(self) -> State:
        return self.replica.state if self.replica is not None else self._idle_state

    async def run(self) -> None:
        """Starts the replica, and starts it again, until it is cancelled or a crash loop."""
        restarts = self._settings.restarts
        section = self._settings.engine_of(self.version.name, self.version.number)
        elsewhere = isinstance(section, OpenAICompatibleEngine)
        attempts = math.inf if elsewhere else restarts.attempts
        deaths = 0
        while deaths < attempts:
            served = await self._one_life()
            if served is None or self._resting:
                return
            if not served and not self._patient:
                self._fail(self.reason)
                return
            self.settled.set()
            self._patient = True
            deaths = 1 if served >= restarts.healthy_after else deaths + 1
            if deaths < attempts:
                pause = min(restarts.backoff * 2.0 ** min(deaths - 1, 64), restarts.backoff_max)
                log.error("%s: %s; next start in %g s", self.version.tag, self.reason, pause)
                await asyncio.sleep(pause)
                self.restarts += 1
        self._fail(f"{self.reason}; {deaths} starts in a row ended so, giving up")

    async def sleep(self) -> None:
        """The replica gives its device up; `run` ends should it die meanwhile. Raises
        `ReplicaDied`."""
        self._resting = True
        if self.replica is None:
            raise ReplicaDied("its engine is gone")
        await self.replica.sleep()

    async def wake(self) -> None:
        """Raises `ReplicaDied`."""
        if self.replica is None:
            raise ReplicaDied("its engine is gone")
        await self.replica.wake(self._changed)
        self._resting = False

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
            section = self._settings.engine_of(self.version.name, self.version.number)
            seen = await asyncio.to_thread(visible, section)
            with self._devices.given(seen, section) as gpus:
                lacking = await asyncio.to_thread(shortage, self.version, section, gpus)
                if lacking:
                    raise ReplicaDied(lacking)
                self.replica = Replica(self._settings, self.version, self._hooks, self._index, gpus)
                await self.replica.start(self._changed)
                began = time.monotonic()
                self.settled.set()
                self._changed()
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
        dead, self.replica = self.replica, None
        self._changed()  # no new request may meet the dead replica while it is put away
        if dead is not None:
            await dead.stop()
        return 0.0 if began is None else time.monotonic() - began

    def _still_wanted(self, _: int) -> None:
        """Called for each block of a file that is verified: its thread would hold up a stop."""
        if self._stopped:
            raise ReplicaDied("the service stops")

    def _fail(self, reason: str) -> None:
        log.error("%s failed: %s", self.version.tag, reason)
        self.reason = reason
        self._idle_state = State.FAILED
        self.settled.set()
        self._changed()
