"""One request on one engine: sent, and its answer read as events no engine owns."""

from __future__ import annotations

import contextlib
import logging

from serving.contract.errors import ApiError, engine_error, timed_out
from serving.contract.events import EngineEvent
from serving.contract.sampling import Request
from serving.contract.sse import EventReader
from serving.engines.base import Engine, EngineCall
from serving.engines.dialect import EngineRefused
from serving.runtime.wire import EngineGone, EngineReply, Wire

log = logging.getLogger("bentoml.serving")


class EngineStream:
    """The events of one answer to `request`, sent as `call` with `headers`, which are whole lines.
    `complete` is set once the engine has ended it well."""

    def __init__(
        self, engine: Engine, wire: Wire, request: Request, call: EngineCall, headers: bytes = b""
    ) -> None:
        self.complete = False
        self._engine = engine
        self._wire = wire
        self._call = call
        self._headers = headers
        self._request = request
        self._reply: EngineReply | None = None
        self._reader = EventReader()
        self._body: list[bytes] = []
        self._decoder = engine.decoder(request.inner)
        self._done = False

    async def next(self, patience: float) -> list[EngineEvent] | None:
        """The events that came together; an empty list may come any time and means nothing; None
        after `patience` seconds of silence.

        Raises `EngineGone` when the engine vanished, `ApiError` when it refused or failed.
        """
        if self._reply is None:
            self._reply = await self._ask()
        if not self._reply.status and not await self._head(patience):
            return None
        if self._reply.status != 200:
            raise self._refused(self._reply.status, await self._reply.body())
        data = await self._reply.read(patience)
        if data is None:
            return None
        if not self._call.streamed:
            return self._whole(data)
        if data == b"":
            if self._reader.pending or (self._engine.ends_with_done and not self._done):
                raise EngineGone("the engine ended its stream too early")
            self.complete = True
            return []
        try:
            payloads = self._reader.feed(data)
        except ValueError as error:
            raise engine_error() from error
        try:
            events = [self._decoder.decode(payload) for payload in payloads]
        except EngineRefused as refused:
            raise self._refused(refused.status, refused.body) from None
        if events and events[-1].done:
            self._done = self.complete = True
        return events

    def _whole(self, data: bytes) -> list[EngineEvent]:
        """An answer that is one JSON body is one event, once all of it is there."""
        if data:
            self._body.append(data)
            return []
        self.complete = True
        return [self._decoder.decode(b"".join(self._body))]

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
            got = await stream.next(patience)
            if got is None:
                raise timed_out("The engine fell silent.")
            events += got
    finally:
        await stream.close()
    return events
