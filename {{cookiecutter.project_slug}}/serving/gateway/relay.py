"""From what an engine says to what its client gets, in the callback of the socket that brought it:
no task wakes up for a token."""

from __future__ import annotations

import asyncio

from serving.contract import sse
from serving.contract.embeddings import EmbeddingReply
from serving.contract.errors import ApiError, timed_out
from serving.contract.events import EngineEvent
from serving.contract.reply import Reply
from serving.gateway.http import Responder
from serving.runtime.outcome import Outcome
from serving.runtime.stream import EngineStream
from serving.runtime.wire import EngineGone
from serving.settings import Timeouts


class Relay:
    """One answer on its way. `reply` turns it into the contract's bytes, `outcome` notes how it
    goes."""

    def __init__(
        self,
        stream: EngineStream,
        reply: Reply | EmbeddingReply,
        outcome: Outcome,
        responder: Responder,
    ) -> None:
        self._stream = stream
        self._reply = reply
        self._outcome = outcome
        self._responder = responder

    async def run(self, timeouts: Timeouts, *, streamed: bool) -> None:
        """Until the engine has ended its answer well; all but the end of it is written then.

        Raises `EngineGone` when the engine vanished, `ApiError` when it refused, failed or fell
        silent.
        """
        stream, silence = self._stream, Silence(timeouts)
        while not stream.complete:
            try:
                spoke = await stream.more(self._take, silence.patience(stream.heard))
                if not spoke:
                    silence.check(stream.heard)
            except (ApiError, EngineGone):
                await self._responder.flush()  # what came before the end of it
                raise
            if spoke:
                await self._responder.flush()
                stream.resume()
            elif streamed:
                await self._responder.stream(sse.KEEPALIVE)

    def _take(self, events: list[EngineEvent]) -> None:
        self._outcome.note(events)
        data = self._reply.feed(events)
        if data and not self._responder.write(data):
            self._stream.pause()
            self._stream.wake()


class Silence:
    """How long the engine has said nothing, against what it may. When it was heard last is told by
    the loop's clock; 0 is never."""

    def __init__(self, timeouts: Timeouts) -> None:
        self._timeouts = timeouts
        self._time = asyncio.get_running_loop().time
        self._began = self._time()

    def patience(self, heard: float) -> float:
        """Seconds until somebody should look at it. Some, however late this one is: what the engine
        said meanwhile may only not have been read yet."""
        return max(0.01, min(self._timeouts.keepalive, self._left(heard)))

    def check(self, heard: float) -> None:
        """Raises `ApiError` (504) when it has been too long."""
        if self._left(heard) < 0.001:  # uvloop's clock ticks in milliseconds
            limit = self._limit(heard)
            raise timed_out(f"The engine said nothing for {limit:g} s; ask again.")

    def _left(self, heard: float) -> float:
        return (heard or self._began) + self._limit(heard) - self._time()

    def _limit(self, heard: float) -> float:
        return self._timeouts.stall if heard else self._timeouts.first_token
