"""How much a key and a model may use: requests and tokens per minute, tokens per day, and requests
at once.

Tokens are reserved before, as many as the request can take, and settled after by what it took, in
the window they were reserved in. Windows are fixed, and counted by `Counters`.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from serving.contract.embeddings import EmbeddingRequest
from serving.contract.errors import ApiError
from serving.gateway.auth import Caller
from serving.gateway.counters import Claim, Counters, Kind, LocalCounters, Slot, Window
from serving.gateway.encoding import AnyRequest
from serving.gateway.shared_counters import SharedCounters
from serving.settings import Quota, Settings

#: What a request was refused for.
Refusal: TypeAlias = Kind | Literal["concurrent"]

#: Characters in a token, at the least guess that is still cheap: English has four.
CHARACTERS = 4
_MINUTE, _DAY = 60, 86400


@dataclass(slots=True)
class Reservation:
    """What one request was let in with. `headers` tell its client how much is left."""

    tokens: int = 0
    claim: Claim | None = None
    headers: dict[str, str] = field(default_factory=dict)


class Limiter:
    """`refusals` are the limits hit, by their kind."""

    def __init__(self, settings: Settings, counters: Counters | None = None) -> None:
        self.refusals: Counter[Refusal] = Counter()
        self._settings = settings
        if counters is None:
            shared = settings.limits.redis_env is not None
            counters = SharedCounters(settings) if shared else LocalCounters()
        self._counters = counters

    @property
    def running(self) -> Counter[str]:
        """The requests of this process at once that have such a limit, by whose they are."""
        return self._counters.running

    @property
    def settle_errors(self) -> int:
        """What could not be given back, or taken beyond."""
        return self._counters.settle_errors

    async def start(self) -> None:
        await self._counters.start()

    async def stop(self) -> None:
        await self._counters.stop()

    async def reserve(self, caller: Caller, request: AnyRequest) -> Reservation:
        """Raises `ApiError` when it would be too much (429) or cannot be told (503); then nothing
        is reserved."""
        model = request.model.partition("@")[0].partition(":")[0].partition("/")[0]
        reservation = Reservation(self._estimate(request))
        now = time.time()
        slots: list[Slot] = []
        charges: list[tuple[Window, int]] = []
        for whose, quota in self._quotas(caller, model):
            if quota.concurrent is not None:
                slots.append(Slot(whose, quota.concurrent))
            for window in _windows(whose, quota, now):
                charges.append((window, 1 if window.kind == "requests" else reservation.tokens))
        if not slots and not charges:
            return reservation
        claim = await self._counters.claim(slots, charges)
        for (window, _), total in zip(charges, claim.totals, strict=False):
            _tell(reservation.headers, window, total, now)
        if not claim.taken:
            raise self._refused(claim, reservation, now)
        reservation.claim = claim
        return reservation

    async def settle(self, reservation: Reservation, used: int) -> None:
        """Gives back what was not used, or takes what was used beyond; frees the slots. Once."""
        claim, reservation.claim = reservation.claim, None
        if claim is not None:
            change = used - reservation.tokens
            await self._counters.settle(
                claim, [change if w.kind != "requests" else 0 for w, _ in claim.charges]
            )

    def _quotas(self, caller: Caller, model: str) -> Iterator[tuple[str, Quota]]:
        """Whose limits it meets, and those limits: the key's first."""
        if caller.key is not None:
            yield f"key {caller.id}", caller.key.quota or self._settings.limits.per_key
        section = self._settings.models.get(model)
        if section is not None:
            yield f"model {model}", section.limits

    def _refused(self, claim: Claim, reservation: Reservation, now: float) -> ApiError:
        if claim.full is not None:
            self.refusals["concurrent"] += 1
            message = (
                f"The {claim.full.whose} has {claim.full.limit} requests running, its limit; ask "
                "again when one has ended."
            )
            seconds = 1
        else:
            window, cost = next(
                (window, cost)
                for (window, cost), total in zip(claim.charges, claim.totals, strict=True)
                if total + cost > window.limit
            )
            self.refusals[window.kind] += 1
            seconds = _seconds_left(window, now)
            per = "day" if window.length == _DAY else "minute"
            what = "tokens" if window.kind != "requests" else "requests"
            told_cost = f"; this request may take {cost}" if what == "tokens" else ""
            message = (
                f"The {window.whose} may take {window.limit} {what} per {per}{told_cost}; ask "
                f"again in {seconds} s."
            )
        return ApiError(
            429,
            "rate_limit_exceeded",
            message,
            retry_after=seconds,
            headers=reservation.headers,
        )

    def _estimate(self, request: AnyRequest) -> int:
        """The most tokens it should take: its prompt's, and those it asks for."""
        inner, prompt = request.inner, prompt_estimate(request)
        limit = getattr(inner, "token_limit", None)
        if isinstance(request, EmbeddingRequest):
            return prompt
        choices = getattr(inner, "n", None) or 1
        return prompt + (limit or self._settings.limits.assumed_answer) * choices


def prompt_estimate(request: AnyRequest) -> int:
    """The tokens of a prompt, by its length."""
    return request.inner.characters // CHARACTERS + 1


def _seconds_left(window: Window, now: float) -> int:
    return max(0, math.ceil(window.ends - now))


def _tell(headers: dict[str, str], window: Window, total: int, now: float) -> None:
    if window.kind == "tokens per day":
        return
    told = {
        "limit": str(window.limit),
        "remaining": str(max(0, window.limit - total)),
        "reset": f"{_seconds_left(window, now)}s",
    }
    for name, value in told.items():
        # A key's limits are what its owner wants to know; a model's, if it has none.
        headers.setdefault(f"x-ratelimit-{name}-{window.kind}", value)


def _windows(whose: str, quota: Quota, now: float) -> Iterator[Window]:
    kinds: tuple[tuple[Kind, int | None, int], ...] = (
        ("requests", quota.requests_per_minute, _MINUTE),
        ("tokens", quota.tokens_per_minute, _MINUTE),
        ("tokens per day", quota.tokens_per_day, _DAY),
    )
    for kind, limit, length in kinds:
        if limit is not None:
            yield Window(whose, kind, limit, length, (now // length + 1) * length)
