"""The parent of one engine process: started by the gateway, outliving it by milliseconds.

Why a process between the two: BentoML's process manager sends SIGTERM to all children of a worker,
and an engine that got it would cut its streams while the gateway still drains them. The guard
swallows those signals. It holds the reading end of a pipe whose other end lives in the gateway:
however the gateway ends, SIGKILL included, the pipe ends too, and the guard kills the engine's
whole process group. If the guard itself is killed, Linux kills the engine (parent-death signal).

It also writes the engine's output to a rotated log, with the launch key blotted out.

Standard library only: it runs with `python -I -S`. In: one JSON line (the order), then the line
`stop`. Out: JSON lines `{"pid": N}` and `{"exit": CODE, "tail": [LINES]}`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import logging.handlers
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from typing import Any

TAIL_LINES = 30
LINE_BYTES = 64 * 1024
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    # Unbuffered: a `stop` that follows at once must not be swallowed with the order.
    with open(0, "rb", buffering=0, closefd=False) as orders:
        line = orders.readline()
    if not line:  # the gateway thought better of it
        return
    order: dict[str, Any] = json.loads(line)
    try:
        guard = Guard(order)
    except OSError as error:
        report({"exit": 1, "tail": [f"{order['log']} cannot be written: {error.strerror}"]})
    else:
        guard.run()


class Guard:
    """Runs one engine. `order` holds `command`, `log`, `log_bytes`, `secret`, `stop_seconds`, and
    `noise`: lines of output with this text in them are not worth keeping."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.order = order
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.kill_at: float | None = None
        self.rest = b""
        self.log = logging.getLogger("engine")
        self.log.propagate = False
        logging.raiseExceptions = False  # a full disk must not stop the engine
        # Prompts may stand in the log: its files, rotated ones too, are for this user alone.
        self.umask = os.umask(0o077)
        handler = logging.handlers.RotatingFileHandler(
            order["log"], maxBytes=order["log_bytes"], backupCount=3, encoding="utf-8"
        )
        self.log.addHandler(handler)

    def run(self) -> None:
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            # A handler, not SIG_IGN: the engine would inherit that.
            signal.signal(number, lambda *_: None)
        try:
            engine = subprocess.Popen(
                self.order["command"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                umask=self.umask,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - the guard has one thread
            )
        except OSError as error:
            command = self.order["command"][0]
            report({"exit": 127, "tail": [f"{command}: {error.strerror}"]})
            return
        report({"pid": engine.pid})
        self.watch(engine, wake_read)
        self.end_group(engine)
        report({"exit": engine.wait(), "tail": list(self.tail)})

    def watch(self, engine: subprocess.Popen[bytes], wake: int) -> None:
        """Until the engine is gone: its output, the gateway's orders, the end of either."""
        assert engine.stdout is not None
        output = engine.stdout.fileno()
        os.set_blocking(output, False)
        with selectors.DefaultSelector() as selector:
            for source in (output, 0, wake):
                selector.register(source, selectors.EVENT_READ)
            while engine.poll() is None:
                wait = None if self.kill_at is None else max(0.0, self.kill_at - time.monotonic())
                for key, _ in selector.select(wait):
                    data = os.read(key.fd, 65536)
                    if key.fd == output:
                        self.write(data)
                        if not data:
                            selector.unregister(output)
                    elif key.fd == 0:
                        self.obey(data, engine)
                        if not data:
                            selector.unregister(0)
                if self.kill_at is not None and time.monotonic() >= self.kill_at:
                    self.end_group(engine)
        # What it said last explains why it died. Its children may still hold the pipe: no waiting.
        with contextlib.suppress(BlockingIOError):
            while data := os.read(output, 65536):
                self.write(data)
        self.write(b"\n")

    def obey(self, data: bytes, engine: subprocess.Popen[bytes]) -> None:
        if not data:  # the gateway is gone
            self.kill_at = time.monotonic()
        elif b"stop" in data and self.kill_at is None:
            self.kill_at = time.monotonic() + float(self.order["stop_seconds"])
            engine.terminate()

    def end_group(self, engine: subprocess.Popen[bytes]) -> None:
        """Kills what is left of the engine and its own children, who share its process group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(engine.pid, signal.SIGKILL)

    def write(self, data: bytes) -> None:
        # A progress bar ends its lines with \r only, and some programs end them never.
        *lines, rest = (self.rest + data.replace(b"\r", b"\n")).split(b"\n")
        self.rest = rest[-LINE_BYTES:]
        noise = self.order["noise"]
        for line in lines:
            text = line.decode("utf-8", "replace").rstrip("\r")
            if self.order["secret"]:
                text = text.replace(self.order["secret"], "***")
            if text and not (noise and noise in text):
                self.tail.append(text[:2000])
                self.log.warning("%s", text)


def report(message: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(1, json.dumps(message).encode() + b"\n")


def _die_with_parent() -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
