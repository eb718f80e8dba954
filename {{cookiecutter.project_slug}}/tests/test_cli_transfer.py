"""`serving models push|pull|export|import-archive` as processes: what people and scripts see."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from live_service import PROJECT

from serving.runtime.store import ModelStore

Models = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def models() -> Models:
    def models(home: Path, *words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "serving.cli", "models", *map(str, words)],
            cwd=PROJECT,
            env={**os.environ, "BENTOML_HOME": str(home), "COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return models


@pytest.fixture
def home(tmp_path: Path, model_folder: Path) -> Path:
    """A store with `chat:1` and `chat:2`."""
    store = ModelStore(tmp_path / "bentoml")
    for number in range(2):
        store.add("chat", model_folder, f"source {number}")
    return store.home


def said(done: subprocess.CompletedProcess[str]) -> str:
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """One sentence, no traceback."""
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("serving: ")
    assert done.stderr.endswith(".\n")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_a_push_and_a_pull_say_what_they_did(models: Models, home: Path, tmp_path: Path) -> None:
    url, other = tmp_path / "models", tmp_path / "other"
    assert said(models(home, "push", "chat:2", url)).startswith("Pushed chat:2 (")
    assert "chat:2 was there" in said(models(home, "push", "chat:2", f"file://{url}"))
    assert said(models(other, "pull", url)).startswith("Pulled chat:2 (")
    assert said(models(other, "pull", url, "chat:2")) == "chat:2 is there already.\n"
    assert "source 1" in said(models(other, "list"))


def test_a_pull_without_a_version_to_be_had_is_one_sentence(
    models: Models, home: Path, tmp_path: Path
) -> None:
    url = tmp_path / "models"
    assert "holds no version, or is not there" in refused(models(home, "pull", url))
    assert f"{url} has no chat:7" in refused(models(home, "pull", url, "chat:7"))
    assert "write NAME:NUMBER" in refused(models(home, "pull", url, "chat"))
    assert "chat:7 is not in the model store" in refused(models(home, "push", "chat:7", url))


def test_an_archive_is_written_and_read(models: Models, home: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    assert "chat-1.tar" in said(models(home, "export", "chat:1", tmp_path))
    assert "is there already" in refused(models(home, "export", "chat:1", tmp_path))
    file = tmp_path / "chat-1.tar"
    assert said(models(other, "import-archive", file)).startswith("Imported chat:1 (")
    assert said(models(other, "import-archive", file)) == "chat:1 is there already.\n"
    assert "No such file" in refused(models(other, "import-archive", tmp_path / "nowhere.tar"))
