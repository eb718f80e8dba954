"""Load tests run as their user runs them: a process, its exit code, what it printed and left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import scripted_engine
from live_service import PROJECT, Service, eventually, free_port

from loadtests.results import Report, read

KEY = "the-engines-own"


@dataclass(frozen=True)
class Done:
    """A load test that is over."""

    code: int
    out: str
    err: str
    folder: Path

    @property
    def report(self) -> Report:
        return read(self.folder / "report.json")

    @property
    def complaint(self) -> str:
        """One sentence and exit code 2, with no traceback and no report."""
        assert (self.code, self.out.count("Traceback")) == (2, 0), self.out + self.err
        assert self.err.startswith("loadtests: "), self.err
        assert self.err.count("\n") == 1, self.err
        return self.err


def load_test(*words: str, **environment: str) -> Done:
    folder = Path(tempfile.mkdtemp(prefix="loadtest-results-"))
    done = subprocess.run(
        command(folder, *words),
        cwd=PROJECT,
        env=surroundings(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr, folder)


def passed(*words: str, **environment: str) -> Report:
    """The report of a load test that must pass."""
    done = load_test(*words, **environment)
    assert done.code == 0, done.out + done.err
    return done.report


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    """A load test that goes on beside the test."""
    return subprocess.Popen(
        command(folder, *words),
        cwd=PROJECT,
        env=surroundings({}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until_warm(process: subprocess.Popen[str]) -> None:
    """Until its warm-up is over."""
    assert process.stdout is not None
    for line in process.stdout:
        if "warm-up:" in line:
            return


def command(folder: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "loadtests", *words, "--out", str(folder)]


def surroundings(more: Mapping[str, str]) -> dict[str, str]:
    """Without what the person who runs the tests has set for services of their own."""
    own = ("SERVING_KEY", "ENGINE_KEY", "SERVING_URL")
    kept = {name: value for name, value in os.environ.items() if name not in own}
    return {**kept, "COLUMNS": "200", **more}


def own_service(service: Service) -> dict[str, str]:
    """The surroundings in which a load test starts a service like this one (not started)."""
    return {"SERVING_CONFIG": str(service.config), "BENTOML_HOME": str(service.home)}


@contextmanager
def bare_engine(folder: Path, model: Path, dialect: str = "vllm", **default: Any) -> Iterator[str]:
    """The URL of a scripted engine that wants KEY where its dialect has keys; `default` is how it
    answers, a `Script`."""
    scripted_engine.behave(folder / "engine", default=default)
    port = free_port()
    words = [sys.executable, scripted_engine.__file__, "--dialect", dialect, "serve", str(model)]
    if dialect == "vllm":
        words += ["--served-model-name", "chat"]
    options = ["--host", "127.0.0.1", "--port", str(port)]
    behaviour = str(folder / "behaviour.json")
    process = subprocess.Popen(
        [*words, *options],
        env={**os.environ, "VLLM_API_KEY": KEY, "SCRIPTED_BEHAVIOUR": behaviour},
        stdout=subprocess.DEVNULL,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        eventually(lambda: _answers(port), "the engine listens")
        yield url
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def _answers(port: int) -> bool:
    import httpx

    return httpx.get(f"http://127.0.0.1:{port}/health", timeout=1).status_code == 200
