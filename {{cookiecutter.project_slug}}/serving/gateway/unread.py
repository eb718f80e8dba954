"""Clients that do not read their answers: what waits for them is bounded, and so is the time."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import socket
import struct
import termios

from uvicorn.protocols.http.flow_control import FlowControl

from serving.settings import Settings

log = logging.getLogger("bentoml.serving")

#: Bytes the system holds of what no packet has carried yet; more are ours to hold, or the engine's.
#: By itself it would hold some megabytes for each client that does not read.
UNSENT = 128 * 1024


class Unread:
    """Ends a connection whose client takes no byte for `timeouts.write` seconds.

    A byte is taken once the client's system has said so. This looks only while nobody writes: the
    transport's buffer is full, so that the answer's writer waits (`flow`), or the answer is
    complete, which `quiet` is told.
    """

    def __init__(self, transport: asyncio.Transport, flow: FlowControl, settings: Settings) -> None:
        self.quiet = False
        self._transport = transport
        self._flow = flow
        self._settings = settings
        self._time = asyncio.get_running_loop().time
        self._timer: asyncio.TimerHandle | None = None
        self._unsent = 0
        self._since = 0.0
        self._socket = transport.get_extra_info("socket")
        if self._socket.family != socket.AF_UNIX and hasattr(socket, "TCP_NOTSENT_LOWAT"):
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)

    def watch(self) -> None:
        """From now on, while bytes wait."""
        if not self._transport.get_write_buffer_size():
            return
        self._unsent = self._waiting
        self._since = self._time()
        if self._timer is None:
            self._ring_in(self._settings.timeouts.write)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _ring_in(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._look)

    def _look(self) -> None:
        self._timer = None
        buffered, limit = self._transport.get_write_buffer_size(), self._settings.timeouts.write
        if not buffered or not (self._flow.write_paused or self.quiet):
            return
        unsent = self._waiting
        if unsent < self._unsent:
            self._unsent, self._since = unsent, self._time()
        left = self._since + limit - self._time()
        if left > 0.001:  # uvloop's clock ticks in milliseconds
            self._ring_in(left)
            return
        log.info("a client took nothing for %g s: its connection is cut", limit)
        # Without this, the system would go on offering it what it holds.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    @property
    def _waiting(self) -> int:
        """Bytes on their way, here and in the system."""
        queued = 0
        with contextlib.suppress(OSError):  # not every system tells
            (queued,) = struct.unpack("i", fcntl.ioctl(self._socket, termios.TIOCOUTQ, bytes(4)))
        return self._transport.get_write_buffer_size() + queued
