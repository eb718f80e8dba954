"""`serving image` where it cannot be built: one sentence that says what to do. The real thing is
built from the template, `make test-container`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from live_service import PROJECT

pytestmark = [pytest.mark.integration]


def image(tmp_path: Path, *words: str, programs: dict[str, str]) -> str:
    """What it complains of, with only those programs on the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, script in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-m", "serving.cli", "image", "--tag", "chat:1", "--no-models", *words],
        cwd=PROJECT,
        env={**os.environ, "BENTOML_HOME": str(tmp_path / "bentoml"), "PATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr.splitlines()[-1]
    return done.stderr.splitlines()[-1]


def test_no_program_is_told_before_anything_is_built(tmp_path: Path) -> None:
    told = image(tmp_path, programs={})
    assert told.startswith("serving: no program that builds images works here")
    assert not (tmp_path / "bentoml" / "bentos").exists()


@pytest.mark.parametrize(
    ("says", "told"),
    [
        ("dial tcp: lookup registry: no such host", "serving: a registry or package index cannot"),
        ("write /layer: no space left on device", "serving: there is no space left to build"),
    ],
)
def test_what_stops_bentomls_own_build_is_told_in_one_sentence(
    tmp_path: Path, says: str, told: str
) -> None:
    fails = f'case "$1" in build) echo "{says}" >&2; exit 125 ;; esac'
    assert image(tmp_path, "--backend", "podman", programs={"podman": fails}).startswith(told)
