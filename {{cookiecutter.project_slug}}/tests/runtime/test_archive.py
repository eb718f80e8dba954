"""A version as one file: whole or refused, and never a way to write anywhere else."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import os
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from serving.runtime.archive import archive_file, export, import_archive
from serving.runtime.checks import ModelRefused
from serving.runtime.store import ModelStore, StoreError

Members = list[tuple[tarfile.TarInfo, bytes]]


@pytest.fixture
def store(store_home: Path, model_folder: Path) -> ModelStore:
    """With `chat:1` and `chat:2`."""
    store = ModelStore(store_home)
    for number in range(2):
        store.add("chat", model_folder, f"source {number}", task="embed")
    return store


@pytest.fixture
def other(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "other")


@pytest.fixture
def exported(store: ModelStore, tmp_path: Path) -> Path:
    target = archive_file(store.find("chat:2"), tmp_path)
    export(store, store.find("chat:2"), target)
    return target


def rewrite(file: Path, change: Callable[[Members], None]) -> None:
    """What somebody who means harm could write."""
    with tarfile.open(file) as tar:
        members = [(m, read.read() if (read := tar.extractfile(m)) else b"") for m in tar]
    change(members)
    with tarfile.open(file, "w") as tar:
        for member, content in members:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def everything(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if not path.name.endswith(".lock")}


def test_an_archive_makes_the_same_version_in_another_store(
    store: ModelStore, exported: Path, other: ModelStore
) -> None:
    assert exported.name == "chat-2.tar"
    done: list[int] = []
    version, new = import_archive(other, exported, advance=done.append)
    before = store.find("chat:2")
    assert new
    assert dataclasses.replace(version, path=before.path) == before
    assert sum(done) == version.size
    other.verify(version, trust_cache=False)
    assert import_archive(other, exported) == (version, False)


def test_an_archive_is_the_same_bytes_each_time_and_tar_reads_it(
    store: ModelStore, exported: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again.tar"
    export(store, store.find("chat:2"), again)
    assert again.read_bytes() == exported.read_bytes()
    with tarfile.open(again) as tar:
        names = [file.path for file in store.find("chat:2").files]
        assert tar.getnames() == ["manifest.json", *names]


def test_a_tag_that_is_another_contents_is_refused(
    exported: Path, other: ModelStore, model_folder: Path
) -> None:
    for _ in range(2):
        other.add("chat", model_folder, "here", task="generate")
    with pytest.raises(StoreError, match="the model store has another chat:2"):
        import_archive(other, exported)


def escape(name: str) -> Callable[[Members], None]:
    def change(members: Members) -> None:
        members.insert(1, (tarfile.TarInfo(name), b"{}"))

    return change


def renamed(name: str) -> Callable[[Members], None]:
    """The manifest names it too."""

    def change(members: Members) -> None:
        manifest = json.loads(members[0][1])
        manifest["files"][0]["path"] = name
        members[0] = members[0][0], json.dumps(manifest).encode()
        members[1][0].name = name

    return change


def link(kind: bytes, target: str) -> Callable[[Members], None]:
    def change(members: Members) -> None:
        member = tarfile.TarInfo(members[1][0].name)
        member.type = kind
        member.linkname = target
        members[1] = member, b""

    return change


def appended(members: Members) -> None:
    members.append((tarfile.TarInfo("../evil.json"), b"{}"))


@pytest.mark.parametrize(
    "change",
    [
        escape("../evil.json"),
        escape("/tmp/evil.json"),
        escape("evil.json"),
        renamed("../evil.json"),
        renamed("/tmp/evil.json"),
        renamed("model.yaml"),
        link(tarfile.SYMTYPE, "/etc/passwd"),
        link(tarfile.SYMTYPE, ".."),
        link(tarfile.LNKTYPE, "/etc/passwd"),
        link(tarfile.FIFOTYPE, ""),
        link(tarfile.CHRTYPE, ""),
        link(tarfile.DIRTYPE, ""),
        appended,
    ],
)
def test_an_archive_that_would_write_elsewhere_is_refused_and_leaves_nothing(
    exported: Path, other: ModelStore, change: Callable[[Members], None], tmp_path: Path
) -> None:
    rewrite(exported, change)
    before = everything(tmp_path)
    with pytest.raises(ModelRefused, match=r"chat-2\.tar holds|chat:2 names the file"):
        import_archive(other, exported)
    own = {other.home, other.home / "serving", other.home / "serving" / "staging"}
    assert everything(tmp_path) - before <= own
    assert other.versions() == []
    assert not Path("/tmp/evil.json").exists()


@pytest.mark.parametrize("name", ["../../evil", "/tmp/evil", "..", "", "Chat", "ch}t", "a\nb"])
def test_a_name_that_would_lead_out_of_the_store_is_refused(
    exported: Path, other: ModelStore, name: str, tmp_path: Path
) -> None:
    def change(members: Members) -> None:
        manifest = json.loads(members[0][1])
        members[0] = members[0][0], json.dumps({**manifest, "name": name}).encode()

    rewrite(exported, change)
    before = everything(tmp_path)
    with pytest.raises(StoreError, match="is no whole manifest of a version"):
        import_archive(other, exported)
    assert everything(tmp_path) == before


def test_content_that_does_not_fit_its_hash_is_refused(exported: Path, other: ModelStore) -> None:
    def change(members: Members) -> None:
        members[1] = members[1][0], bytes(len(members[1][1]))

    rewrite(exported, change)
    with pytest.raises(StoreError, match="is not what was exported"):
        import_archive(other, exported)
    assert other.versions() == []


def test_an_archive_that_was_cut_or_broken_anywhere_makes_no_version_and_says_so(
    exported: Path, other: ModelStore
) -> None:
    whole = exported.read_bytes()
    seeded = random.Random(7)
    for _ in range(150):
        at = seeded.randrange(len(whole))
        broken = bytearray(whole)
        broken[at : at + 8] = seeded.randbytes(8)
        exported.write_bytes(whole[:at] if seeded.random() < 0.3 else broken)
        try:
            version, _ = import_archive(other, exported)
        except (StoreError, ModelRefused):
            assert other.versions() == []
        else:  # what fell into padding, or into the manifest's own words: hashes hold
            other.verify(version, trust_cache=False)
            other.delete(version)


@pytest.mark.parametrize("content", [b"", b"not a tar", b"\x1f\x8b" + bytes(600), bytes(10240)])
def test_a_file_that_is_no_archive_is_one_sentence(
    other: ModelStore, tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "file.tar"
    file.write_bytes(content)
    with pytest.raises(StoreError, match=r"file\.tar (is no whole archive|was not written by)"):
        import_archive(other, file)


def test_pickled_weights_come_in_only_when_they_are_trusted(
    store: ModelStore, other: ModelStore, model_folder: Path, tmp_path: Path
) -> None:
    (model_folder / "model.safetensors").rename(model_folder / "pytorch_model.bin")
    version = store.add("chat", model_folder, "pickled", allow_pickle=True)
    export(store, version, tmp_path / "pickled.tar")
    with pytest.raises(ModelRefused, match=r"pytorch_model\.bin, a pickle"):
        import_archive(other, tmp_path / "pickled.tar")
    assert import_archive(other, tmp_path / "pickled.tar", allow_pickle=True)[1]


def test_an_export_that_fails_leaves_no_file(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = store.find("chat:1")
    target = tmp_path / "target" / "chat.tar"
    target.parent.mkdir()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match=r"chat\.tar could not be written: No space left"):
            export(store, version, target)
    assert list(target.parent.iterdir()) == []
    (version.path / "config.json").write_text("{}", "utf-8")
    with pytest.raises(ModelRefused, match=r"config\.json was changed after its import"):
        export(store, version, target)
    assert list(target.parent.iterdir()) == []


def test_a_file_that_cannot_be_the_target_is_one_sentence(
    store: ModelStore, exported: Path, tmp_path: Path
) -> None:
    version = store.find("chat:2")
    with pytest.raises(StoreError, match=r"chat-2\.tar is there already"):
        archive_file(version, tmp_path)
    with pytest.raises(StoreError, match=r"weights do not get smaller; name a file chat\.tar"):
        archive_file(version, tmp_path / "chat.tar.gz")
    with pytest.raises(StoreError, match="nowhere is no folder; make it first"):
        archive_file(version, tmp_path / "nowhere" / "chat.tar")
