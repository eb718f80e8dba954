"""The HTTP side of a request: its body read within bounds, its reply written in one of two ways."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping

from starlette.types import Receive, Scope, Send

from serving.contract import sse
from serving.contract.errors import ApiError, invalid
from serving.gateway.connection import ClientConnection
from serving.runtime.wire import ClientGone

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The request's body. Raises `ApiError` for another content type than JSON or a body that is
    compressed (415), for more than `limit` bytes (413) and for none (400)."""
    headers = dict(scope["headers"])
    content_type = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
    if content_type != b"application/json":
        raise ApiError(
            415, "unsupported_media_type", "Send the body as content-type: application/json."
        )
    if headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
        raise ApiError(415, "unsupported_media_type", "Send the body without content-encoding.")
    body = await read_bytes(scope, receive, limit)
    if not body:
        raise invalid("The body is empty; send a JSON object.", code="invalid_json")
    return body


async def read_bytes(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The request's body, of whatever type. Raises `ApiError` (413) for more than `limit` bytes,
    and `ClientGone`."""
    declared = dict(scope["headers"]).get(b"content-length", b"0")
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def _too_large(limit: int) -> ApiError:
    return ApiError(413, "body_too_large", f"The body may have {limit} bytes at most.")


def request_id(scope: Scope) -> str:
    """The client's `x-request-id` if it is one, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            given: str = value.decode("latin-1")
            if _REQUEST_ID.fullmatch(given):
                return given
    return secrets.token_hex(16)


class Responder:
    """Writes one reply: JSON at once, or a stream of events.

    `started` tells whether bytes went out, after which an error can only be an event; `finished`
    whether the last ones did. `status` is how it ended, 0 before, and `code` the error's, if it
    did with one.
    """

    def __init__(self, scope: Scope, send: Send) -> None:
        self.request_id = request_id(scope)
        self.started = False
        self.finished = False
        self.status = 0
        self.code = ""
        self._send = send
        self._connection = ClientConnection.of(scope)
        self._direct: ClientConnection | None = None
        self._pending: list[bytes] = []
        self._headers = [(b"x-request-id", self.request_id.encode())]

    def tell(self, headers: Mapping[str, str]) -> None:
        """Adds headers to the reply, errors included."""
        self._headers += [(name.encode(), value.encode()) for name, value in headers.items()]

    def served_by(self, version: str, label: str) -> None:
        """Names the version that answers, and the label that led to it if one did, in the reply's
        headers."""
        names = (b"x-served-version", b"x-served-label")  # of another that was tried before
        self._headers = [header for header in self._headers if header[0] not in names]
        self._headers.append((b"x-served-version", version.encode()))
        if label:
            self._headers.append((b"x-served-label", label.encode()))

    async def json(self, body: bytes, status: int = 200) -> None:
        length = (b"content-length", str(len(body)).encode())
        await self._start(status, [(b"content-type", b"application/json"), length])
        self.finished = True
        await self._send({"type": "http.response.body", "body": body})

    def write(self, events: bytes) -> bool:
        """Writes events at once. False when that is not possible, or the client has enough to read
        by now: then `flush` before the next."""
        if self._direct is None:
            self._pending.append(events)
            return False
        self._direct.write(events)
        return not self._direct.full

    async def flush(self) -> None:
        """Returns when all is written and the client takes more."""
        if self._direct is not None:
            await self._direct.drain()
        while self._pending:
            events = b"".join(self._pending)
            self._pending.clear()
            await self._events(events)
        if self.started:
            # BentoML's middlewares have seen the reply begin, and will see its end. What is between
            # costs more on its way through them than all the rest of relaying it.
            self._direct = self._connection

    async def stream(self, events: bytes, *, last: bool = False) -> None:
        """Writes events after all that is pending."""
        await self.flush()
        await self._events(events, last=last)

    async def _events(self, events: bytes, *, last: bool = False) -> None:
        if not self.started:
            await self._start(
                200,
                [
                    (b"content-type", b"text/event-stream; charset=utf-8"),
                    (b"cache-control", b"no-cache"),
                    (b"x-accel-buffering", b"no"),  # nginx would hold events back otherwise
                ],
            )
        self.finished = last
        await self._send({"type": "http.response.body", "body": events, "more_body": not last})

    async def error(self, error: ApiError) -> None:
        """The envelope, or as the last event of a stream that has begun."""
        self.code = error.code
        if self.started:
            self.status = error.status
            await self.stream(sse.error_event(error), last=True)
            return
        self.tell(error.headers)
        await self.json(error.body(), error.status)

    async def nobody(self) -> None:
        """A reply to a client that left. Nobody reads it, but BentoML's time limit waits for the
        first byte of every request, and a stop of the service would wait with it."""
        if self.started:
            self.status = 499
        else:
            await self._start(499, [(b"content-length", b"0")])
            await self._send({"type": "http.response.body", "body": b""})

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.started, self.status = True, status
        await self._send(
            {"type": "http.response.start", "status": status, "headers": self._headers + headers}
        )
