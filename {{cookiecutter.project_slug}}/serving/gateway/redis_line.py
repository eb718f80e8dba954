"""One connection to Redis, on which scripts run in the order they were asked for.

What is asked while answers are awaited goes out together with the next: one round trip for many,
and no step of this process ever overtakes another.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

log = logging.getLogger("bentoml.serving")

#: Seconds to wait for a connection, and for answers.
PATIENCE = 1.0
#: Seconds between two tries to reach a Redis that is away.
RETRY_EVERY = 1.0
#: Scripts sent together.
BATCH = 500
#: Scripts kept for a Redis that is away.
HELD = 10_000


class RedisAway(Exception):
    """Redis cannot be used. What was asked of it may have been done, or not."""


@dataclass(slots=True, eq=False)
class Call:
    """One script to run. Somebody waits for its `answer`; without one, it may run later, when Redis
    is back. `about` is for whoever asks."""

    script: str
    keys: list[str]
    args: list[str | int]
    answer: asyncio.Future[list[int]] | None = None
    about: Any = None


class RedisLine:
    """`away` says that Redis cannot be used, `dropped` how many calls there was no room to keep.

    On each new connection the calls of `arrived` run first. `answered` is told of each answer, and
    `lost` of each call that may have run or not. `meanwhile` says what that means, for the log.
    """

    def __init__(
        self,
        url: str,
        scripts: Iterable[str],
        *,
        arrived: Callable[[], list[Call]],
        answered: Callable[[Call, list[int]], None],
        lost: Callable[[Call], None],
        meanwhile: Callable[[], str],
    ) -> None:
        self.away = True
        self.dropped = 0
        address = urlsplit(url)
        self._place = f"{address.hostname}:{address.port or 6379}"
        self._shas = {script: _sha(script) for script in scripts}
        self._arrived, self._answered, self._lost = arrived, answered, lost
        self._meanwhile = meanwhile
        self._told = False
        self._queue: deque[Call] = deque()
        self._flying: list[Call] = []
        self._wanted = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._redis = Redis.from_url(
            url,
            socket_timeout=PATIENCE,
            socket_connect_timeout=PATIENCE,
            retry=Retry(NoBackoff(), 0),  # what was sent is not sent twice
        )

    async def start(self) -> None:
        """Returns when Redis answered, or is known to be away."""
        await self._attempt(self._connect)
        self._worker = asyncio.ensure_future(self._work())

    async def stop(self) -> None:
        """Runs what waits, unless Redis is away."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                while (self._queue or self._flying) and not self.away:
                    await asyncio.sleep(0.01)
        if self._worker is not None:
            self._worker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._worker
        await self._redis.aclose()

    def send(self, call: Call) -> None:
        self._queue.append(call)
        if len(self._queue) > HELD and self.away:
            self._queue.popleft()
            self.dropped += 1
        self._wanted.set()

    async def _work(self) -> None:
        while True:
            if self.away:
                await asyncio.sleep(RETRY_EVERY)
                await self._attempt(self._connect)
            else:
                await self._wanted.wait()
                await self._attempt(self._send)

    async def _attempt(self, step: Callable[[], Awaitable[None]]) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                await step()
        except (RedisError, OSError, TimeoutError) as error:
            await self._lose(_reason(error))
        except Exception:  # a defect of ours must not end the only worker
            log.exception("the limits in Redis failed")
            await self._lose("see above")

    async def _connect(self) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        for script in self._shas:
            pipeline.script_load(script)
        # A Redis that takes no writes, a replica or a full one, is as good as away.
        pipeline.set("serving/written", 1, ex=60)
        self._add(pipeline, self._arrived())
        answers = await pipeline.execute(raise_on_error=False)
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        self.away = False
        if self._told:
            log.info("Redis at %s is back: limits are shared again", self._place)
        self._told = False

    async def _send(self) -> None:
        while self._queue and len(self._flying) < BATCH:
            call = self._queue.popleft()
            if call.answer is None or not call.answer.cancelled():
                self._flying.append(call)
        if not self._queue:
            self._wanted.clear()
        if not self._flying:
            return
        pipeline = self._redis.pipeline(transaction=False)
        self._add(pipeline, self._flying)
        answers = await pipeline.execute(raise_on_error=False)
        calls, self._flying = self._flying, []
        for call, answer in zip(calls, answers, strict=True):
            if isinstance(answer, Exception):
                self._flying.append(call)
                error = answer
            else:
                self._answered(call, answer)
        if self._flying:
            raise error

    def _add(self, pipeline: Any, calls: Iterable[Call]) -> None:
        for call in calls:
            pipeline.evalsha(self._shas[call.script], len(call.keys), *call.keys, *call.args)

    async def _lose(self, reason: str) -> None:
        self.away = True
        if not self._told:
            self._told = True
            log.error("Redis at %s cannot be used: %s. %s", self._place, reason, self._meanwhile())
        flying, self._flying = self._flying, []
        waiting = [call for call in self._queue if call.answer is not None]
        self._queue = deque(call for call in self._queue if call.answer is None)
        for call in flying:
            self._lost(call)
        for call in [*flying, *waiting]:
            if call.answer is not None and not call.answer.done():
                call.answer.set_exception(RedisAway(reason))
        with contextlib.suppress(RedisError, OSError, TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await self._redis.connection_pool.disconnect()


def _sha(script: str) -> str:
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()


def _reason(error: Exception) -> str:
    """Without what the library says of the connection, which was made of a secret."""
    if isinstance(error, AuthenticationError):
        return "it does not take the user and password"
    if isinstance(error, TimeoutError | RedisTimeoutError):
        return f"no answer within {PATIENCE:g} s"
    if isinstance(error, ResponseError):
        return f"it says {str(error).partition(' script: ')[0].rstrip('.')}"
    return "it cannot be reached"
