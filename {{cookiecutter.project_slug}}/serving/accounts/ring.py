"""The keys in memory, as of half a second ago: no request waits for the database."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from datetime import UTC, datetime

from serving.accounts.database import DatabaseError
from serving.accounts.keys import ApiKey, Keys, id_of

log = logging.getLogger("bentoml.serving")

#: Seconds between two looks: a revocation is in force everywhere within one.
LOOK_EVERY = 0.5


class KeyRing:
    """While the database cannot be read, the last known keys stay in force, and `fault` says
    why."""

    def __init__(self, keys: Keys) -> None:
        self.fault = ""
        self._keys = keys
        self._known: dict[str, ApiKey] = {}
        self._revision: int | None = None
        self._watcher: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self._look()
        self._watcher = asyncio.ensure_future(self._watch())

    async def stop(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher

    def __len__(self) -> int:
        return len(self._known)

    def find(self, presented: str) -> ApiKey | None:
        """The valid key that was presented; None for anything else."""
        key = self._known.get(id_of(presented) or "")
        if key is None or not key.opens(presented):
            return None
        return key if key.state(datetime.now(UTC)) == "valid" else None

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY)
            try:
                await self._look()
            except Exception:  # a defect of ours must not make every later revocation unseen
                log.exception("the keys could not be looked at; trying on")

    async def _look(self) -> None:
        try:
            revision = await self._keys.revision()
            if revision != self._revision:
                self._known = {key.id: key for key in await self._keys.list()}
                self._revision = revision
        except DatabaseError as error:
            if not self.fault:
                log.error("%s The keys known so far stay in force.", error)
            self.fault = str(error)
        else:
            if self.fault:
                log.info("the keys can be read again")
            self.fault = ""
