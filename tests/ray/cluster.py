"""A Ray cluster of this machine alone, on loopback, with a project's deploy/ray on it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
from served import eventually

START = 60  # seconds, on two busy cores


class Cluster:
    """Ray from the environment `programs`, which `start` starts and `stop` ends, with all it holds.

    `surroundings` are what every node knows: its replicas inherit them.
    """

    process: subprocess.Popen[bytes]

    def __init__(self, programs: Path, surroundings: dict[str, str]) -> None:
        # Ray's sockets are in it, and a socket's path has 107 bytes at most.
        self.folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))
        self.log = self.folder / "ray.log"
        self._programs = programs
        self._head, self._client, self._dashboard, self._agent, self.port = free_ports(5)
        # Ray takes 127.0.0.1 for the machine's address, on which everybody would reach it; not so
        # where it takes itself for a system with no more than one node.
        alone = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
        self._environment = {**os.environ, **alone, **surroundings}

    @property
    def url(self) -> str:
        """Where the proxies answer."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def _api(self) -> str:
        return f"http://127.0.0.1:{self._dashboard}"

    def start(self) -> Cluster:
        command = [
            *(str(self._programs / "ray"), "start", "--head", "--block", "--disable-usage-stats"),
            *("--node-ip-address=127.0.0.1", f"--port={self._head}", f"--temp-dir={self.folder}"),
            *("--dashboard-host=127.0.0.1", f"--dashboard-port={self._dashboard}"),
            *(
                f"--dashboard-agent-listen-port={self._agent}",
                f"--ray-client-server-port={self._client}",
            ),
            *("--num-cpus=8", "--object-store-memory=80000000", "--include-log-monitor=false"),
        ]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self

    def wait_ready(self) -> None:
        """Until its API answers."""
        eventually(self._answers, "Ray's dashboard", START)

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self._api}/api/version", timeout=5).is_success
        return False

    def deploy(self, config: dict[str, Any]) -> None:
        """What `serve deploy` does, without its seconds of imports; returns before the cluster has
        done it."""
        reply = httpx.put(f"{self._api}/api/serve/applications/", json=config, timeout=60)
        assert reply.is_success, reply.text

    def application(self) -> dict[str, Any]:
        """What `serve status` knows of the application, or nothing yet."""
        told = httpx.get(f"{self._api}/api/serve/applications/", timeout=30).json()
        found: dict[str, Any] = next(iter(told["applications"].values()), {})
        return found

    def replicas(self) -> dict[str, dict[str, Any]]:
        """Those that run, by their names."""
        deployments = self.application().get("deployments", {})
        return {
            replica["replica_id"]: replica
            for deployment in deployments.values()
            for replica in deployment["replicas"]
            if replica["state"] == "RUNNING"
        }

    def said(self, pid: int) -> list[dict[str, Any]]:
        """The service's lines about requests, from the replica with that process id."""
        logs = (self.folder / "session_latest/logs").glob(f"worker-*-{pid}.out")
        lines = [line for log in logs for line in log.read_text("utf-8").splitlines()]
        return [json.loads(line) for line in lines if line.startswith('{"request_id"')]

    def settled(self, replicas: int = 2) -> bool:
        """Whether so many run and nothing is under way."""
        application = self.application()
        assert application.get("status") != "DEPLOY_FAILED", application
        return application.get("status") == "RUNNING" and len(self.replicas()) == replicas

    def stop(self) -> None:
        """Ends it hard: no `ray stop`, which would end every Ray on this machine."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        self.process.wait()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        _, left = psutil.wait_procs(family, timeout=10)
        shutil.rmtree(self.folder, ignore_errors=True)
        assert not left


@contextlib.contextmanager
def cluster(programs: Path, surroundings: dict[str, str]) -> Iterator[Cluster]:
    """One that has been started, and is gone at the end."""
    made = Cluster(programs, surroundings)
    try:
        yield made.start()
    finally:
        made.stop()


def free_ports(count: int) -> list[int]:
    """Ports that nobody has, all different."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
