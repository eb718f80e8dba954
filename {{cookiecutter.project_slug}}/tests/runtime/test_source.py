"""Where a model comes from: a folder, the demo, or the hub at one commit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from huggingface_hub import errors

from serving.runtime import source
from serving.runtime.source import fetch
from serving.runtime.store import ModelStore, StoreError

PROJECT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def store(store_home: Path) -> ModelStore:
    return ModelStore(store_home)


class FakeHub:
    """One repository, `org/tiny`, whose `main` is at COMMIT."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: dict[str, Any] = {}
        self.failure: Exception | None = None

    def model_info(self, repository: str, *, revision: str) -> SimpleNamespace:
        self.asked["revision"] = revision
        if self.failure is not None:
            raise self.failure
        return SimpleNamespace(sha=COMMIT)

    def snapshot_download(self, repository: str, **options: Any) -> None:
        self.asked |= {"repository": repository, "downloaded": options["revision"]}
        self.asked["patterns"] = options["allow_patterns"]
        shutil.copytree(self.folder, options["local_dir"])


@pytest.fixture
def hub(model_template: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    hub = FakeHub(model_template)
    monkeypatch.setattr(source, "HfApi", lambda: hub)
    monkeypatch.setattr(source, "snapshot_download", hub.snapshot_download)
    return hub


def refused(origin: str, store: ModelStore, demo: Path = Path("/nowhere")) -> str:
    with pytest.raises(StoreError) as caught, fetch(origin, store, demo, allow_pickle=False):
        pytest.fail("it was fetched")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_is_taken_where_it_lies(
    store: ModelStore, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model_folder.parent)
    with fetch("model", store, Path("/nowhere"), allow_pickle=False) as fetched:
        assert fetched.folder.samefile(model_folder)
        assert fetched.described == str(model_folder)


def test_a_folder_wins_over_a_repository_of_the_same_name(
    store: ModelStore, hub: FakeHub, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model_folder.parent / "org" / "tiny"
    folder.parent.mkdir()
    model_folder.rename(folder)
    monkeypatch.chdir(folder.parents[1])
    with fetch("org/tiny", store, Path("/nowhere"), allow_pickle=False) as fetched:
        assert fetched.described == str(folder)
    assert hub.asked == {}


def test_the_demo_is_described_by_its_name_and_its_absence_is_said(
    store: ModelStore, model_folder: Path
) -> None:
    with fetch("demo", store, model_folder, allow_pickle=False) as fetched:
        assert (fetched.folder, fetched.described) == (model_folder, "demo")
    assert "no demo model" in refused("demo", store, model_folder / "none")


@pytest.mark.parametrize(
    "origin", ["nowhere", "./no/such", "/no/such/folder", "a/b/c", "~nobody-at-all/x", "a b/c"]
)
def test_what_is_neither_folder_nor_repository_is_said_to_be_neither(
    store: ModelStore, origin: str
) -> None:
    assert "neither a folder nor a Hugging Face repository" in refused(origin, store)


def test_a_repository_is_pinned_to_the_commit_it_resolved(store: ModelStore, hub: FakeHub) -> None:
    with fetch("org/tiny", store, Path("/nowhere"), allow_pickle=False) as fetched:
        assert fetched.described == f"hf:org/tiny@{COMMIT}"
        version = store.add("chat", fetched.folder, fetched.described)
    assert (hub.asked["revision"], hub.asked["downloaded"]) == ("main", COMMIT)
    assert store.get("chat", 1).source == f"hf:org/tiny@{COMMIT}"
    assert version.size > 0
    assert not fetched.folder.exists()
    assert list((store.home / "serving" / "staging").iterdir()) == []


def test_a_revision_may_be_named(store: ModelStore, hub: FakeHub) -> None:
    with fetch("org/tiny@refs/pr/1", store, Path("/nowhere"), allow_pickle=False):
        assert hub.asked["revision"] == "refs/pr/1"


def test_pickles_are_downloaded_only_when_they_are_trusted(store: ModelStore, hub: FakeHub) -> None:
    for allow in (False, True):
        with fetch("org/tiny", store, Path("/nowhere"), allow_pickle=allow):
            assert ("*.bin" in hub.asked["patterns"]) is allow
            assert "*.safetensors" in hub.asked["patterns"]
            assert not any(pattern.endswith(".py") for pattern in hub.asked["patterns"])


def reply(status: int) -> Any:
    return httpx.Response(status, request=httpx.Request("GET", "https://hub"))


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (errors.RepositoryNotFoundError("404\nlong story", response=reply(404)), "set HF_TOKEN"),
        (errors.GatedRepoError("403\nlong story", response=reply(403)), "set HF_TOKEN"),
        (
            errors.RevisionNotFoundError("404\nlong story", response=reply(404)),
            "has no revision 'v9'",
        ),
        (errors.HfHubHTTPError("500 at hub\nlong story", response=reply(500)), "500 at hub"),
        (httpx.ConnectError("[Errno 111] Connection refused"), "Connection refused"),
        (OSError(28, "No space left on device"), "No space left"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_failed_download_is_one_sentence_and_leaves_nothing(
    store: ModelStore, hub: FakeHub, failure: Exception, told: str
) -> None:
    hub.failure = failure
    message = refused("org/tiny@v9", store)
    assert told in message
    assert "org/tiny" in message
    assert list((store.home / "serving" / "staging").iterdir()) == []


@pytest.mark.parametrize(
    ("origin", "environment", "told"),
    [
        ("org/tiny", {"HF_HUB_OFFLINE": "1"}, "offline mode is enabled"),
        ("org/na--me", {"HF_HUB_OFFLINE": "1"}, "org/na--me"),
        ("org/tiny", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "Connection refused"),
    ],
)
def test_the_real_hub_clients_own_errors_are_one_sentence_too(
    store_home: Path, origin: str, environment: dict[str, str], told: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "serving.cli", "models", "import", "chat", origin],
        capture_output=True,
        text=True,
        cwd=PROJECT,
        env={**os.environ, **environment},
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("serving: ")
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
