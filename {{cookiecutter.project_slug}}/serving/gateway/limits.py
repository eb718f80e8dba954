"""How much a key and a model may use: requests and tokens per minute, tokens per day, and requests
at once.

Tokens are reserved before, as many as the request can take, and settled after by what it took, in
the window they were reserved in. Windows are fixed, counted by the `limits` library; a window's id
is part of its counter's name, so that what is given back late never counts for a later window.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from limits.aio.storage import Storage
from limits.storage import storage_from_string

from serving.contract.errors import ApiError
from serving.gateway.auth import Caller
from serving.gateway.encoding import AnyRequest
from serving.settings import Quota, Settings

Kind = Literal["requests", "tokens", "tokens per day"]

#: Characters in a token, at the least guess that is still cheap: English has four.
CHARACTERS = 4
_MINUTE, _DAY = 60, 86400


@dataclass(frozen=True, slots=True)
class Window:
    """One counter: of `kind`, for `whose` key or model, until `ends` (seconds since 1970)."""

    whose: str
    kind: Kind
    limit: int
    length: int
    ends: float

    @property
    def name(self) -> str:
        return f"serving/{self.whose}/{self.kind}/{int(self.ends) // self.length}"


@dataclass(slots=True)
class Reservation:
    """What one request was let in with. `headers` tell its client how much is left."""

    tokens: int = 0
    windows: list[Window] = field(default_factory=list)
    slots: list[str] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)


class Limiter:
    """The counters. `running` are the requests at once, by whose they are; `refusals` count those
    that were too much, by the kind of limit; `settle_errors` what could not be given back."""

    def __init__(self, settings: Settings) -> None:
        self.running: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.settle_errors = 0
        self._settings = settings
        storage = storage_from_string("async+memory://")
        assert isinstance(storage, Storage)
        self._storage: Storage = storage

    async def reserve(self, caller: Caller, request: AnyRequest) -> Reservation:
        """Raises `ApiError` (429) when it would be too much; then nothing is reserved."""
        model = request.model.partition("@")[0].partition(":")[0].partition("/")[0]
        reservation = Reservation(self._estimate(request))
        try:
            for whose, quota in self._quotas(caller, model):
                self._take_slot(reservation, whose, quota)
                for window in _windows(whose, quota, time.time()):
                    await self._take(reservation, window)
        except ApiError as error:
            await self.settle(reservation, 0, refused=True)
            error.extra_headers |= reservation.headers
            raise
        return reservation

    async def settle(self, reservation: Reservation, used: int, *, refused: bool = False) -> None:
        """Gives back what was not used, or takes what was used beyond; frees the slots. Once."""
        slots, reservation.slots = reservation.slots, []
        for whose in slots:
            self.running[whose] -= 1
            if not self.running[whose]:
                del self.running[whose]
        windows, reservation.windows = reservation.windows, []
        for window in windows:
            tokens = window.kind != "requests"
            change = used - reservation.tokens if tokens else -1 if refused else 0
            if change:
                await self._storage.incr(window.name, window.length, change)

    def _quotas(self, caller: Caller, model: str) -> Iterator[tuple[str, Quota]]:
        """Whose limits it meets, and those limits: the key's first."""
        if caller.key is not None:
            yield f"key {caller.id}", caller.key.quota or self._settings.limits.per_key
        section = self._settings.models.get(model)
        if section is not None:
            yield f"model {model}", section.limits

    def _take_slot(self, reservation: Reservation, whose: str, quota: Quota) -> None:
        if quota.concurrent is None:
            return
        if self.running[whose] >= quota.concurrent:
            self.refusals["concurrent"] += 1
            raise ApiError(
                429,
                "rate_limit_exceeded",
                f"The {whose} has {quota.concurrent} requests running, its limit; ask again when "
                "one has ended.",
                retry_after=1,
            )
        self.running[whose] += 1
        reservation.slots.append(whose)

    async def _take(self, reservation: Reservation, window: Window) -> None:
        cost = reservation.tokens if window.kind != "requests" else 1
        total = await self._storage.incr(window.name, window.length, cost)
        reservation.windows.append(window)
        seconds = max(0, math.ceil(window.ends - time.time()))
        if window.kind != "tokens per day":
            left = window.limit - total
            told = {"limit": window.limit, "remaining": max(0, left), "reset": f"{seconds}s"}
            for name, value in told.items():
                # A key's limits are what its owner wants to know; a model's, if it has none.
                reservation.headers.setdefault(f"x-ratelimit-{name}-{window.kind}", str(value))
        if total > window.limit:
            self.refusals[window.kind] += 1
            per = "day" if window.length == _DAY else "minute"
            what = "tokens" if window.kind != "requests" else "requests"
            told_cost = f"; this request may take {cost}" if what == "tokens" else ""
            raise ApiError(
                429,
                "rate_limit_exceeded",
                f"The {window.whose} may take {window.limit} {what} per {per}{told_cost}; ask "
                f"again in {seconds} s.",
                retry_after=seconds,
            )

    def _estimate(self, request: AnyRequest) -> int:
        """The most tokens it should take: its prompt's, and those it asks for."""
        inner, prompt = request.inner, prompt_estimate(request)
        limit = getattr(inner, "token_limit", None)
        if request.TASK == "embed":
            return prompt
        choices = getattr(inner, "n", None) or 1
        return prompt + (limit or self._settings.limits.assumed_answer) * choices


def prompt_estimate(request: AnyRequest) -> int:
    """The tokens of a prompt, by its length."""
    return request.inner.characters // CHARACTERS + 1


def _windows(whose: str, quota: Quota, now: float) -> Iterator[Window]:
    kinds: tuple[tuple[Kind, int | None, int], ...] = (
        ("requests", quota.requests_per_minute, _MINUTE),
        ("tokens", quota.tokens_per_minute, _MINUTE),
        ("tokens per day", quota.tokens_per_day, _DAY),
    )
    for kind, limit, length in kinds:
        if limit is not None:
            yield Window(whose, kind, limit, length, (now // length + 1) * length)
