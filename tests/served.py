"""The baked demo served for real: `bentoml serve` with transformers behind it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import yaml


class Served:
    """One running service of `project`, with settings and a model store in `folder`.

    `continuous_batching` is the transformers setting of that name.
    """

    def __init__(self, project: Path, folder: Path, *, continuous_batching: bool = False) -> None:
        self.log = folder / "serve.log"
        self.url = f"http://127.0.0.1:{_free_port()}"
        settings = yaml.safe_load((project / "serving.yaml").read_text("utf-8"))
        settings["engine"]["home"] = str(project / ".engine")
        settings["engine"]["continuous_batching"] = continuous_batching
        settings["service"]["state"] = str(folder / "state")
        (folder / "serving.yaml").write_text(yaml.safe_dump(settings), "utf-8")
        environment = {
            **os.environ,
            "BENTOML_HOME": str(folder / "bentoml"),
            "BENTOML_DO_NOT_TRACK": "True",
            "SERVING_CONFIG": str(folder / "serving.yaml"),
        }
        programs = project / ".venv" / "bin"
        command = [str(programs / "serving"), "models", "import", "chat", "demo"]
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [str(programs / "bentoml"), "serve", "--port", self.url.rsplit(":", 1)[1]],
                cwd=project,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200
        return False

    def wait_ready(self) -> Served:
        eventually(self.ready, "ready", 180)
        return self

    def family(self) -> list[psutil.Process]:
        """All processes below `bentoml serve`."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def engine(self) -> psutil.Process:
        return next(p for p in self.family() if "transformers" in " ".join(p.cmdline()[1:3]))

    def stop(self) -> None:
        left = self.family() if self.process.poll() is None else []
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        finally:
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()


@contextlib.contextmanager
def served(project: Path, folder: Path, *, continuous_batching: bool = False) -> Iterator[Served]:
    """A ready service, stopped at the end. Fails with advice when the project is not installed."""
    for program in (".venv/bin/bentoml", ".engine/bin/transformers"):
        assert shutil.which(project / program), f"{project / program} is missing: run make bake"
    service = Served(project, folder, continuous_batching=continuous_batching)
    try:
        yield service.wait_ready()
    finally:
        service.stop()


def eventually(ask: Callable[[], bool], what: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not ask():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
