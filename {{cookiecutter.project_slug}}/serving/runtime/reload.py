"""Follows serving.yaml: what can change while the service runs is in force a second after the file
was written, and what cannot is said by name."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path

from serving.runtime.reconciler import Reconciler
from serving.settings import Settings, SettingsError, load_settings
from serving.settings.changes import take_over

log = logging.getLogger("bentoml.serving")

#: Seconds between two looks at the file, which may be a mount where the kernel tells of no change.
LOOK_EVERY = 1.0


class Reloader:
    """`fault` says what is wrong with the file, if it cannot be used: the last good settings stay.
    `waiting` are the keys whose changes need a restart."""

    def __init__(self, path: Path, settings: Settings, reconciler: Reconciler) -> None:
        self.fault = ""
        self.waiting: list[str] = []
        self._path = path
        self._settings = settings
        self._longest_wait = settings.timeouts.longest_wait
        self._reconciler = reconciler
        self._seen = self._bytes()
        self._watcher: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._watcher = asyncio.ensure_future(self._watch())

    async def stop(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY)
            try:
                await self._look()
            except Exception:  # a defect of ours: the settings in force stay
                log.exception("%s could not be taken over", self._path)

    async def _look(self) -> None:
        seen = await asyncio.to_thread(self._bytes)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            new = await asyncio.to_thread(load_settings, self._path)
        except SettingsError as error:
            self.fault = f"{error} The settings before stay in force."
            log.error("%s", self.fault)
            return
        self.fault = ""
        changed, self.waiting = take_over(self._settings, new, self._longest_wait, self._is_served)
        if changed:
            log.info("%s: in force now: %s", self._path.name, ", ".join(changed))
            self._reconciler.reconcile()
        if self.waiting:
            log.warning("%s: restart for: %s", self._path.name, ", ".join(self.waiting))

    def _is_served(self, model: str, number: int) -> bool:
        return number in self._reconciler.served[model]

    def _bytes(self) -> bytes | None:
        try:
            return self._path.read_bytes()
        except OSError:
            return None
