"""A service that runs from a Bento: where it writes, and how it finds the models that are in it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from serving.runtime.from_bento import settle
from serving.runtime.store import ModelStore


@pytest.fixture(autouse=True)
def no_state_named(monkeypatch: pytest.MonkeyPatch) -> None:
    # Set first, so that what `settle` sets is taken back.
    monkeypatch.setenv("SERVING_STATE", "")
    monkeypatch.delenv("SERVING_STATE")


@pytest.fixture
def source(tmp_path: Path, model_folder: Path) -> Path:
    """Where service.py lies in an image whose Bento has `chat:2`."""
    other = ModelStore(tmp_path / "other")
    for _ in range(2):
        other.add("chat", model_folder, "here")
    bento = tmp_path / "bento"
    (bento / "src").mkdir(parents=True)
    (bento / "bento.yaml").touch()
    shutil.copytree(other.home / "models/chat/2", bento / "models/chat/2")
    return bento / "src"


def test_the_projects_own_folder_is_no_bento(store_home: Path, tmp_path: Path) -> None:
    settle(tmp_path)
    assert "SERVING_STATE" not in os.environ
    assert list(store_home.iterdir()) == []


def test_the_bentos_versions_are_in_the_store_and_whole(store_home: Path, source: Path) -> None:
    settle(source)
    settle(source)  # as the parent and the worker both do
    store = ModelStore()
    [version] = store.versions("chat")
    assert version.tag == "chat:2"
    store.verify(version)
    assert version.path.resolve() == source.parent / "models/chat/2"


def test_the_next_import_gets_the_next_number(
    store_home: Path, source: Path, model_folder: Path
) -> None:
    settle(source)
    assert ModelStore().add("chat", model_folder, "here").tag == "chat:3"


def test_a_version_that_the_store_has_stays(
    store_home: Path, source: Path, model_folder: Path
) -> None:
    store = ModelStore()
    for _ in range(2):
        store.add("chat", model_folder, "mine")
    settle(source)
    assert [(v.number, v.source) for v in store.versions("chat")] == [(1, "mine"), (2, "mine")]


def test_links_to_what_an_earlier_image_had_are_gone(store_home: Path, source: Path) -> None:
    settle(source)
    (source.parent / "models/chat/2").rename(source.parent / "models/chat/5")
    settle(source)
    assert ModelStore().numbers("chat") == [5]


def test_state_goes_below_bentoml_home_unless_somebody_said_where(
    store_home: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(source)
    assert os.environ["SERVING_STATE"] == str(store_home / "serving/state")
    monkeypatch.setenv("SERVING_STATE", "/var/lib/serving/state")
    settle(source)
    assert os.environ["SERVING_STATE"] == "/var/lib/serving/state"


def test_a_store_that_cannot_be_written_is_left_as_it_is(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "file"))  # nothing can be made below it
    settle(source)
    assert (tmp_path / "file").is_file()
