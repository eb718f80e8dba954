"""What a benchmark printed, with what it ran on, in a file that can be read later."""

from __future__ import annotations

import io
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "build/bench"


class _Both(io.StringIO):
    """Kept, and shown at once."""

    def __init__(self, shown: io.TextIOBase) -> None:
        super().__init__()
        self._shown = shown

    def write(self, text: str) -> int:
        self._shown.write(text)
        self._shown.flush()
        return super().write(text)


@contextmanager
def kept(name: str, **versions: str) -> Iterator[None]:
    """What is printed in this context goes to `build/bench/NAME.txt` too, once it is over."""
    both = _Both(sys.stdout)  # type: ignore[arg-type]
    with redirect_stdout(both):
        for what, told in {**facts(), **versions}.items():
            print(f"{what}: {told}")
        yield
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{name}.txt").write_text(both.getvalue(), "utf-8")


def facts() -> dict[str, str]:
    return {
        "date": time.strftime("%Y-%m-%d %H:%M %Z"),
        "machine": machine(),
        "template": commit(),
        "Python": platform.python_version(),
    }


def machine() -> str:
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    return (
        f"{psutil.cpu_count()} cores, {models[0] if models else platform.processor()}; load {load}"
    )


def commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def bentoml(project: Path) -> str:
    """The version in a project's environment."""
    ask = "from importlib.metadata import version; print(version('bentoml'))"
    command = [str(project / ".venv/bin/python"), "-c", ask]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
