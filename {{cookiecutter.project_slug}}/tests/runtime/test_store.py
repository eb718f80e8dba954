"""The model store keeps whole, numbered versions, whoever else works on it and however they end."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import bentoml
import pytest

from serving.runtime import store as store_module
from serving.runtime.checks import ModelRefused
from serving.runtime.store import ModelStore, StoreError

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def store(store_home: Path) -> ModelStore:
    return ModelStore(store_home)


def tags(store: ModelStore) -> list[str]:
    return [version.tag for version in store.versions()]


def python(code: str, *args: object) -> subprocess.Popen[str]:
    """A process of its own that runs `code` against the same store."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=PROJECT,
    )


def bentoml_cli(*args: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "bentoml", *args], capture_output=True, text=True, check=True
    )
    return done.stdout


def test_versions_are_numbered_from_one_in_the_order_of_import(
    store: ModelStore, model_folder: Path
) -> None:
    imported = [store.add("chat", model_folder, f"source {i}") for i in range(3)]
    assert [version.number for version in imported] == [1, 2, 3]
    assert store.latest("chat").source == "source 2"
    assert imported[0].created <= imported[2].created


def test_a_staged_download_is_moved_into_the_store_not_copied(
    store: ModelStore, model_folder: Path
) -> None:
    with store.staging() as staging:
        download = Path(shutil.copytree(model_folder, staging / "hub"))
        inode = (download / "model.safetensors").stat().st_ino
        version = store.add("chat", download, "hub", consume=True)
    assert (version.path / "model.safetensors").stat().st_ino == inode
    store.verify(version, trust_cache=False)


def test_an_import_holds_every_file_with_its_size_and_hash(
    store: ModelStore, model_folder: Path
) -> None:
    version = store.add("chat", model_folder, "here")
    assert {file.path for file in version.files} == {path.name for path in model_folder.iterdir()}
    for file in version.files:
        assert (version.path / file.path).read_bytes() == (model_folder / file.path).read_bytes()
    store.verify(version, trust_cache=False)
    assert version.size == sum(path.stat().st_size for path in model_folder.iterdir())


def test_progress_adds_up_to_the_size(store: ModelStore, model_folder: Path) -> None:
    done: list[int] = []
    version = store.add("chat", model_folder, "here", advance=done.append)
    assert sum(done) == version.size


def test_the_source_may_vanish_after_the_import(store: ModelStore, model_folder: Path) -> None:
    version = store.add("chat", model_folder, "here")
    shutil.rmtree(model_folder)
    store.verify(version, trust_cache=False)


def test_the_number_of_a_deleted_version_is_never_given_again(
    store: ModelStore, model_folder: Path
) -> None:
    store.add("chat", model_folder, "a")
    second = store.add("chat", model_folder, "b")
    store.delete(second)
    assert store.add("chat", model_folder, "c").tag == "chat:3"
    for version in store.versions():
        store.delete(version)
    assert store.versions() == []
    assert ModelStore(store.home).add("chat", model_folder, "d").tag == "chat:4"


def test_look_ups_are_exact_where_bentomls_own_match_prefixes(
    store: ModelStore, model_folder: Path
) -> None:
    for _ in range(10):
        version = store.add("chat", model_folder, "here")
    for other in store.versions()[:-1]:
        store.delete(other)
    assert version.tag == "chat:10"
    with pytest.raises(StoreError, match="chat:1 is not in the model store"):
        store.get("chat", 1)
    with pytest.raises(StoreError, match="'cha' has no version"):
        store.latest("cha")
    assert store.get("chat", 10).tag == "chat:10"


def test_the_latest_is_the_highest_number_and_not_the_last_in_the_alphabet(
    store: ModelStore, model_folder: Path
) -> None:
    for _ in range(10):
        store.add("chat", model_folder, "here")
    assert store.latest("chat").number == 10


def test_names_do_not_mix(store: ModelStore, model_folder: Path) -> None:
    for name in ("chat", "chat-1", "chat.2", "a"):
        store.add(name, model_folder, "here")
    assert tags(store) == ["a:1", "chat:1", "chat-1:1", "chat.2:1"]
    with store.in_use(store.get("chat-1", 1)):
        store.delete(store.get("chat", 1))
    assert tags(store) == ["a:1", "chat-1:1", "chat.2:1"]


@pytest.mark.parametrize(
    "name", ["Chat", "my chat", "../x", "", ".", "chat:1", "a/b", "é", "x" * 64]
)
def test_a_name_that_cannot_be_served_is_refused_and_leaves_nothing(
    store: ModelStore, model_folder: Path, name: str
) -> None:
    with pytest.raises(StoreError, match="cannot name a model"):
        store.add(name, model_folder, "here")
    assert not [path for path in store.home.rglob("*") if path.is_file()]


def test_bentomls_own_tools_see_our_versions(store: ModelStore, model_folder: Path) -> None:
    store.add("chat", model_folder, "here")
    version = store.add("chat", model_folder, "here")
    assert "chat:2" in bentoml_cli("models", "list")
    found = bentoml_cli("models", "get", "chat:latest", "-o", "path")
    assert found.replace("\n", "") == str(version.path)  # the terminal's width wraps it


def test_entries_that_others_made_are_left_alone(store: ModelStore, model_folder: Path) -> None:
    others = ("chat:7", "chat:abc", "other:1")
    code = "import sys, bentoml\nfor t in sys.argv[1:]:\n  with bentoml.models.create(t): pass"
    assert python(code, *others).wait(60) == 0
    assert store.versions() == []
    with pytest.raises(StoreError, match="not imported by"):
        store.get("chat", 7)
    version = store.add("chat", model_folder, "here")
    assert version.tag == "chat:8"
    store.delete(version)
    listed = bentoml_cli("models", "list")
    assert all(tag in listed for tag in others)
    assert bentoml_cli("models", "get", "chat:latest", "-o", "path").strip()


def test_a_refused_folder_takes_no_number_and_leaves_nothing(
    store: ModelStore, model_folder: Path
) -> None:
    (model_folder / "tokenizer.json").rename(model_folder / "tokens.json")
    with pytest.raises(ModelRefused):
        store.add("chat", model_folder, "here")
    (model_folder / "tokens.json").rename(model_folder / "tokenizer.json")
    assert store.add("chat", model_folder, "here").number == 1


@pytest.mark.parametrize("step", ["copy_and_hash", "replace_file"])
def test_a_full_disk_leaves_no_half_version(
    store: ModelStore, model_folder: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    original = getattr(store_module, step)
    calls: list[Any] = []

    def full(*args: Any) -> Any:
        calls.append(args)
        if step == "copy_and_hash" and len(calls) < 3:
            return original(*args)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(store_module, step, full)
        with pytest.raises(OSError, match="No space left"):
            store.add("chat", model_folder, "here")
    assert calls
    assert store.versions() == []
    assert list((store.home / "serving" / "staging").iterdir()) == []
    store.add("chat", model_folder, "here")
    assert len(tags(store)) == 1


def test_several_processes_that_import_at_once_get_distinct_numbers(
    store: ModelStore, model_folder: Path
) -> None:
    # A pause between reading and writing the counter, so that without a lock two would meet there.
    code = (
        "import sys, time; from pathlib import Path; from serving.runtime import store\n"
        "write = store.replace_file\n"
        "store.replace_file = lambda *args: (time.sleep(0.02), write(*args))\n"
        "for _ in range(6): print(store.ModelStore().add('chat', Path(sys.argv[1]), '').number)"
    )
    processes = [python(code, model_folder) for _ in range(4)]
    numbers: list[int] = []
    for process in processes:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        mine = [int(line) for line in out.split()]
        assert mine == sorted(mine)
        numbers += mine
    assert sorted(numbers) == list(range(1, 25))
    for version in store.versions():
        store.verify(version, trust_cache=False)
    assert len(bentoml.models.list("chat")) == 24


# Imports, and stops for good once `n` bytes were copied, so that a test can kill it there.
STUCK = """
import sys
from pathlib import Path
from serving.runtime import store
def advance(_):
    print("copying", flush=True)
    sys.stdin.read()
if sys.argv[2] == "rename":
    store.ModelStore._describe = staticmethod(lambda *_: advance(0))
store.ModelStore().add("chat", Path(sys.argv[1]), "here",
                       advance=advance if sys.argv[2] == "copy" else lambda _: None)
"""


@pytest.mark.parametrize("step", ["copy", "rename"])
def test_an_import_killed_midway_leaves_no_half_version_and_its_leftovers_are_cleaned(
    store: ModelStore, model_folder: Path, step: str
) -> None:
    first = store.add("chat", model_folder, "here")
    process = python(STUCK, model_folder, step)
    assert process.stdout is not None
    assert process.stdout.readline() == "copying\n"
    staging = store.home / "serving" / "staging"
    assert len(list(staging.iterdir())) == 1
    # While it lives, another import leaves its folder alone.
    if step == "copy":
        store.add("chat", model_folder, "here")
        assert len(list(staging.iterdir())) == 1
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = tags(store)
    assert first.tag in before
    assert bentoml_cli("models", "list").count("chat:") == len(before)
    after = store.add("chat", model_folder, "here")
    assert list(staging.iterdir()) == []
    assert tags(store) == [*before, after.tag]
    for version in store.versions():
        store.verify(version, trust_cache=False)


def test_a_version_in_use_by_another_process_cannot_be_deleted(
    store: ModelStore, model_folder: Path
) -> None:
    version = store.add("chat", model_folder, "here")
    code = (
        "import sys; from serving.runtime.store import ModelStore; s = ModelStore()\n"
        "with s.in_use(s.get('chat', 1)): print('using', flush=True); sys.stdin.read()"
    )
    process = python(code)
    assert process.stdout is not None
    assert process.stdout.readline() == "using\n"
    with pytest.raises(StoreError, match="chat:1 is in use by a running service"):
        store.delete(version)
    store.verify(version, trust_cache=False)
    process.send_signal(signal.SIGKILL)  # the mark dies with its process
    process.communicate()
    store.delete(version)
    assert store.versions() == []


def test_several_services_may_use_one_version(store: ModelStore, model_folder: Path) -> None:
    version = store.add("chat", model_folder, "here")
    with store.in_use(version):
        with store.in_use(version), pytest.raises(StoreError, match="in use"):
            store.delete(version)
        with pytest.raises(StoreError, match="in use"):
            store.delete(version)
    store.delete(version)


@pytest.mark.parametrize("change", ["changed", "missing", "truncated"])
def test_a_file_that_differs_from_its_import_is_named(
    store: ModelStore, model_folder: Path, change: str
) -> None:
    version = store.add("chat", model_folder, "here")
    store.verify(version)
    weights = version.path / "model.safetensors"
    if change == "missing":
        weights.unlink()
    elif change == "truncated":
        os.truncate(weights, 10)
    else:
        weights.write_bytes(bytes(len(weights.read_bytes())))
        os.utime(weights, ns=(1, 1))
    with pytest.raises(ModelRefused, match=r"chat/1/model\.safetensors"):
        store.verify(version)


def test_the_home_is_bentomls_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path))
    assert ModelStore().home == tmp_path
    monkeypatch.delenv("BENTOML_HOME")
    assert ModelStore().home == Path.home() / "bentoml"
