"""One container of the image, run by podman without a Docker engine."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
from typing import Any

import httpx

#: A machine that gives containers no network of their own, and no limits of their own, still runs
#: them; the root file system is read-only, as in a careful cluster.
_OPTIONS = [
    "--runtime=runc",
    "--ulimit=nofile=1024:1024",
    "--ulimit=nproc=1024:1024",
    "--network=host",
    "--pull=never",
    "--read-only",
    "--tmpfs=/tmp",
]
# What was mounted while it was built is not there when it runs.
_ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "CONTAINERS_CONF"}


class Container:
    """Runs `image` as it comes, but on a free port of loopback. `begun` is when it was started, by
    `time.monotonic`."""

    def __init__(self, image: str) -> None:
        self.image = image
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.begun = time.monotonic()
        own = [f"--env=PORT={self.port}", "--env=BENTOML_HOST=127.0.0.1"]
        self.id = self._podman("run", "--detach", *_OPTIONS, *own, image).strip()

    def wait_ready(self, seconds: float) -> float:
        """Returns how many seconds it took since the start."""
        while time.monotonic() < self.begun + seconds:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200:
                    return time.monotonic() - self.begun
            assert self.state["Running"], self.log
            time.sleep(0.1)
        raise AssertionError(f"not ready within {seconds:g} s\n{self.log}")

    @property
    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(
            self._podman("inspect", "--format={{json .State}}", self.id)
        )
        return state

    @property
    def log(self) -> str:
        done = self._done("logs", self.id)
        return done.stdout + done.stderr

    @property
    def health(self) -> bool:
        """What the image's own health check says."""
        return self._done("healthcheck", "run", self.id).returncode == 0

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A command inside, as `podman exec` and `docker exec` run it."""
        return self._done("exec", self.id, *command)

    def terminate(self) -> None:
        """SIGTERM to its first process, as every orchestrator sends it."""
        self._podman("kill", "--signal=TERM", self.id)

    def wait(self, seconds: float) -> int:
        """The exit status."""
        command = ["podman", "wait", self.id]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, check=True, env=_ENVIRONMENT
        )
        return int(done.stdout)

    def remove(self) -> None:
        self._podman("rm", "--force", "--volumes", self.id)

    def _podman(self, *words: str) -> str:
        done = self._done(*words)
        assert done.returncode == 0, f"podman {' '.join(words)}\n{done.stderr}"
        return done.stdout

    @staticmethod
    def _done(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["podman", *words], capture_output=True, text=True, check=False, env=_ENVIRONMENT
        )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
