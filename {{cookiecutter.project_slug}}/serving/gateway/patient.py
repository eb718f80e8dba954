"""HTTP/1.1 from clients: the protocol of uvicorn, which BentoML's worker runs, with limits.

Nobody may keep the service waiting for long: not with half a head, half a body or an answer that is
not read. No task waits for any of them, only a timer that each connection has. What is not HTTP, or
can be read in two ways, is refused in the contract's envelope, and its connection ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, cast

from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from serving.contract.errors import ApiError, bad_http, head_too_large, request_timeout
from serving.gateway.connection import EXTENSION, ClientConnection
from serving.gateway.http import request_id
from serving.settings import Settings

log = logging.getLogger("bentoml.serving")

#: Bytes of a request's line and headers, and of what frames its body.
HEAD_LIMIT = 64 * 1024
#: Requests of one connection that may wait for those before them.
PIPELINE = 16
#: Seconds in which a refused client may still send: closed at once, its system would throw the
#: refusal away unread (RFC 9112, 9.6).
LINGER = 2.0


def install(settings: Settings, refused: Callable[[str], None]) -> None:
    """Makes every uvicorn of this process use the protocol; `refused` is told the code of each
    error that it answers with."""
    protocol = partial(PatientProtocol, settings, refused)
    HTTP_PROTOCOLS["auto"] = cast(str, protocol)  # what is no string is taken as it is


class PatientProtocol(HttpToolsProtocol):
    """One client's connection. The limits are those of `settings.timeouts` at that time."""

    def __init__(
        self, settings: Settings, refused: Callable[[str], None], *args: Any, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self._settings = settings
        self._refused = refused
        self._awaits: Literal["head", "body", ""] = "head"
        self._deadline = 0.0  # for what it awaits; 0: none
        self._timer: asyncio.TimerHandle | None = None
        self._piece = 0  # bytes that are being parsed
        self._spent = 0  # bytes that brought no body
        self._over = False  # takes no more requests
        self._before: RequestResponseCycle | None = None  # the request before the last one
        self._refusal: ApiError | None = None
        self._unsent = 0
        self._unsent_since = 0.0
        self._write_timer: asyncio.TimerHandle | None = None

    # The connection.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._within(self._settings.timeouts.head)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        for timer in (self._timer, self._write_timer):
            if timer is not None:
                timer.cancel()

    def data_received(self, data: bytes) -> None:
        if self._over:
            return
        if not self._awaits:
            self._awaits = "head"
        self._piece = len(data)
        self._spent += self._piece
        super().data_received(data)
        if self._over:
            return
        if self._spent > HEAD_LIMIT:
            self._refuse(head_too_large(HEAD_LIMIT))
        elif not self._awaits:
            self._deadline = 0.0
            if self.cycle.response_complete:  # before all of the request was there
                self._keep()
        elif not self._deadline:
            self._within(self._limit)

    # What the parser finds.

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._awaits = "head"
        self._spent = self._piece

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._awaits == "head":  # else it is a trailer, which must not pass for a header
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._check()
        self._before = self.cycle
        super().on_headers_complete()
        self.scope["extensions"] = cast(Any, {EXTENSION: ClientConnection(self.cycle)})
        self._awaits = "body"
        self._deadline = 0.0
        self._spent = 0

    def on_body(self, body: bytes) -> None:
        # A chunk may have some framing of its own, but not much more than it has data.
        self._spent = max(0, self._spent - 2 * len(body) - 16)
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._awaits = ""
        self._deadline = 0.0
        self._spent = 0

    def _check(self) -> None:
        """Ends the parsing before a request that is not to be answered."""
        if self._spent > HEAD_LIMIT:
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > HEAD_LIMIT:
                self._refusal = head_too_large(HEAD_LIMIT)
                raise self._refusal
        if len(self.pipeline) >= PIPELINE:
            raise bad_http()

    def _should_upgrade(self) -> bool:
        return False  # there is nothing to upgrade to

    # What the application answers.

    def on_response_complete(self) -> None:
        self.timeout_keep_alive = cast(int, self._settings.timeouts.idle)
        super().on_response_complete()
        if self._awaits:
            self._unset_keepalive_if_required()
        if self.pipeline:
            self.flow.pause_reading()
        if self.transport.get_write_buffer_size():
            self._watch_writing()

    def _keep(self) -> None:
        """The connection, for another request."""
        self.timeout_keep_alive_task = self.loop.call_later(
            self._settings.timeouts.idle, self.timeout_keep_alive_handler
        )

    # What is refused.

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._refusal or bad_http())

    def _refuse(self, error: ApiError) -> None:
        """Answers in the application's place, once, and takes nothing more from this client."""
        self._over = True
        self._deadline = 0.0
        self._refused(error.code)
        reading = self._awaits == "body"
        before = self._before if reading else self.cycle
        if before is not None and not before.response_complete:
            before.keep_alive = False  # its answer is the last one
            return
        if reading:
            self.cycle.disconnected = True
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
            "x-request-id": request_id({"headers": self.headers or []}),
            "connection": "close",
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return b"".join((STATUS_LINE[error.status], lines.encode(), b"\r\n", body))

    # Time.

    @property
    def _limit(self) -> float:
        timeouts = self._settings.timeouts
        return timeouts.head if self._awaits == "head" else timeouts.body

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
        if self.loop.time() + 0.001 < self._deadline:  # uvloop's clock ticks in milliseconds
            self._timer = self.loop.call_at(self._deadline, self._ring)
        elif self._over:
            self.transport.abort()
        elif self._held_up:
            self._within(self._limit)
        elif self._awaits == "head" and not self._spent:
            self.transport.close()
        else:
            self._refuse(request_timeout(self._awaits, self._limit))

    @property
    def _held_up(self) -> bool:
        """Whether it is ourselves who do not read, or have not come to it."""
        before = self._before if self._awaits == "body" else self.cycle
        return self.flow.read_paused or (before is not None and not before.response_complete)

    # Clients that do not read.

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_writing()

    def _watch_writing(self) -> None:
        self._unsent = self.transport.get_write_buffer_size()
        self._unsent_since = self.loop.time()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(
                self._settings.timeouts.write, self._look_at_writing
            )

    def _look_at_writing(self) -> None:
        """Ends the connection if nothing was taken all the time. Nobody writes meanwhile: the
        answer is complete, or its writer waits."""
        self._write_timer = None
        unsent = self.transport.get_write_buffer_size()
        if not unsent or not (self.flow.write_paused or self.cycle.response_complete):
            return
        now, limit = self.loop.time(), self._settings.timeouts.write
        if unsent < self._unsent:
            self._unsent, self._unsent_since = unsent, now
        left = self._unsent_since + limit - now
        if left > 0.001:
            self._write_timer = self.loop.call_later(left, self._look_at_writing)
            return
        log.info("a client took nothing for %g s: its connection is cut", limit)
        self.transport.abort()
