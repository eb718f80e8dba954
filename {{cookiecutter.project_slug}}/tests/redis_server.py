"""A Redis server for the tests: Debian's program, on loopback, with a folder of its own. It keeps
nothing on the disk."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
from debian import lacking, running
from live_service import eventually, free_port

MISSING = "Redis is not installed: apt-get install redis-server, or run `make test` as root"
PASSWORD = "a-password-of-the-tests"


class Server:
    """Ours to stop and to start again; `url` holds its password."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"redis://:{PASSWORD}@127.0.0.1:{self.port}/0"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program = shutil.which("redis-server")
        assert program is not None
        options = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "dir": str(self._folder),
            "requirepass": PASSWORD,
            "appendonly": "no",
            "save": "",
        }
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen([program, *words], stdout=log, stderr=log)
        eventually(self._answers, "Redis answers")

    def stop(self) -> None:
        """At once, as when its machine loses its power."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(20)
            self._process = None

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """It answers nobody, and closes no connection."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    @contextmanager
    def client(self) -> Iterator[Any]:
        """To look into it. Its type knows not whether it is asynchronous."""
        client = redis.Redis.from_url(self.url, decode_responses=True)
        try:
            yield client
        finally:
            client.close()

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False


@contextmanager
def server() -> Iterator[Server]:
    """Skips the test where there is none, but never in continuous integration."""
    if shutil.which("redis-server") is None:
        lacking(MISSING)
    with running(Server, "redis") as server:
        yield server
