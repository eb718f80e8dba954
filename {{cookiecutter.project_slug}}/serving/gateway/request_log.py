"""The request log: one line of JSON on stdout for each request, on a logger of its own.

What a client wrote is in it only where serving.yaml says `logs.prompts`.
"""

from __future__ import annotations

import logging
import sys
import time
from datetime import UTC, datetime

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.contract.sampling import Request
from serving.settings import Settings

log = logging.getLogger("serving.requests")

#: Characters of a prompt, or of a path, in a line.
LONGEST = 4000
#: What is asked every few seconds, by programs; told of only when it fails.
_PROBES = ("/metrics", "/v2/health/")


class Line(msgspec.Struct, omit_defaults=True):
    """One request; what is not known of it is left out. Seconds, and tokens. `status` is 499 where
    the client left, and an error's where a stream that had begun ended with one; `error` its
    code."""

    request_id: str
    client: str
    method: str
    path: str
    status: int
    key: str | None = None
    model: str | None = None
    version: int | None = None
    label: str | None = None
    engine: str | None = None
    stream: bool | None = None
    error: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    queued: float | None = None
    ttft: float | None = None
    duration: float | None = None
    trace_id: str | None = None
    prompt: str | None = None
    time: datetime = msgspec.field(default_factory=lambda: datetime.now(UTC))


class RequestLog:
    """Silent until `start`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def start(self) -> None:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.handlers = [handler]
        log.setLevel(logging.INFO)
        log.propagate = False

    @property
    def wanted(self) -> bool:
        return self._settings.logs.requests and log.isEnabledFor(logging.INFO)

    def write(self, line: Line) -> None:
        # A name is JSON too, so that no client can write a line of its own.
        log.info(msgspec.json.encode(line).decode())

    def prompt(self, request: Request) -> str | None:
        """The beginning of what the client wrote, if that may be told."""
        if not self._settings.logs.prompts:
            return None
        asked = request.inner
        written = asked.model_dump(mode="json", include={asked.INPUT_FIELD})[asked.INPUT_FIELD]
        text = written if isinstance(written, str) else msgspec.json.encode(written).decode()
        return text[:LONGEST]

    def around(self, app: ASGIApp) -> ASGIApp:
        """`app`, with a line for each request that it answers."""

        async def logged(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http" or not self.wanted:
                await app(scope, receive, send)
                return
            line = Line("", address(scope), scope["method"], scope["path"][:LONGEST], 0)
            began = time.perf_counter()

            async def noted(message: Message) -> None:
                if message["type"] == "http.response.start":
                    line.status = message["status"]
                    for name, value in message["headers"]:
                        if name == b"x-request-id":
                            line.request_id = value.decode("latin-1")
                await send(message)

            try:
                await app(scope, receive, noted)
            finally:
                if line.status >= 400 or not scope["path"].startswith(_PROBES):
                    line.duration = time.perf_counter() - began
                    self.write(line)

        return logged


def address(scope: Scope) -> str:
    """The client's, as this machine sees it."""
    client: tuple[str, int] | None = scope.get("client")
    return client[0] if client else ""
