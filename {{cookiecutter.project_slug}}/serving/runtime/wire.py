"""HTTP/1.1 to one engine, as an asyncio protocol of our own.

The relay is what this program does all day: what a read from the engine brings goes to a listener
in the same callback, and no task wakes for it. Framing is left to httptools (the parser of
Node.js). Back-pressure reaches the engine: while nobody takes a reply, its socket is not read.
"""

from __future__ import annotations

import asyncio
import errno
import ssl
from collections.abc import Callable, Mapping
from typing import cast

import httptools

from serving.contract.errors import overloaded

#: Bytes of a reply held before the engine's socket is no longer read.
HIGH_WATER = 256 * 1024
#: Seconds for a connection on loopback, where only a full backlog takes time.
CONNECT_LIMIT = 5.0


class EngineGone(Exception):
    """The connection to the engine could not be made, or broke before the reply was complete."""


class ClientGone(Exception):
    """The reply was given up because nobody waits for it any more."""


class Wire:
    """Connections to one engine, kept alive and used again. `headers` go with every request; with
    `tls` the connections are encrypted."""

    def __init__(
        self,
        host: str,
        port: int,
        headers: Mapping[str, str],
        *,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._host = host
        self._port = port
        self._tls = tls
        name = f"[{host}]" if ":" in host else host  # RFC 9112, 3.2: IPv6 in brackets
        lines = {"host": f"{name}:{port}", "content-type": "application/json", **headers}
        self._head = "".join(f"{key}: {value}\r\n" for key, value in lines.items()).encode()
        self._idle: list[_Connection] = []

    async def get(self, path: str, *, timeout: float) -> tuple[int, bytes]:
        """Status and body. Raises `EngineGone`, or TimeoutError after `timeout` seconds."""
        return await self._ask("GET", path, b"", timeout)

    async def post(self, path: str, body: bytes, *, timeout: float) -> tuple[int, bytes]:
        """As `get`."""
        return await self._ask("POST", path, body, timeout)

    async def _ask(self, method: str, path: str, body: bytes, timeout: float) -> tuple[int, bytes]:
        async with asyncio.timeout(timeout):
            reply = await self.request(method, path, body, fresh=True)
            try:
                await reply.head()
                return reply.status, await reply.body()
            finally:
                reply.close()

    async def request(
        self, method: str, path: str, body: bytes, *, headers: bytes = b"", fresh: bool = False
    ) -> EngineReply:
        """Sends one request; the reply's head comes later. `headers` are whole lines, for it alone.
        Raises `EngineGone`, or `ApiError` when this process has no socket left.

        A kept connection may turn out to have been closed by the engine while it was idle, which
        shows as `EngineReply.stale`; ask again with `fresh` then.
        """
        head = f"{method} {path} HTTP/1.1\r\ncontent-length: {len(body)}\r\n".encode()
        reused = bool(self._idle) and not fresh
        connection = self._idle.pop() if reused else await self._connect()
        return connection.send(head + self._head + headers + b"\r\n" + body, reused)

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_LIMIT):
                _, connection = await loop.create_connection(
                    lambda: _Connection(self._idle), self._host, self._port, ssl=self._tls
                )
        except TimeoutError:
            raise EngineGone("the engine takes no connection") from None
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):  # our own trouble, not the engine's
                raise overloaded("The service has no socket left; ask again.") from None
            raise EngineGone(str(error)) from None
        return connection

    def close(self) -> None:
        """Closes the idle connections; replies under way go on."""
        while self._idle:
            self._idle.pop().close()


class EngineReply:
    """One reply: its status (0 until the head came), then its bytes as they come, to be `read` or
    to be listened to."""

    def __init__(self, connection: _Connection, reused: bool) -> None:
        self._connection = connection
        self._reused = reused
        self._loop = asyncio.get_running_loop()
        self._listener: Callable[[bytes], None] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._wake_at = 0.0
        self._wakes = 0
        self._buffer: list[bytes] = []
        self._size = 0
        self._error: Exception | None = None
        self.status: int = 0
        self.complete = False
        self.untouched = True  # no byte of the reply has come

    @property
    def stale(self) -> bool:
        """Whether it failed because its kept connection was closed before the request came."""
        return self._reused and self.untouched and isinstance(self._error, EngineGone)

    async def head(self, patience: float | None = None) -> bool:
        """Whether the head is there; false when `patience` seconds brought none.

        Raises `EngineGone`, or `ClientGone` after `abort`.
        """
        if not self.status and self._error is None:
            await self._woken(patience)
        if self._error is not None:
            raise self._error
        return bool(self.status)

    async def read(self, patience: float | None = None) -> bytes | None:
        """The next bytes of the body; b"" at its end; None when `patience` seconds brought nothing.

        Raises `EngineGone` when the connection broke, `ClientGone` after `abort`.
        """
        if not self._buffer and not self.complete and self._error is None:
            await self._woken(patience)
        if self._error is not None:
            raise self._error
        if self._buffer:
            data = self._taken()
            if not self.complete:
                self._connection.resume()
            return data
        return b"" if self.complete else None

    def listen(self, listener: Callable[[bytes], None]) -> None:
        """From now on each read's bytes go to `listener`, which must not raise, at once."""
        self._listener = listener
        if self._buffer:
            listener(self._taken())
            if not self.complete:
                self._connection.resume()

    async def changed(self, patience: float) -> bool:
        """Whether it ended or `wake` was called; false when that did not come in `patience`
        seconds. What a listener heard is no change. Raises as `read` does, once all was heard."""
        if not self.complete and self._error is None:
            before = self._wakes
            await self._woken(patience)
            if self._error is None:
                return self.complete or self._wakes != before
        if self._error is not None:
            raise self._error
        return True

    def pause(self) -> None:
        """Reads no more of it until `resume`."""
        if not self.complete:  # a complete reply's connection may serve another one by now
            self._connection.pause()

    def resume(self) -> None:
        if not self.complete:
            self._connection.resume()

    async def body(self, limit: int = 1024 * 1024) -> bytes:
        """The whole body, cut off at `limit` bytes."""
        parts: list[bytes] = []
        size = 0
        while size < limit and (data := await self.read()):
            parts.append(data)
            size += len(data)
        return b"".join(parts)[:limit]

    def abort(self) -> None:
        """Gives the reply up: the engine sees its client leave, the reader gets `ClientGone`."""
        if not self.complete:  # a complete reply's connection may serve another one by now
            self.fail(ClientGone())
            self._connection.close()

    def close(self) -> None:
        """Done with it. The connection is kept for another one only if all of it was read."""
        if self._timer is not None:
            self._timer.cancel()
        if not self.complete:
            self._connection.close()

    # Called by the connection.

    def received(self, data: bytes) -> None:
        self._buffer.append(data)
        self._size += len(data)

    def deliver(self) -> None:
        """What one read of the socket brought is there."""
        if self._listener is not None and self._buffer:
            self._listener(self._taken())
        elif self._size > HIGH_WATER and not self.complete:
            self._connection.pause()
        if self._buffer or self.complete:
            self.wake()

    def _taken(self) -> bytes:
        data = self._buffer[0] if len(self._buffer) == 1 else b"".join(self._buffer)
        self._buffer.clear()
        self._size = 0
        return data

    def fail(self, error: Exception) -> None:
        if self._error is None and not self.complete:
            self._error = error
            self.wake()

    def wake(self) -> None:
        """For whoever waits for a change."""
        self._wakes += 1
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _woken(self, patience: float | None) -> asyncio.Future[None]:
        """Done at the next change, or after `patience` seconds."""
        self._waiter = self._loop.create_future()
        if patience is not None:
            # One timer per silence, not per read: it looks again when it rings too early.
            self._wake_at = self._loop.time() + patience
            if self._timer is None or self._timer.when() > self._wake_at:
                if self._timer is not None:
                    self._timer.cancel()
                self._timer = self._loop.call_at(self._wake_at, self._ring)
        return self._waiter

    def _ring(self) -> None:
        self._timer = None
        if self._waiter is None or self._waiter.done():
            return
        if self._loop.time() >= self._wake_at:
            self._waiter.set_result(None)
        else:
            self._timer = self._loop.call_at(self._wake_at, self._ring)


class _Connection(asyncio.Protocol):
    """One socket; the methods named `on_…` are httptools' callbacks."""

    def __init__(self, idle: list[_Connection]) -> None:
        self._idle = idle
        self._transport: asyncio.Transport | None = None
        self._reply: EngineReply | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._paused = False

    def send(self, data: bytes, reused: bool) -> EngineReply:
        self._reply = EngineReply(self, reused)
        if self._transport is None or self._transport.is_closing():
            self._reply.fail(EngineGone("the engine closed the connection"))
        else:
            self._transport.write(data)
        return self._reply

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        if self._reply is None:  # bytes nobody asked for
            self.close()
            return
        reply = self._reply
        reply.untouched = False
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            reply.fail(EngineGone("the engine sent what is not HTTP"))
            self.close()
        reply.deliver()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self in self._idle:
            self._idle.remove(self)
        if self._reply is not None:
            self._reply.fail(EngineGone("the engine closed the connection"))

    def on_headers_complete(self) -> None:
        assert self._reply is not None
        self._reply.status = self._parser.get_status_code()
        self._reply.wake()

    def on_body(self, data: bytes) -> None:
        assert self._reply is not None
        self._reply.received(data)

    def on_message_complete(self) -> None:
        assert self._reply is not None
        self._reply.complete = True
        self._reply = None
        self.resume()
        if self._parser.should_keep_alive() and self._transport is not None:
            self._parser = httptools.HttpResponseParser(self)
            self._idle.append(self)
        else:
            self.close()

    def pause(self) -> None:
        if self._transport is not None and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            if self._transport is not None and not self._transport.is_closing():
                self._transport.resume_reading()

    def close(self) -> None:
        if self in self._idle:
            self._idle.remove(self)
        if self._transport is not None:
            self._transport.close()
