"""Versions travel whole, to a folder or a bucket and into other stores, however often cut off."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import s3_server

from serving.runtime.checks import ModelRefused
from serving.runtime.distribution import find, pull, push
from serving.runtime.manifest import from_json
from serving.runtime.remote import Remote
from serving.runtime.store import ModelStore, StoreError, Version

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def store(store_home: Path, model_folder: Path) -> ModelStore:
    """With `chat:1` to `chat:3`."""
    store = ModelStore(store_home)
    for number in range(3):
        store.add("chat", model_folder, f"source {number}", task="embed")
    return store


@pytest.fixture
def other(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "other")


@pytest.fixture
def folder(tmp_path: Path) -> Remote:
    return Remote(str(tmp_path / "models"))


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[s3_server.Server]:
    with s3_server.server(tmp_path) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


def pulled(store: ModelStore, remote: Remote, tag: str = "chat:3", **options: Any) -> Version:
    pull(store, remote, find(remote, tag), **options)
    return store.find(tag)


def files_of(remote: Remote) -> list[Path]:
    """All that a folder holds, in order."""
    return sorted(path for path in Path(remote.url).rglob("*") if path.is_file())


def sent(remote: Remote, name: str) -> Path:
    """Where a folder has a file of a version."""
    (path,) = Path(remote.url).rglob(name)
    return path


def manifest_of(remote: Remote) -> Any:
    return json.loads(sent(remote, "manifest.json").read_bytes())


def rewrite(remote: Remote, **changes: Any) -> None:
    document = {**manifest_of(remote), **changes}
    sent(remote, "manifest.json").write_text(json.dumps(document), "utf-8")


def python(code: str, *args: object, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=PROJECT,
        env={**os.environ, **environment},
    )


def assert_same(version: Version, other: Version) -> None:
    assert dataclasses.replace(version, path=other.path) == other
    for file in version.files:
        assert (version.path / file.path).read_bytes() == (other.path / file.path).read_bytes()


def test_a_version_keeps_its_number_source_task_files_and_time_in_another_store(
    store: ModelStore, folder: Remote, other: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[int] = []
    assert push(store, folder, store.find("chat:3"), done.append)
    assert sum(done) == store.find("chat:3").size
    version = pulled(other, folder, advance=done.append)
    assert_same(version, store.find("chat:3"))
    assert sum(done) == 2 * version.size
    other.verify(version, trust_cache=False)
    assert not list((other.home / "serving" / "incoming").glob("*/"))
    monkeypatch.setenv("BENTOML_HOME", str(other.home))
    code = "import bentoml; print(*[model.tag for model in bentoml.models.list()])"
    assert python(code).communicate(timeout=60)[0].split() == ["chat:3"]


def test_a_bucket_does_what_a_folder_does(
    store: ModelStore, s3: s3_server.Server, other: ModelStore
) -> None:
    remote = Remote(s3.url)
    assert remote.tags() == []
    assert push(store, remote, store.find("chat:2"))
    assert push(store, remote, store.find("chat:3"))
    assert not push(store, remote, store.find("chat:3"))
    assert s3.asked("PUT", "chat/3/manifest.json") == 1
    assert remote.tags() == ["chat:2", "chat:3"]
    assert_same(pulled(other, remote), store.find("chat:3"))
    with pytest.raises(StoreError, match="s3://a-bucket/prefix has no chat:1; push it there first"):
        find(remote, "chat:1")


def test_the_next_import_after_a_pull_takes_the_next_number(
    store: ModelStore, folder: Remote, other: ModelStore, model_folder: Path
) -> None:
    push(store, folder, store.find("chat:1"))
    push(store, folder, store.find("chat:3"))
    pulled(other, folder, "chat:3")
    pulled(other, folder, "chat:1")
    assert (other.home / "models" / "chat" / "latest").read_text("utf-8") == "3"
    other.delete(other.find("chat:3"))
    assert other.add("chat", model_folder, "here").number == 4


def test_what_is_there_is_neither_sent_nor_fetched_again(
    store: ModelStore, folder: Remote, other: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = store.find("chat:3")
    push(store, folder, version)
    before = {path: path.stat().st_mtime_ns for path in files_of(folder)}
    assert not push(store, folder, version)
    assert {path: path.stat().st_mtime_ns for path in files_of(folder)} == before
    pulled(other, folder)
    monkeypatch.setattr(Remote, "read", None)
    assert not pull(other, folder, find(folder, "chat:3"))


# Stops for good after `n` calls of a method, so that a test can kill it there.
STUCK = """
import sys, threading
from serving.runtime import distribution, remote, store
distribution.AT_ONCE = 1
method, calls = getattr(remote.Remote, sys.argv[2]), []
def counted(*args):
    calls.append(args)
    if len(calls) > int(sys.argv[3]):
        print("stuck", flush=True)
        sys.stdin.read()
    return method(*args)
setattr(remote.Remote, sys.argv[2], counted)
here, there = store.ModelStore(), remote.Remote(sys.argv[1])
if sys.argv[2] == "read":
    distribution.PART = 512
    distribution.pull(here, there, distribution.find(there, "chat:3"))
else:
    distribution.push(here, there, here.find("chat:3"))
"""


def kill_when_stuck(home: Path, *args: object) -> None:
    process = python(STUCK, *args, BENTOML_HOME=str(home))
    assert process.stdout is not None
    assert process.stdout.readline() == "stuck\n"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)


def test_a_push_that_is_killed_makes_no_version_and_goes_on_where_it_stopped(
    store: ModelStore, folder: Remote, other: ModelStore
) -> None:
    kill_when_stuck(store.home, folder.url, "sending", 2)
    with pytest.raises(StoreError, match="has no chat:3"):
        find(folder, "chat:3")
    before = [path for path in files_of(folder) if not path.name.startswith(".")]
    assert len(before) == 2
    times = [path.stat().st_mtime_ns for path in before]
    assert push(store, folder, store.find("chat:3"))
    assert [path.stat().st_mtime_ns for path in before] == times
    assert_same(pulled(other, folder), store.find("chat:3"))


def test_a_push_to_a_bucket_goes_on_where_it_was_killed(
    store: ModelStore, s3: s3_server.Server, other: ModelStore
) -> None:
    kill_when_stuck(store.home, s3.url, "sending", 2)
    before = s3.names()
    assert len(before) == 2
    remote = Remote(s3.url)
    assert push(store, remote, store.find("chat:3"))
    for name in before:
        assert s3.asked("POST", f"{name}?uploads") == 1
    assert_same(pulled(other, remote), store.find("chat:3"))


def test_a_pull_that_is_killed_leaves_the_store_whole_and_goes_on_where_it_stopped(
    store: ModelStore, folder: Remote, other: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(store, folder, store.find("chat:3"))
    kill_when_stuck(other.home, folder.url, "read", 3)
    assert other.versions() == []
    fetched = 0
    read = Remote.read

    def counted(remote: Remote, version: Version, path: str, start: int, end: int) -> bytes:
        nonlocal fetched
        fetched += end - start
        return read(remote, version, path, start, end)

    monkeypatch.setattr(Remote, "read", counted)
    version = pulled(other, folder)
    assert_same(version, store.find("chat:3"))
    assert 0 < version.size - fetched <= 3 * 512


def test_what_a_pull_gathered_is_forgotten_after_a_week(
    store: ModelStore, folder: Remote, other: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(store, folder, store.find("chat:3"))
    kill_when_stuck(other.home, folder.url, "read", 3)
    incoming = other.home / "serving" / "incoming"
    with other.incoming("another"):
        assert len(list(incoming.glob("chat-3-*/"))) == 1
    for path in incoming.rglob("*"):
        os.utime(path, (0, 0))
    with other.incoming("another"):
        assert list(incoming.glob("chat-3-*/")) == []


def test_of_ten_pulls_at_once_into_one_store_one_fetches_and_all_find_the_version(
    store: ModelStore, s3: s3_server.Server, other: ModelStore
) -> None:
    remote = Remote(s3.url)
    push(store, remote, store.find("chat:3"))
    code = (
        "import sys; from serving.runtime import distribution as d, remote, store\n"
        "there = remote.Remote(sys.argv[1]); found = d.find(there, 'chat:3')\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "print(d.pull(store.ModelStore(), there, found))"
    )
    pulls = [python(code, s3.url, BENTOML_HOME=str(other.home)) for _ in range(10)]
    for process in pulls:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in pulls:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    said = []
    for process in pulls:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        said.append(out.strip())
    assert sorted(said) == ["False"] * 9 + ["True"]
    version = other.find("chat:3")
    assert_same(version, store.find("chat:3"))
    assert s3.asked("GET", f"chat/3/{version.content[:16]}/model.safetensors") == 1


def test_a_version_of_another_content_is_refused_under_a_tag_that_is_taken(
    store: ModelStore, folder: Remote, other: ModelStore, model_folder: Path
) -> None:
    push(store, folder, store.find("chat:1"))
    (model_folder / "chat_template.jinja").write_text("another", "utf-8")
    mine = other.add("chat", model_folder, "another source")
    before = files_of(folder)
    with pytest.raises(StoreError, match=r"has another chat:1 \(of 20.*, from source 0\)"):
        push(other, folder, mine)
    assert files_of(folder) == before
    with pytest.raises(StoreError, match="the model store has another chat:1"):
        pull(other, folder, find(folder, "chat:1"))
    assert other.find("chat:1").source == "another source"


def test_a_push_that_another_one_overtook_is_refused_and_spoils_nothing(
    store: ModelStore,
    s3: s3_server.Server,
    other: ModelStore,
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    (model_folder / "chat_template.jinja").write_text("another", "utf-8")
    mine = other.add("chat", model_folder, "another source", task="embed")
    publish = Remote.publish

    def overtaken(remote: Remote, version: Version) -> bool:
        monkeypatch.setattr(Remote, "publish", publish)
        push(store, remote, store.find("chat:1"))
        return publish(remote, version)

    monkeypatch.setattr(Remote, "publish", overtaken)
    with pytest.raises(StoreError, match="has another chat:1"):
        push(other, Remote(s3.url), mine)
    third = ModelStore(tmp_path / "third")
    assert_same(pulled(third, Remote(s3.url), "chat:1"), store.find("chat:1"))


def test_the_same_model_imported_in_two_stores_is_one_version(
    store: ModelStore, folder: Remote, other: ModelStore, model_folder: Path
) -> None:
    push(store, folder, store.find("chat:1"))
    mine = other.add("chat", model_folder, "elsewhere", task="embed")
    assert not push(other, folder, mine)
    assert not pull(other, folder, find(folder, "chat:1"))


def test_an_entry_that_others_made_is_left_alone(
    store: ModelStore, folder: Remote, other: ModelStore
) -> None:
    push(store, folder, store.find("chat:3"))
    entry = other.home / "models" / "chat" / "3"
    entry.mkdir(parents=True)
    with pytest.raises(StoreError, match="chat:3 is not in the model store"):
        pull(other, folder, find(folder, "chat:3"))
    assert list(entry.iterdir()) == []


@pytest.mark.parametrize("change", ["changed", "longer", "truncated", "missing"])
def test_a_file_there_that_does_not_fit_its_hash_makes_no_version(
    store: ModelStore, folder: Remote, other: ModelStore, change: str
) -> None:
    push(store, folder, store.find("chat:3"))
    weights = sent(folder, "model.safetensors")
    whole = weights.read_bytes()
    if change == "missing":
        weights.unlink()
    else:
        changes = {"changed": bytes(len(whole)), "longer": b"x" + whole, "truncated": whole[:-1]}
        weights.write_bytes(changes[change])
    with pytest.raises(StoreError, match=r"model\.safetensors of chat:3") as refused:
        pulled(other, folder)
    assert "push chat:3 again" in str(refused.value)
    assert other.versions() == []
    if change == "changed":
        weights.unlink()
    push(store, folder, store.find("chat:3"))
    assert_same(pulled(other, folder), store.find("chat:3"))


def test_a_file_that_was_changed_here_is_not_sent(store: ModelStore, folder: Remote) -> None:
    version = store.find("chat:3")
    (version.path / "config.json").write_text("{}", "utf-8")
    with pytest.raises(ModelRefused, match=r"config\.json was changed after its import"):
        push(store, folder, version)
    names = {path.name for path in files_of(folder)}
    assert "config.json" not in names
    assert not [name for name in names if name.endswith(".part")]
    assert folder.tags() == []


@pytest.mark.parametrize(
    "path",
    [
        "../../../evil.json",
        "/etc/evil.json",
        "a/../../evil.json",
        "./evil.json",
        "a//evil.json",
        "..\\evil.json",
        ".owner",
        ".hidden/evil.json",
        "model.yaml",
        "evil.py",
        "evil\n.json",
        "evil\0.json",
        "",
        "config.json",
        "config.json/evil.json",
    ],
)
def test_a_manifest_cannot_write_outside_its_version_or_bring_code(
    store: ModelStore, folder: Remote, other: ModelStore, path: str
) -> None:
    push(store, folder, store.find("chat:3"))
    document = manifest_of(folder)
    rewrite(folder, files=[*document["files"], {**document["files"][0], "path": path}])
    with pytest.raises(ModelRefused, match="chat:3 names"):
        pulled(other, folder)
    assert not other.home.exists()


def test_pickled_weights_are_pulled_only_when_they_are_trusted(
    store: ModelStore, folder: Remote, other: ModelStore, model_folder: Path
) -> None:
    (model_folder / "model.safetensors").rename(model_folder / "pytorch_model.bin")
    push(store, folder, store.add("chat", model_folder, "pickled", allow_pickle=True))
    with pytest.raises(ModelRefused, match=r"pytorch_model\.bin, a pickle, which can run code"):
        pulled(other, folder, "chat:4")
    assert_same(pulled(other, folder, "chat:4", allow_pickle=True), store.find("chat:4"))


@pytest.mark.parametrize(
    "changes",
    [
        {"files": []},
        {"files": [{"path": "config.json", "size": -1, "sha256": "0" * 64}]},
        {"files": [{"path": "config.json", "size": 1, "sha256": "x"}]},
        {"files": {"a": 1}},
        {"task": "run"},
        {"number": True},
        {"number": 0},
        {"format": "new"},
        {"created": "yesterday"},
        {"source": None},
    ],
)
def test_a_manifest_that_makes_no_sense_is_one_sentence(
    store: ModelStore, folder: Remote, other: ModelStore, changes: dict[str, Any]
) -> None:
    push(store, folder, store.find("chat:3"))
    rewrite(folder, **changes)
    with pytest.raises(StoreError, match="is no whole manifest of a version"):
        pulled(other, folder)


def test_a_manifest_of_another_release_or_another_version_says_so(
    store: ModelStore, folder: Remote, other: ModelStore
) -> None:
    push(store, folder, store.find("chat:3"))
    rewrite(folder, number=4)
    with pytest.raises(StoreError, match="is the manifest of chat:4"):
        pulled(other, folder)
    rewrite(folder, format=2)
    with pytest.raises(StoreError, match="was written by another release"):
        pulled(other, folder)
    with pytest.raises(StoreError, match="is no whole manifest"):
        from_json(b"[" * 100_000, "it", Path())


def test_a_store_without_space_is_told_before_a_byte_is_fetched(
    store: ModelStore, folder: Remote, other: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(store, folder, store.find("chat:3"))
    usage = shutil.disk_usage(store.home)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=5))
    monkeypatch.setattr(Remote, "read", None)
    with pytest.raises(StoreError, match=r"has 5 bytes free and .* are wanted; free some space"):
        pulled(other, folder)


def test_a_store_that_gets_full_meanwhile_keeps_what_it_has_for_the_next_pull(
    store: ModelStore, folder: Remote, other: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(store, folder, store.find("chat:3"))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match=r"disk of the model store .* is full; free some"):
            pulled(other, folder)
    assert other.versions() == []
    assert list((other.home / "serving" / "incoming").glob("chat-3-*/model/*.json"))
    assert_same(pulled(other, folder), store.find("chat:3"))


def test_a_folder_without_space_is_one_sentence_and_keeps_what_is_whole(
    store: ModelStore, folder: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []

    def full(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match="has no space left; free some and run this again"):
            push(store, folder, store.find("chat:3"))
    assert not [path for path in files_of(folder) if path.name.endswith(".part")]
    assert folder.tags() == []
    assert push(store, folder, store.find("chat:3"))


def test_a_bucket_that_is_not_there_is_one_sentence(
    store: ModelStore, s3: s3_server.Server
) -> None:
    with pytest.raises(StoreError, match="s3://nowhere/x: there is no such bucket"):
        push(store, Remote("s3://nowhere/x"), store.find("chat:3"))


def test_credentials_that_are_missing_or_wrong_are_one_sentence(
    store: ModelStore, s3: s3_server.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.require_keys()
    told = "refuses the credentials .*; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    with pytest.raises(StoreError, match=told):
        push(store, Remote(s3.url), store.find("chat:3"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(StoreError, match=told):
        push(store, Remote(s3.url), store.find("chat:3"))


def test_a_server_that_is_gone_is_one_sentence(
    store: ModelStore, s3: s3_server.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(StoreError, match="s3://a-bucket/prefix cannot be reached"):
        push(store, Remote(s3.url), store.find("chat:3"))


def test_a_url_that_cannot_hold_models_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match="is neither a folder nor a URL"):
        Remote("nothing://here")
    with pytest.raises(StoreError, match="holds a password"):
        Remote("ftp://user:secret@host/models")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(StoreError, match=r"install the extra gcs: pip install .*'\.\[gcs\]'"):
        Remote("gs://models")
