"""A baked project served for real: `bentoml serve` with a real engine behind it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml


class Served:
    """One service of `project`, with settings and a model store in `folder`; `start` runs it.

    `engine` is laid over the project's engine section, or is the whole of it when it has a name;
    `models` are what is imported and served, each with the words that follow its name in `serving
    models import`, or none when somebody else has it. `programs` is where `serving` and `bentoml`
    are, when that is not the project's own environment.
    """

    process: subprocess.Popen[bytes]

    def __init__(
        self,
        project: Path,
        folder: Path,
        *,
        engine: Mapping[str, Any] | None = None,
        models: Mapping[str, list[str]] | None = None,
        programs: Path | None = None,
    ) -> None:
        self.log = folder / "serve.log"
        self.state = folder / "state"
        self.config = folder / "serving.yaml"
        self.url = f"http://127.0.0.1:{_free_port()}"
        self._project = project
        self._python = str((programs or project / ".venv" / "bin") / "python")
        self._environment = {
            **os.environ,
            "BENTOML_HOME": str(folder / "bentoml"),
            "BENTOML_DO_NOT_TRACK": "True",
            "SERVING_CONFIG": str(self.config),
        }
        settings = yaml.safe_load((project / "serving.yaml").read_text("utf-8"))
        engine = engine or {}
        own = {**settings["engine"], "home": str(project / ".engine")}
        settings["engine"] = dict(engine) if "name" in engine else {**own, **engine}
        settings["service"]["state"] = str(self.state)
        models = models or {"chat": ["demo"]}
        settings["models"] = {name: settings["models"].get(name, {}) for name in models}
        self.config.write_text(yaml.safe_dump(settings), "utf-8")
        for name, words in models.items():
            if words:
                self.import_model(name, *words)

    def import_model(self, name: str, *words: str) -> None:
        """`serving models import NAME …`."""
        command = [self._python, "-m", "serving.cli", "models", "import", name, *words]
        subprocess.run(
            command,
            cwd=self._project,
            env=self._environment,
            check=True,
            stdout=subprocess.DEVNULL,
        )

    def start(self) -> Served:
        port = self.url.rsplit(":", 1)[1]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [self._python, "-m", "bentoml", "serve", "--port", port],
                cwd=self._project,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self

    def ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200
        return False

    def wait_ready(self, seconds: float = 180) -> Served:
        try:
            eventually(self.ready, "ready", seconds)
        except AssertionError as error:
            logs = "\n".join(file.read_text()[-3000:] for file in self.state.glob("logs/*.log"))
            raise AssertionError(f"{error}\n{self.log.read_text()[-3000:]}\n{logs}") from None
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
def served(
    project: Path, folder: Path, *, engine: Mapping[str, Any] | None = None
) -> Iterator[Served]:
    """A ready service, stopped at the end. Fails with advice when the project is not installed."""
    for program in (".venv/bin/bentoml", ".engine/bin/transformers"):
        assert shutil.which(project / program), f"{project / program} is missing: run make bake"
    service = Served(project, folder, engine=engine).start()
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
