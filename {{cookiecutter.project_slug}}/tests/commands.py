"""The `serving` command, run on a service."""

from __future__ import annotations

import os
import subprocess
import sys

from live_service import PROJECT, Service, eventually


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


def new_key(service: Service, *options: str) -> str:
    """A key of ann's, once the service knows it; SERVING_CONFIG must name the service's file."""
    done = command(service, "keys", "create", "ann", *options)
    assert done.returncode == 0, done.stderr
    key = done.stdout.strip()
    headers = {"authorization": f"Bearer {key}"}
    eventually(
        lambda: service.http.get("/v1/models", headers=headers).status_code == 200, "it is known"
    )
    return key


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    """One sentence, no traceback."""
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("serving: ")
    return done.stderr
