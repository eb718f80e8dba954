"""The project's own service, started for a run and put away.

It runs in a folder of its own, with the project's serving.yaml: another state, and a model store of
links to the versions of yours. What a scenario imports or moves there changes nothing outside.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gevent
import httpx
import psutil

from loadtests.ports import free_port
from loadtests.service import CannotRun, Service
from serving.runtime.store import ModelStore, bentoml_home
from serving.settings import SettingsError, config_file, load_settings
from serving.settings.places import ROUTING, STATE

PROJECT = Path(__file__).parent.parent
#: Where a service is looked for that somebody may have left running.
USUAL = "http://127.0.0.1:3000"
START_LIMIT = 900.0
STOP_LIMIT = 120.0


class OwnService(Service):
    """The project's own service, on a free port of loopback; all that it writes is in `folder`."""

    def __init__(self, folder: Path, log: Path) -> None:
        super().__init__(f"http://127.0.0.1:{free_port()}")
        self.folder = folder
        self.log = log
        self.started = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        _link_store(bentoml_home(), folder / "bentoml")

    @property
    def environment(self) -> dict[str, str]:
        # What is asked for elsewhere is neither followed nor moved.
        kept = {name: value for name, value in os.environ.items() if name != ROUTING}
        return {
            **kept,
            "BENTOML_HOME": str(self.folder / "bentoml"),
            "BENTOML_DO_NOT_TRACK": "True",
            STATE: str(self.folder / "state"),
        }

    def start(self) -> None:
        """Starts it; `wait_until_ready` waits."""
        port = httpx.URL(self.url).port
        options = ["--host", "127.0.0.1", "--port", str(port), "--timeout-graceful-shutdown", "5"]
        with self.log.open("ab") as log:
            self.started = time.perf_counter()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bentoml", "serve", *options],
                cwd=PROJECT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the load test, which then stops it
            )

    def wait_until_ready(self) -> None:
        """Raises `CannotRun` with the last line of the log when it ends instead."""
        deadline = time.monotonic() + START_LIMIT
        while not self.ready():
            self.check_alive()
            if time.monotonic() > deadline:
                raise CannotRun(f"The service was not ready within {START_LIMIT:g} s: {self.log}.")
            gevent.sleep(0.1)

    def check_alive(self) -> None:
        if self._process is not None and self._process.poll() is not None:
            told = [line for line in self.log.read_text("utf-8", "replace").splitlines() if line]
            raise CannotRun(
                f"The service did not start: {told[-1] if told else 'it said nothing'} "
                f"(its log: {self.log})"
            )

    def stop(self) -> None:
        """Stops it, however it is, with all that it started."""
        process = self._process
        if process is None:
            return
        left = _family(process.pid)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for child in left:
            if child.is_running():
                child.kill()
        self._process = None

    def process(self) -> psutil.Process | None:
        return psutil.Process(self._process.pid) if self._process else None

    def numbers(self, model: str) -> list[int]:
        """The model's versions in this store, in order."""
        return ModelStore(self.folder / "bentoml").numbers(model)

    def import_again(self, model: str, version: int) -> None:
        """The same weights as another version of the model, in this store only."""
        source = self.folder / "bentoml" / "models" / model / str(version)
        done = subprocess.run(
            [sys.executable, "-m", "serving.cli", "models", "import", model, str(source)],
            cwd=PROJECT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise CannotRun(f"A second version of {model} could not be made: {done.stderr.strip()}")


@contextmanager
def under_test(url: str | None, log: Path) -> Iterator[Service]:
    """The service at `url`, or one's own for as long as the context lasts. Raises `CannotRun`."""
    if url is not None:
        yield Service(url)
        return
    _check_nobody_serves()
    with tempfile.TemporaryDirectory(prefix="loadtest-") as folder:
        own = OwnService(Path(folder), log)
        try:
            own.start()
            yield own
        finally:
            own.stop()


def project_model() -> str:
    """The first model that this project's serving.yaml names."""
    try:
        return next(iter(load_settings(config_file(PROJECT), surroundings=False).models))
    except SettingsError as error:
        raise CannotRun(str(error)) from None


def context_length(model: str) -> int | None:
    """The window in tokens of the project's model; None of a model that it has not."""
    try:
        settings = load_settings(config_file(PROJECT), surroundings=False)
    except SettingsError:
        return None
    return settings.engine.max_model_len if model in settings.models else None


def _check_nobody_serves() -> None:
    """Two services on one machine share its memory, its GPUs and the figures of this run."""
    try:
        httpx.get(f"{USUAL}/livez", timeout=1)
    except httpx.HTTPError:
        return
    raise CannotRun(
        f"Something serves at {USUAL} already: stop it, so that a service can be started for this "
        f"run alone, or load that one with --url {USUAL}."
    )


def _link_store(source: Path, target: Path) -> None:
    """The same versions without a copy of their weights, unless the disk is another."""
    (target / "models").mkdir(parents=True)
    models = source / "models"
    if not models.is_dir():
        return
    for model in models.iterdir():
        if model.is_dir() and not model.name.startswith("."):
            shutil.copytree(model, target / "models" / model.name, copy_function=_link)


def _link(source: str, target: str) -> None:
    # The store's own records are written anew, in place, by whoever owns the store.
    if Path(source).suffix in {".yaml", ""}:
        shutil.copy2(source, target)
        return
    try:
        os.link(source, target)
    except OSError:
        os.symlink(Path(source).resolve(), target)


def _family(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
