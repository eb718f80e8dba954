"""The `serving` command, run on a service."""

from __future__ import annotations

import os
import subprocess
import sys

from live_service import PROJECT, Service


def command(service: Service, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "serving.cli", *words],
        cwd=PROJECT,
        env={**os.environ, "SERVING_URL": service.url, "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def said(service: Service, *words: str) -> str:
    done = command(service, *words)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    """One sentence, no traceback."""
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("serving: ")
    return done.stderr
