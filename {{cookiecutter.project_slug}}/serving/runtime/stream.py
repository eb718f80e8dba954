"""One generation on one engine: its request sent, its stream read as events no engine owns."""

from __future__ import annotations

import contextlib
import logging

from serving.contract.errors import engine_error, timed_out
from serving.contract.events import EngineEvent
from serving.contract.sse import EventReader
from serving.engines.base import Engine, EngineCall
from serving.runtime.wire import EngineGone, EngineReply, Wire

log = logging.getLogger("bentoml.serving")


class EngineStream:
    """The events of one generation. `complete` is set once the engine has ended it well.

    `param` is the request field to blame when the engine says that the prompt is too long.
    """

    def __init__(
        self, engine: Engine, wire: Wire, call: EngineCall, stops: list[str], param: str
    ) -> None:
        self.complete = False
        self._engine = engine
        self._wire = wire
        self._call = call
        self._param = param
        self._reply: EngineReply | None = None
        self._reader = EventReader()
        self._decoder = engine.open_stream(stops)
        self._done = False

    async def next(self, patience: float) -> list[EngineEvent] | None:
        """The events that came together; an empty list may come any time and means nothing; None
        after `patience` seconds of silence.

        Raises `EngineGone` when the engine vanished, `ApiError` when it refused or failed.
        """
        if self._reply is None:
            self._reply = await self._wire.request("POST", self._call.path, self._call.body)
        if not self._reply.status and not await self._head(patience):
            return None
        if self._reply.status != 200:
            await self._refused(self._reply)
        data = await self._reply.read(patience)
        if data is None:
            return None
        if data == b"":
            if self._reader.pending or (self._engine.ends_with_done and not self._done):
                raise EngineGone("the engine ended its stream too early")
            self.complete = True
            return []
        try:
            payloads = self._reader.feed(data)
        except ValueError as error:
            raise engine_error() from error
        events = [self._decoder.decode(payload) for payload in payloads]
        if events and events[-1].done:
            self._done = self.complete = True
        return events

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

    async def _head(self, patience: float) -> bool:
        assert self._reply is not None
        try:
            return await self._reply.head(patience)
        except EngineGone:
            if not self._reply.stale:
                raise
        self._reply = await self._wire.request("POST", self._call.path, self._call.body, fresh=True)
        return await self._reply.head(patience)

    async def _refused(self, reply: EngineReply) -> None:
        body = await reply.body()
        # Its words may quote the prompt, which belongs in no log unless somebody asks for it.
        log.warning("%s answered %d", self._engine.name, reply.status)
        log.debug("%s said: %.500s", self._engine.name, body.decode("utf-8", "replace"))
        raise self._engine.refusal(reply.status, body, self._param)


async def read_all(stream: EngineStream, patience: float) -> list[EngineEvent]:
    """All events of a stream, for warm-up. Raises `EngineGone` and `ApiError`."""
    events: list[EngineEvent] = []
    try:
        while not stream.complete:
            got = await stream.next(patience)
            if got is None:
                raise timed_out("The engine fell silent.")
            events += got
    finally:
        await stream.close()
    return events
