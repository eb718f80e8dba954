"""The client's own connection, for the middle of a stream.

BentoML's middlewares wrap every send in functions that have nothing to do but at a reply's first
and last message. What lies between may go straight to the socket.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from starlette.types import Scope
from uvicorn.protocols.http.flow_control import FlowControl

#: Where it lies in the ASGI scope's `extensions`.
EXTENSION = "serving.connection"


class ClientConnection:
    """Writes into a reply whose head was sent, without a length, the ASGI way, and whose last
    message will be. It is the same for all requests of a connection, of which one is answered at a
    time. `gone` tells that nobody reads it any more."""

    def __init__(self, transport: asyncio.Transport, flow: FlowControl) -> None:
        self.gone = False
        self._left: Callable[[], None] | None = None
        self._transport = transport
        self._flow = flow

    @classmethod
    def of(cls, scope: Scope) -> ClientConnection | None:
        """None under a server that is not ours."""
        extensions: dict[str, Any] = scope.get("extensions") or {}
        return extensions.get(EXTENSION)

    def watch(self, left: Callable[[], None]) -> None:
        """Calls `left` when the client is gone, until it is unwatched or somebody else watches."""
        self._left = left
        self._flow.resume_reading()  # after a long body; nobody is seen to leave who is not read
        if self.gone:
            left()

    def unwatch(self, left: Callable[[], None]) -> None:
        if self._left == left:  # the next request may have begun
            self._left = None

    def lost(self) -> None:
        """Called by the protocol."""
        self.gone = True
        if self._left is not None:
            self._left()

    @property
    def full(self) -> bool:
        """Whether the client reads too slowly: `drain` before the next `write`."""
        return self._flow.write_paused

    def write(self, data: bytes) -> None:
        """One HTTP chunk; `data` is not empty. Dropped when the client is gone."""
        if not self.gone:
            self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))

    async def drain(self) -> None:
        """Returns when the client has read enough, or is gone."""
        await self._flow.drain()
