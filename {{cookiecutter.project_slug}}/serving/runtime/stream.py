"""One request on one engine: sent, and its answer read as events no engine owns."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from serving.contract.errors import ApiError, engine_error, timed_out
from serving.contract.events import EngineEvent, Usage
from serving.contract.sampling import Request
from serving.contract.sse import EventReader
from serving.engines.base import Engine, EngineCall
from serving.engines.dialect import EngineRefused
from serving.runtime.wire import EngineGone, EngineReply, Wire

log = logging.getLogger("bentoml.serving")


#: What becomes of the events that came together.
Take = Callable[[list[EngineEvent]], object]


class EngineStream:
    """The events of one answer to `request`, sent as `call` with `headers`, which are whole lines.
    `complete` is set once the engine has ended it well; `heard` is when it said something last, by
    the loop's clock, 0 before."""

    def __init__(
        self, engine: Engine, wire: Wire, request: Request, call: EngineCall, headers: bytes = b""
    ) -> None:
        self.complete = False
        self.heard = 0.0
        self._engine = engine
        self._wire = wire
        self._call = call
        self._headers = headers
        self._request = request
        self._reply: EngineReply | None = None
        self._reader = EventReader()
        self._body: list[bytes] = []
        self._decoder = engine.decoder(request.inner)
        self._take: Take | None = None
        self._fault: Exception | None = None
        self._paused = False
        self._time = asyncio.get_running_loop().time

    async def more(self, take: Take, patience: float) -> bool:
        """Waits for the answer's head, for its end, or for `wake`. Meanwhile its events go to
        `take`, in the callback of the socket that brought them. False after `patience` seconds of
        silence.

        Raises `EngineGone` when the engine vanished, `ApiError` when it refused or failed, and what
        `take` raised.
        """
        if self._reply is None:
            self._reply = await self._ask()
        if self._take is None:
            if not self._reply.status and not await self._head(patience):
                return False
            if self._reply.status != 200:
                raise self._refused(self._reply.status, await self._reply.body())
            self._take = take
            self._reply.listen(self._received)
        elif not await self._changed(patience):
            return False
        if self._fault is not None:
            raise self._fault
        if self._reply.complete and not self.complete:
            self._end()
        return True

    def wake(self) -> None:
        """Lets `more` return."""
        assert self._reply is not None
        self._reply.wake()

    def pause(self) -> None:
        """Reads no more from the engine until `resume`."""
        assert self._reply is not None
        self._paused = True
        self._reply.pause()

    def resume(self) -> None:
        if self._paused:
            assert self._reply is not None
            self._paused = False
            self.heard = self._time()
            self._reply.resume()

    async def _changed(self, patience: float) -> bool:
        assert self._reply is not None
        since = self._time()
        while not self.complete and self._fault is None:
            left = max(since, self.heard) + patience - self._time()
            if left < 0.001:  # uvloop's clock ticks in milliseconds
                if not self._paused:
                    return False
                since = self._time()  # it is not the engine that says nothing
            elif await self._reply.changed(left):
                break
        return True

    def _received(self, data: bytes) -> None:
        if self.complete or self._fault is not None:
            return
        assert self._reply is not None and self._take is not None
        try:
            if not self._call.streamed:
                self._body.append(data)
                return
            events = self._events(data)
            if events:
                self.heard = self._time()
                self._take(events)
        except Exception as error:  # for whoever waits in `more`
            self._fault = error
        if self.complete or self._fault is not None:
            self._reply.wake()

    def _events(self, data: bytes) -> list[EngineEvent]:
        try:
            payloads = self._reader.feed(data)
        except ValueError as error:
            raise engine_error() from error
        events: list[EngineEvent] = []
        try:
            for payload in payloads:
                event = self._decoder.decode(payload)
                events.append(event)
                if event.done:  # whatever follows is no part of the answer
                    self.complete = True
                    break
        except EngineRefused as refused:
            raise self._refused(refused.status, refused.body) from None
        return events

    def _end(self) -> None:
        """The engine has ended its reply, and not by its own end mark."""
        assert self._take is not None
        if not self._call.streamed:
            self._take([self._decoder.decode(b"".join(self._body))])
        elif self._reader.pending or self._engine.ends_with_done:
            raise EngineGone("the engine ended its stream too early")
        self.complete = True

    @property
    def counted(self) -> Usage | None:
        """What the engine has counted so far, if it tells before the end."""
        return self._decoder.counted()

    async def close(self) -> None:
        """Keeps the connection for the next request if this one is complete; otherwise leaves,
        which tells the engine to stop generating."""
        if self._reply is None:
            return
        if not self.complete:
            self._reply.abort()
        elif not self._reply.complete:  # the last chunk's frame, a few bytes behind the end mark
            with contextlib.suppress(EngineGone):
                await self._reply.read(1.0)
        self._reply.close()

    async def _ask(self, *, fresh: bool = False) -> EngineReply:
        path, body = self._call.path, self._call.body
        return await self._wire.request("POST", path, body, headers=self._headers, fresh=fresh)

    async def _head(self, patience: float) -> bool:
        assert self._reply is not None
        try:
            return await self._reply.head(patience)
        except EngineGone:
            if not self._reply.stale:
                raise
        self._reply = await self._ask(fresh=True)
        return await self._reply.head(patience)

    def _refused(self, status: int, body: bytes) -> ApiError:
        # Its words may quote the prompt, which belongs in no log unless somebody asks for it.
        log.warning("%s answered %d", self._engine.name, status)
        log.debug("%s said: %.500s", self._engine.name, body.decode("utf-8", "replace"))
        return self._engine.refusal(status, body, self._request)


async def read_all(stream: EngineStream, patience: float) -> list[EngineEvent]:
    """All events of a stream, for warm-up. Raises `EngineGone` and `ApiError`."""
    events: list[EngineEvent] = []
    try:
        while not stream.complete:
            if not await stream.more(events.extend, patience):
                raise timed_out("The engine fell silent.")
    finally:
        await stream.close()
    return events
