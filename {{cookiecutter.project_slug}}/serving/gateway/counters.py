"""Where limits are counted: requests at once by slots, all else by windows of time. Here in memory,
for one process; `shared_counters` is for several."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from limits.aio.storage import MemoryStorage

Kind = Literal["requests", "tokens", "tokens per day"]

#: Seconds between two looks for windows that are over.
SWEEP_EVERY = 60


@dataclass(frozen=True, slots=True)
class Window:
    """One counter: of `kind`, for `whose` key or model, until `ends` (seconds since 1970). Its id
    is part of its name, so that what is given back late never counts for a later one."""

    whose: str
    kind: Kind
    limit: int
    length: int
    ends: float

    @property
    def name(self) -> str:
        return f"{self.whose}/{self.kind}/{int(self.ends) // self.length}"


@dataclass(frozen=True, slots=True)
class Slot:
    """One of the `limit` requests that `whose` key or model may have running."""

    whose: str
    limit: int


@dataclass(slots=True)
class Claim:
    """What a request asked of the counters: slots, and an amount of each window. All of it was
    `taken`, or nothing. `full` is the first slot there was none of; `totals` are what the windows
    hold now. The rest is the counters' own."""

    slots: Sequence[Slot]
    charges: Sequence[tuple[Window, int]]
    taken: bool = False
    full: Slot | None = None
    totals: list[int] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    shared: bool = False


class Counters(Protocol):
    """`running` are the requests of this process at once, by whose they are; `settle_errors` count
    what was not given back to a window, or not taken of it."""

    running: Counter[str]

    @property
    def settle_errors(self) -> int: ...

    async def start(self) -> None:
        """Before the first claim."""

    async def stop(self) -> None:
        """After the last claim is settled."""

    async def claim(self, slots: Sequence[Slot], charges: Sequence[tuple[Window, int]]) -> Claim:
        """Takes all of it, or nothing. Raises `ApiError` (503) when that cannot be told."""

    async def settle(self, claim: Claim, changes: Sequence[int]) -> None:
        """Frees the slots and changes each window by so much. Once, of a claim that was taken;
        raises nothing."""


class LocalCounters:
    """In this process's memory, by the `limits` library."""

    def __init__(self) -> None:
        self.running: Counter[str] = Counter()
        self.settle_errors = 0
        self._storage = MemoryStorage()
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        # The storage looks for what is over after each change, at all counters there are: with a
        # thousand keys that is half a millisecond a request. It does not while a look goes on.
        self._sweeper = self._storage.timer = asyncio.create_task(self._sweep())

    async def stop(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sweeper

    async def claim(self, slots: Sequence[Slot], charges: Sequence[tuple[Window, int]]) -> Claim:
        claim = Claim(slots, charges)
        # Nothing below gives way to another task: what is looked at is still so when it is taken.
        claim.full = next((s for s in slots if self.running[s.whose] >= s.limit), None)
        if claim.full is None:
            claim.totals = [await self._add(window, amount) for window, amount in charges]
            if all(t <= w.limit for t, (w, _) in zip(claim.totals, charges, strict=True)):
                self.hold(slots)
                claim.taken = True
                return claim
            claim.totals = [await self._add(window, -amount) for window, amount in charges]
        return claim

    async def settle(self, claim: Claim, changes: Sequence[int]) -> None:
        self.release(claim.slots)
        for (window, _), change in zip(claim.charges, changes, strict=True):
            if change:
                await self._add(window, change)

    def hold(self, slots: Sequence[Slot]) -> None:
        for slot in slots:
            self.running[slot.whose] += 1

    def release(self, slots: Sequence[Slot]) -> None:
        for slot in slots:
            self.running[slot.whose] -= 1
            if not self.running[slot.whose]:
                del self.running[slot.whose]

    async def _add(self, window: Window, amount: int) -> int:
        return await self._storage.incr(window.name, window.length, amount)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_EVERY)
            for name in list(self._storage.expirations):
                await self._storage.get(name)  # which forgets what is over
