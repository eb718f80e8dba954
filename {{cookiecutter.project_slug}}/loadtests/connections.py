"""Connections to one server, kept and used again, and what comes on them with the time it came.

geventhttpclient's own pool asks `select` whether an idle connection still stands. Under gevent that
lets everybody else run first, between the moment a request is timed from and its first byte; and
for the 1,000th open file `select` fails, and each request connects anew.
"""

from __future__ import annotations

import select
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from urllib.parse import SplitResult

import gevent.monkey
import gevent.socket
import gevent.ssl
from gevent.socket import IPPROTO_TCP, SOL_SOCKET, TCP_NODELAY
from geventhttpclient.response import HTTPSocketResponse

CONNECT_WITHIN = 10.0
#: Bytes read at once.
BLOCK = 65536

# Python's own, which asks the kernel and waits for nobody.
_poll = gevent.monkey.get_original("select", "poll")

# https://docs.kernel.org/networking/timestamping.html; a `struct timespec` comes beside the bytes.
_SO_TIMESTAMPNS = 35
_TIMESPEC = struct.Struct("@ll")
_BESIDE = gevent.socket.CMSG_SPACE(_TIMESPEC.size)


class Connection:
    """A socket that knows when its last bytes came.

    Linux notes that for each packet, from a moment after it was first asked to. Elsewhere, and
    below TLS, it is when they were read: later by all that this process did meanwhile, which at
    200 streams is milliseconds now and then (the template's `make bench-clock`).
    """

    def __init__(self, host: str, port: int, tls: bool) -> None:
        #: When what was read last arrived, by `time.perf_counter`.
        self.at = 0.0
        socket = gevent.socket.create_connection((host, port), CONNECT_WITHIN)
        try:
            socket.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
            if tls:
                socket = _trust().wrap_socket(socket, server_hostname=host)
            self._stamped = not tls and sys.platform == "linux"
            if self._stamped:
                socket.setsockopt(SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            socket.settimeout(None)
        except BaseException:
            socket.close()
            raise
        self._socket = socket

    def close(self) -> None:
        self._socket.close()

    def send(self, request: bytes) -> None:
        # A server may refuse before it has read all: its reply is there to be read.
        with suppress(ConnectionResetError, BrokenPipeError):
            self._socket.sendall(request)

    def recv(self, size: int) -> bytes:
        if not self._stamped:
            data: bytes = self._socket.recv(size)
            self.at = time.perf_counter()
            return data
        data, beside, _, _ = self._socket.recvmsg(size, _BESIDE)
        self.at = time.perf_counter()
        for level, kind, stamp in beside:
            if (level, kind) == (SOL_SOCKET, _SO_TIMESTAMPNS):
                seconds, nanoseconds = _TIMESPEC.unpack(stamp)
                self.at -= max(0.0, time.time() - seconds - nanoseconds * 1e-9)
        return data

    @property
    def quiet(self) -> bool:
        """An idle connection on which something can be read has ended, or is out of step."""
        poll = _poll()
        poll.register(self._socket.fileno(), select.POLLIN)
        return not poll.poll(0)


class Connections:
    """As many as are needed: an open loop waits for nobody, a free connection neither."""

    def __init__(self, address: SplitResult) -> None:
        self._tls = address.scheme == "https"
        self._host = address.hostname or ""
        self._port = address.port or (443 if self._tls else 80)
        self._idle: list[Connection] = []
        self._closed = False

    def close(self) -> None:
        """Closes those that are idle, and each other once its exchange is over."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    @contextmanager
    def post(self, request: bytes) -> Iterator[tuple[HTTPSocketResponse, Connection]]:
        """Sends the bytes of a whole request; its reply, of which the head was read, is read in
        this context. Raises `OSError` and geventhttpclient's `HTTPParseError`."""
        connection = self._take()
        reply = None
        try:
            connection.send(request)
            reply = HTTPSocketResponse(connection, BLOCK, "POST")  # type: ignore[arg-type]
            yield reply, connection
        finally:
            if reply is None or reply.should_close() or self._closed:
                connection.close()
            else:
                self._idle.append(connection)

    def _take(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.quiet:
                return connection
            connection.close()
        return Connection(self._host, self._port, self._tls)


@cache
def _trust() -> gevent.ssl.SSLContext:
    return gevent.ssl.create_default_context()
