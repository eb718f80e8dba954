"""A client that sends the bytes a test says, for what no HTTP library would send."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

MODELS = b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n"


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        """Its envelope, after a look at its shape."""
        document = json.loads(self.body)
        assert set(document) == {"error"}, document
        error: dict[str, Any] = document["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert self.headers["content-type"] == "application/json"
        assert self.headers["x-request-id"]
        return error


class RawClient:
    """One connection."""

    def __init__(self, port: int, *, patience: float = 20, buffer: int = 0) -> None:
        self.socket = socket.socket()
        if buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.socket.settimeout(patience)
        self.socket.connect(("127.0.0.1", port))
        self.began = time.monotonic()
        self._data = b""

    @property
    def age(self) -> float:
        return time.monotonic() - self.began

    def send(self, data: bytes) -> RawClient:
        self.socket.sendall(data)
        return self

    def reply(self) -> Reply:
        """The next one. Raises EOFError when the connection ends first."""
        while b"\r\n\r\n" not in self._data:
            self._receive()
        head, _, self._data = self._data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        length = int(headers["content-length"])
        while len(self._data) < length:
            self._receive()
        body, self._data = self._data[:length], self._data[length:]
        return Reply(int(first.split()[1]), headers, body)

    def rest(self) -> list[Reply]:
        """All replies until the service closes the connection."""
        replies = []
        with contextlib.suppress(EOFError):
            while True:
                replies.append(self.reply())
        assert not self._data, self._data
        return replies

    def _receive(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise EOFError
        self._data += data


@contextlib.contextmanager
def connected(port: int, *, patience: float = 20, buffer: int = 0) -> Iterator[RawClient]:
    """`patience` is how many seconds the service may be silent; `buffer` the bytes that the system
    takes before the test does."""
    client = RawClient(port, patience=patience, buffer=buffer)
    with client.socket:
        yield client


def post(path: str, body: bytes, *headers: str, length: int | None = None) -> bytes:
    """A JSON request with its length, or with the one that is claimed."""
    lines = [
        f"POST {path} HTTP/1.1",
        "host: x",
        "content-type: application/json",
        f"content-length: {len(body) if length is None else length}",
        *headers,
    ]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body
