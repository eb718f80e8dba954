"""A stop in the right order: readiness off, no new work, running answers finish, then the server.

Left alone, the server stops listening at once on SIGTERM, and new connections hang unanswered until
it exits. So the signal is caught first: probes and new requests get a quick 503 while the running
answers finish, and only then does the server hear of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from serving.contract.errors import shutting_down
from serving.settings import Settings

log = logging.getLogger("bentoml.serving")

PARENT_CHECK = 0.5  # seconds
#: Seconds for the error events of requests that are cut off.
LAST_WORDS = 2.0


class Shutdown:
    """Counts the requests under way and holds a stop back until they are done.

    `settings` say how many seconds they get. `started` tells that the stop has begun, `cutting`
    that the time is up: the tasks of the requests that still run are then cancelled.
    """

    def __init__(self, settings: Settings) -> None:
        self.started = False
        self.cutting = False
        self._settings = settings
        self._running: set[asyncio.Task[Any]] = set()
        self._changed = asyncio.Event()
        self._previous: dict[int, Any] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @contextmanager
    def request(self) -> Iterator[None]:
        """Around each request, in its own task. Raises `ApiError` (503) once the stop has begun."""
        if self.started:
            raise shutting_down()
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            yield
        finally:
            self._running.discard(task)
            self._changed.set()

    def install(self) -> None:
        """Catches SIGTERM and SIGINT before the server does, and notices the parent's death: a
        worker whose `bentoml serve` was killed would serve on, unseen and unstoppable.

        Does nothing under another host than `bentoml serve`, whose signals are its own business.
        """
        if "BENTOML_RUNNER_MAP" not in os.environ:  # set by `bentoml serve` for its workers
            return
        loop = asyncio.get_running_loop()
        for caught_signal in (signal.SIGTERM, signal.SIGINT):
            self._previous[caught_signal] = signal.getsignal(caught_signal)

        def caught(number: int, _: FrameType | None) -> None:
            loop.call_soon_threadsafe(self._begin, number)

        for number in self._previous:
            signal.signal(number, caught)
        self._spawn(self._watch_parent(os.getppid()))

    def _begin(self, number: int) -> None:
        if self.started:
            return
        self.started = True
        if self._running:
            drain = self._settings.timeouts.drain
            log.info("stopping: %d requests get %g s to finish", len(self._running), drain)
        self._spawn(self._drain(number))

    async def _drain(self, number: int) -> None:
        await self._until(time.monotonic() + self._settings.timeouts.drain)
        if self._running:
            log.warning("stopping: %d requests are cut off", len(self._running))
            self.cutting = True
            for task in self._running:
                task.cancel()
            await self._until(time.monotonic() + LAST_WORDS)
        previous = self._previous[number]
        if callable(previous):
            previous(number, None)

    async def _until(self, deadline: float) -> None:
        """Until nothing runs, or the deadline."""
        while self._running and (left := deadline - time.monotonic()) > 0:
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._changed.wait()

    async def _watch_parent(self, parent: int) -> None:
        while os.getppid() == parent:
            await asyncio.sleep(PARENT_CHECK)
        log.warning("bentoml serve is gone: stopping")
        self._begin(signal.SIGTERM)

    def _spawn(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
