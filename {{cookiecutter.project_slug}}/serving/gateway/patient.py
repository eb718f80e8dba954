"""HTTP/1.1 from clients: the protocol of uvicorn, which BentoML's worker runs, with limits.

Nobody may keep the service waiting for long: not with half a head, half a body or an answer that is
not read. No task waits for any of them, only a timer that each connection has. What is not HTTP, or
can be read in two ways, is refused in the contract's envelope, and its connection ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, cast

import httptools
from starlette.types import Scope
from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from serving.contract.errors import ApiError, bad_http, head_too_large, request_timeout
from serving.gateway.connection import EXTENSION, ClientConnection
from serving.gateway.head import HEAD_LIMIT, check_head, check_size
from serving.gateway.http import request_id
from serving.gateway.shortcut import Find, shortcut
from serving.gateway.unread import Unread
from serving.settings import Settings

#: Requests of one connection that may wait for those before them.
PIPELINE = 16
#: Seconds in which a refused client may still send: if its connection were closed at once, its
#: system could throw the refusal away unread (RFC 9112, 9.6).
LINGER = 2.0


def install(settings: Settings, refused: Callable[[str], None], find: Find | None = None) -> None:
    """Makes every uvicorn of this process use the protocol; `refused` is told the code of each
    error that it answers with. What `find` has an application for takes the short way to it."""
    protocol = partial(PatientProtocol, settings, refused, find)
    HTTP_PROTOCOLS["auto"] = cast(str, protocol)  # what is no string is taken as it is


class PatientProtocol(HttpToolsProtocol):
    """One client's connection. The limits are those of `settings.timeouts` at that time; the
    methods named `on_…` are httptools' callbacks, and `on_response_complete` uvicorn's."""

    def __init__(
        self,
        settings: Settings,
        refused: Callable[[str], None],
        find: Find | None,
        *args: Any,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        if find is not None:
            self.app = shortcut(self.config, find)
        self._settings = settings
        self._refused = refused
        self._awaits: Literal["head", "body", ""] = "head"
        self._deadline = 0.0  # for what it awaits; 0: none
        self._timer: asyncio.TimerHandle | None = None
        self._piece = 0  # bytes being parsed
        self._spent = 0  # bytes that brought no body
        self._over = False  # what still comes is not read
        self._before: RequestResponseCycle | None = None  # the request before the last one
        self._body_to_come = False

    # The connection.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._unread = Unread(transport, self.flow, self._settings)
        self._client = ClientConnection(transport, self.flow)
        self._extensions: Any = {EXTENSION: self._client}
        self._within(self._settings.timeouts.head)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._client.lost()
        self._unset_keepalive_if_required()
        self._unread.close()
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        if self._over:
            return
        self._unset_keepalive_if_required()
        if not self._awaits:
            self._awaits = "head"
        self._piece = len(data)
        self._spent += self._piece
        self._parse(data)
        if self._over:
            return
        if self._spent > HEAD_LIMIT:
            long_body = bad_http("The body has chunk extensions or trailers without end.")
            self._refuse(long_body if self._awaits == "body" else head_too_large(HEAD_LIMIT))
        elif self._awaits:
            if not self._deadline:
                self._within(self._limit)
        elif self.cycle.response_complete:  # before all of the request was there
            self._keep()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread.watch()

    # What the parser finds.

    def _parse(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if (framing := self._framing) is not None:
                self._read_body(framing, data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._refuse(cause if isinstance(cause, ApiError) else bad_http())

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._awaits = "head"

    def on_headers_complete(self) -> None:
        if self._spent + self._piece > HEAD_LIMIT:
            check_size(self.url, self.headers)
        check_head(self.url, self.headers, self.parser.get_http_version())
        if len(self.pipeline) >= PIPELINE:
            raise bad_http("The request is too far ahead of its connection's answers.")
        self._before = self.cycle
        super().on_headers_complete()
        self.headers = []  # of trailers, which must not pass for headers
        self.scope["extensions"] = self._extensions
        if self.parser.should_upgrade():
            self.cycle.keep_alive = False
            self._body_to_come = self._framing is not None
        self._awaits = "body"
        self._deadline = 0.0
        self._spent = 0
        self._unread.quiet = False

    def on_body(self, body: bytes) -> None:
        if self._spent:  # a chunk has some framing of its own, but not much more than data
            self._spent = max(0, self._spent - 2 * len(body) - 16)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._body_to_come:
            self._body_to_come = False
            return
        super().on_message_complete()
        self._awaits = ""
        self._deadline = 0.0
        self._spent = 0
        self._over = not self.cycle.keep_alive

    def _should_upgrade(self) -> bool:
        return False  # nothing else is spoken here

    def _read_body(self, framing: tuple[bytes, bytes], data: bytes) -> None:
        """Of a request that would like another protocol, to which httptools leaves the body. Java's
        own client asks so for HTTP/2 in its first request."""
        self.parser = httptools.HttpRequestParser(_BodyOnly(self))
        self._parse(b"POST / HTTP/1.1\r\n%b: %b\r\n\r\n" % framing + data)

    @property
    def _framing(self) -> tuple[bytes, bytes] | None:
        """The header that says where the body ends; without one there is no body."""
        names = (b"content-length", b"transfer-encoding")
        return next((header for header in self.scope["headers"] if header[0] in names), None)

    # What the application answers.

    def on_response_complete(self) -> None:
        self.timeout_keep_alive = cast(int, self._settings.timeouts.idle)
        super().on_response_complete()
        if self._awaits:  # the rest of this request, or the next one: their limits are in force
            self._unset_keepalive_if_required()
        if self.pipeline:
            self.flow.pause_reading()
        self._unread.quiet = not self.pipeline
        self._unread.watch()

    def _keep(self) -> None:
        """The connection, for another request."""
        self.timeout_keep_alive_task = self.loop.call_later(
            self._settings.timeouts.idle, self.timeout_keep_alive_handler
        )

    # What is refused.

    def _refuse(self, error: ApiError) -> None:
        """Answers in the application's place, and takes nothing more from this client."""
        self._over = True
        self._deadline = 0.0
        self._refused(error.code)
        before = self._earlier
        if before is not None and not before.response_complete:
            before.keep_alive = False  # its answer is the last one
            return
        if self._awaits == "body":
            self._client.gone = self.cycle.disconnected = True
            self.cycle.message_event.set()
            if self.cycle.response_started:
                self.transport.close()
                return
        self.transport.write(self._envelope(error))
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self._within(LINGER)
        else:
            self.transport.close()

    def _envelope(self, error: ApiError) -> bytes:
        body = error.body()
        headers = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            "x-request-id": request_id(cast(Scope, self.scope) or {"headers": []}),
            "connection": "close",
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return b"".join((STATUS_LINE[error.status], lines.encode(), b"\r\n", body))

    # Time.

    @property
    def _limit(self) -> float:
        timeouts = self._settings.timeouts
        return timeouts.head if self._awaits == "head" else timeouts.body

    @property
    def _earlier(self) -> RequestResponseCycle | None:
        """The last request before the one that is being read."""
        return self._before if self._awaits == "body" else self.cycle

    def _within(self, seconds: float) -> None:
        """Sets the deadline. The timer looks again when it rings too early, so that most requests
        set none."""
        self._deadline = self.loop.time() + seconds
        if self._timer is None or self._timer.when() > self._deadline:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self.loop.call_at(self._deadline, self._ring)

    def _ring(self) -> None:
        self._timer = None
        if not self._deadline or self.transport.is_closing():
            return
        earlier = self._earlier
        if self.loop.time() + 0.001 < self._deadline:  # uvloop's clock ticks in milliseconds
            self._timer = self.loop.call_at(self._deadline, self._ring)
        elif self._over:
            self.transport.abort()
        elif self.flow.read_paused or (earlier is not None and not earlier.response_complete):
            self._within(self._limit)  # it is ourselves who do not read, or have not come to it
        elif self._awaits == "head" and not self._spent:
            self.transport.close()
        else:
            self._refuse(request_timeout(self._awaits, self._limit))


class _BodyOnly:
    """Hears of a body, and not of the head before it."""

    def __init__(self, connection: PatientProtocol) -> None:
        self.on_body = connection.on_body
        self.on_message_complete = connection.on_message_complete
