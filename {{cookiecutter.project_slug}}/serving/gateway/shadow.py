"""Copies of requests for a version that nobody hears: how it would have done, beside the answers
that clients got.

A copy runs beside its request, never before it, as many at once as its model allows; its answer is
read and dropped, and nothing that happens to it reaches the client.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from typing import Any

from prometheus_client import Counter as CounterMetric
from prometheus_client import Histogram

from serving.accounts.ledger import Bookkeeper, Entry
from serving.contract.errors import ApiError
from serving.gateway.encoding import AnyRequest, encode
from serving.gateway.limits import prompt_estimate
from serving.runtime.outcome import Outcome
from serving.runtime.routing import Route, Router
from serving.runtime.stream import EngineStream
from serving.runtime.wanted import SHADOW
from serving.runtime.wire import EngineGone
from serving.settings import Settings

log = logging.getLogger("bentoml.serving")

_SIDES = ("model", "version", "side")
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
COPIES = CounterMetric(
    "serving_shadow_requests",
    "Requests that the shadow version was to get a copy of, by what became of it",
    ("model", "version", "outcome"),
    registry=None,
)
TTFT = Histogram(
    "serving_shadow_ttft_seconds",
    "Time to first token of shadowed requests, of the shadow and of the version that answered",
    _SIDES,
    buckets=_SECONDS,
    registry=None,
)
DURATION = Histogram(
    "serving_shadow_duration_seconds",
    "Time to the end of shadowed requests, of the shadow and of the version that answered",
    _SIDES,
    buckets=_SECONDS,
    registry=None,
)
TOKENS = Histogram(
    "serving_shadow_completion_tokens",
    "Tokens generated for shadowed requests, by the shadow and by the version that answered",
    _SIDES,
    buckets=(1, 10, 30, 100, 300, 1000, 3000, 10000),
    registry=None,
)
#: For `/metrics`.
METRICS = (COPIES, TTFT, DURATION, TOKENS)


class Shadows:
    """The copies of all models."""

    def __init__(self, settings: Settings, router: Router, ledger: Bookkeeper) -> None:
        self._settings = settings
        self._router = router
        self._ledger = ledger
        self._running: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()

    def copy(self, request: AnyRequest, route: Route) -> bool:
        """Sends the shadow a copy of a request on its way to `route`, if it is due one. Returns
        whether it was; then `compare` wants to know how the answer itself went."""
        model = self._router.snapshot.models.get(request.model)
        if model is None or not model.shadow or random.random() * 100 >= model.shadow:  # noqa: S311
            return False
        target = model.targets.get(model.labels.get(SHADOW, 0))
        if target is None or target.number == route.target.number:
            return False
        if not target.replicas:
            return self._count(target.name, target.number, "not_ready")
        if self._running[target.name] >= self._settings.models[target.name].shadow_concurrency:
            return self._count(target.name, target.number, "busy")
        replica = min(target.replicas, key=lambda replica: replica.in_flight)
        task = asyncio.ensure_future(self._run(request, Route(target, replica, SHADOW)))
        self._running[target.name] += 1
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    def compare(self, outcome: Outcome) -> None:
        """Notes how the answer went whose copy the shadow got."""
        self._observe(outcome, "primary")

    async def _run(self, request: AnyRequest, route: Route) -> None:
        target = route.target
        outcome = Outcome(target.name, target.number, SHADOW, route.replica.engine.name)
        became = "failed"
        try:
            async with asyncio.timeout(self._settings.timeouts.answer):
                await self._read(request, route, outcome)
            became = "answered"
        except (ApiError, EngineGone, TimeoutError) as error:
            log.info("%s, the shadow, did not answer: %s", target.tag, type(error).__name__)
        except Exception:  # a defect of ours is the shadow's, too
            log.exception("%s: the shadow's copy failed", target.tag)
        finally:
            self._running[target.name] -= 1
        outcome.end(failed=became == "failed").cut_short(prompt_estimate(request))
        self._count(target.name, target.number, became)
        status = 502 if outcome.failed else 200
        entry = Entry("", None, request.model, status, duration=outcome.duration, shadow=True)
        outcome.enter(entry)
        self._ledger.note(entry)
        if not outcome.failed:
            self._observe(outcome, "shadow")

    async def _read(self, request: AnyRequest, route: Route, outcome: Outcome) -> None:
        engine = route.replica.engine
        call = await encode(request, route)
        stream = EngineStream(engine, route.replica.wire, request, call)
        patience = self._settings.timeouts.first_token
        try:
            while not stream.complete:
                if not await stream.more(outcome.note, patience):
                    raise TimeoutError
        finally:
            outcome.counted = stream.counted
            await stream.close()

    @staticmethod
    def _count(model: str, number: int, became: str) -> bool:
        COPIES.labels(model, str(number), became).inc()
        return False

    @staticmethod
    def _observe(outcome: Outcome, side: str) -> None:
        labels: tuple[Any, ...] = (outcome.model, str(outcome.number), side)
        if outcome.ttft is not None:
            TTFT.labels(*labels).observe(outcome.ttft)
        DURATION.labels(*labels).observe(outcome.duration)
        TOKENS.labels(*labels).observe(outcome.tokens)
