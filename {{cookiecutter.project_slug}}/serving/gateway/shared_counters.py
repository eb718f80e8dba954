"""Counters in Redis, shared by all replicas of the service that have its name.

A slot is a lease that this process renews until it frees it: those of a service that was killed
come back when their leases end. While Redis is away, `limits.on_failure` says whether requests are
counted by this process alone, or refused. What is settled meanwhile is told Redis when it is back.
It is never told twice: what it was told as it went away may be missing, which leaves less for the
others until that window's end, and not more.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import uuid
from collections.abc import Sequence

from serving.contract.errors import limits_unknown
from serving.gateway.counters import Claim, LocalCounters, Slot, Window
from serving.gateway.redis_line import Call, RedisAway, RedisLine
from serving.gateway.shared_scripts import CLAIM, RENEW, SETTLE
from serving.settings import Settings

#: Seconds that a slot stays taken without being renewed. It is, three times as often.
LEASE = 30.0
#: Slots renewed in one step of Redis.
TOGETHER = 1000


class SharedCounters:
    """Raises nothing for a Redis that is away: see `limits.on_failure`."""

    def __init__(self, settings: Settings, *, lease: float = LEASE) -> None:
        variable = settings.limits.redis_env
        assert variable is not None
        self._settings = settings
        self._local = LocalCounters()
        self.running = self._local.running
        self._prefix = f"{{serving/{settings.service.name}}}"  # on one node, where there are many
        self._lease = lease
        self._process = uuid.uuid4().hex[:12]
        self._numbers = itertools.count()
        #: The slots of this process, by their ids, wherever they were counted.
        self._held: dict[str, str] = {}
        self._unsettled = 0
        self._renewer: asyncio.Task[None] | None = None
        self._line = RedisLine(
            os.environ[variable],
            (CLAIM, SETTLE, RENEW),
            arrived=self._restored,
            answered=self._answered,
            lost=self._lost,
            meanwhile=self._meanwhile,
        )

    @property
    def settle_errors(self) -> int:
        return self._unsettled + self._line.dropped

    async def start(self) -> None:
        await self._local.start()
        await self._line.start()
        self._renewer = asyncio.ensure_future(self._renew_on())

    async def stop(self) -> None:
        if self._renewer is not None:
            self._renewer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._renewer
        await self._line.stop()
        await self._local.stop()

    async def claim(self, slots: Sequence[Slot], charges: Sequence[tuple[Window, int]]) -> Claim:
        if not self._line.away:
            with contextlib.suppress(RedisAway):
                return await self._claim_shared(Claim(slots, charges, shared=True))
        if self._settings.limits.on_failure == "closed":
            raise limits_unknown()
        claim = await self._local.claim(slots, charges)
        if claim.taken:
            claim.ids = self._new_ids(slots)
            self._hold(claim)
        return claim

    async def settle(self, claim: Claim, changes: Sequence[int]) -> None:
        if claim.shared:
            self._local.release(claim.slots)
            self._free(claim, changes)
        else:
            await self._local.settle(claim, changes)
            self._free(claim, ())  # its slots: Redis may have heard of them meanwhile

    async def _claim_shared(self, claim: Claim) -> Claim:
        claim.ids = self._new_ids(claim.slots)
        keys = [self._slots(slot.whose) for slot in claim.slots]
        args: list[str | int] = [len(keys), round(self._lease * 1000)]
        for slot, slot_id in zip(claim.slots, claim.ids, strict=True):
            args += slot.limit, slot_id
        for window, amount in claim.charges:
            keys.append(f"{self._prefix}/{window.name}")
            args += window.limit, amount, window.length
        answer = asyncio.get_running_loop().create_future()
        call = Call(CLAIM, keys, args, answer, claim)
        self._line.send(call)
        try:
            await answer
        except asyncio.CancelledError:
            self._leave(call)
            raise
        return claim

    def _answered(self, call: Call, answer: list[int]) -> None:
        if call.answer is None:
            return
        claim: Claim = call.about
        taken, full, *claim.totals = answer
        claim.taken = bool(taken)
        claim.full = claim.slots[full - 1] if full else None
        if claim.taken:
            self._local.hold(claim.slots)
            self._hold(claim)
        if call.answer.cancelled():
            self._leave(call)
        else:
            call.answer.set_result(answer)

    def _leave(self, call: Call) -> None:
        """Gives back what was taken for a request that is no more. While it is on its way, nothing
        is: then `_answered` finds the request gone."""
        claim: Claim = call.about
        if claim.taken:
            claim.taken = False
            self._local.release(claim.slots)
            self._free(claim, [-amount for _, amount in claim.charges])

    def _lost(self, call: Call) -> None:
        """Slots are freed again, which hurts nobody. The rest is done, or is not."""
        if call.script == CLAIM and call.keys:
            claim: Claim = call.about
            self._free(claim, ())
        elif call.script == SETTLE:
            slots = int(call.args[0])
            self._unsettled += len(call.keys) - slots
            if slots:
                self._line.send(Call(SETTLE, call.keys[:slots], call.args[: slots + 1]))

    def _new_ids(self, slots: Sequence[Slot]) -> list[str]:
        return [f"{self._process}-{next(self._numbers)}" for _ in slots]

    def _hold(self, claim: Claim) -> None:
        for slot, slot_id in zip(claim.slots, claim.ids, strict=True):
            self._held[slot_id] = slot.whose

    def _free(self, claim: Claim, changes: Sequence[int]) -> None:
        for slot_id in claim.ids:
            self._held.pop(slot_id, None)
        keys = [self._slots(slot.whose) for slot in claim.slots]
        args: list[str | int] = [len(keys), *claim.ids]
        for (window, _), change in zip(claim.charges, changes, strict=False):
            if change:
                keys.append(f"{self._prefix}/{window.name}")
                args.append(change)
        if keys:
            self._line.send(Call(SETTLE, keys, args))

    async def _renew_on(self) -> None:
        while True:
            await asyncio.sleep(self._lease / 3)
            if not self._line.away:
                for call in self._renewal("XX"):
                    self._line.send(call)

    def _restored(self) -> list[Call]:
        """The slots of running requests, for a Redis that may have lost them or never had them."""
        return self._renewal("CH")

    def _renewal(self, option: str) -> list[Call]:
        """XX leaves freed slots free, however late it arrives."""
        held = list(self._held.items())
        calls = []
        for first in range(0, len(held), TOGETHER):
            some = held[first : first + TOGETHER]
            args: list[str | int] = [round(self._lease * 1000), option, *(i for i, _ in some)]
            calls.append(Call(RENEW, [self._slots(whose) for _, whose in some], args))
        return calls

    def _slots(self, whose: str) -> str:
        return f"{self._prefix}/{whose}/running"

    def _meanwhile(self) -> str:
        if self._settings.limits.on_failure == "closed":
            return "Requests that have limits get a 503 until it is back."
        return "Until it is back, this service counts its own requests alone."
