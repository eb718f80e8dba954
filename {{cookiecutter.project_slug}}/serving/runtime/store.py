"""Numbered, immutable model versions as entries of BentoML's model store.

What BentoML's store does not do by itself, measured on 1.4: a look-up of `chat:1` may answer with
`chat:10`; concurrent creates fail; an import killed midway leaves an entry that breaks every list.
So every look-up here is exact, every change holds a file lock, and an import is staged beside the
store and renamed into place when it is whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import bentoml
import yaml
from bentoml._internal.models.model import Model  # the public `get` matches prefixes
from bentoml.exceptions import BentoMLException
from filelock import FileLock, Timeout
from rich.filesize import decimal

from serving.runtime.checks import (
    FileRecord,
    VerifiedCache,
    copy_and_hash,
    move_and_hash,
    wanted_files,
)
from serving.runtime.files import replace_file

_NAME = re.compile(r"[a-z0-9]([a-z0-9_.-]{0,61}[a-z0-9])?")
_TAG = re.compile(r"(?P<name>[^:]+):(?P<number>[1-9]\d{0,8})")
#: Seconds that the files of a transfer which was cut off wait for it to go on.
_KEPT = 7 * 24 * 3600


class StoreError(Exception):
    """The store cannot do what was asked. The message says why and what to do."""


@dataclass(frozen=True)
class Version:
    """`chat:3`: one imported model. `source` says where it came from, `task` what it is asked for:
    `generate` text or `embed` it."""

    name: str
    number: int
    path: Path
    created: datetime
    source: str
    files: list[FileRecord]
    task: str = "generate"

    @property
    def tag(self) -> str:
        return f"{self.name}:{self.number}"

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def content(self) -> str:
        """SHA-256 in hex of the task and of every file's path and hash: equal for two versions that
        answer alike, wherever and whenever they were imported."""
        files = sorted((file.path, file.sha256) for file in self.files)
        return hashlib.sha256(json.dumps([self.task, files]).encode()).hexdigest()


class ModelStore:
    """The versions under BENTOML_HOME."""

    def __init__(self, home: Path | None = None) -> None:
        self.home = home or bentoml_home()
        self._models = self.home / "models"
        self._own = self.home / "serving"
        self.cache = VerifiedCache(self._own / "verified.json")

    def versions(self, name: str | None = None) -> list[Version]:
        """All versions, or one model's, oldest first. Entries others made are left out."""
        names = [name] if name else sorted(p.name for p in _folders(self._models))
        found = []
        for model in names:
            for number in self.numbers(model):
                with contextlib.suppress(StoreError):
                    found.append(self.get(model, number))
        return found

    def numbers(self, name: str) -> list[int]:
        """A model's version numbers, in order, without a look into them."""
        folders = _folders(self._models / name)
        return sorted(int(p.name) for p in folders if p.name.isdecimal())

    def get(self, name: str, number: int) -> Version:
        """Exactly that version. Raises `StoreError` when there is none."""
        path = self._models / name / str(number)
        try:
            entry = Model.from_path(path)
        except (BentoMLException, OSError):
            raise StoreError(f"{name}:{number} is not in the model store.") from None
        metadata: dict[str, Any] = dict(entry.info.metadata)
        if "files" not in metadata:
            raise StoreError(f"{name}:{number} was not imported by `serving models import`.")
        return Version(
            name=name,
            number=number,
            path=path,
            created=entry.creation_time,
            source=str(metadata.get("source", "")),
            files=[FileRecord(**record) for record in metadata["files"]],
            task=str(metadata.get("task", "generate")),
        )

    def find(self, tag: str) -> Version:
        """The version a person named, `chat:3`. Raises `StoreError`."""
        return self.get(*split_tag(tag))

    def has(self, version: Version) -> bool:
        """Whether that version is here. Raises `StoreError` when its tag is another content's."""
        if not (self._models / version.name / str(version.number)).exists():
            return False
        if self.get(version.name, version.number).content == version.content:
            return True
        raise StoreError(
            f"the model store has another {version.tag}, and a version never changes; "
            f"import that model under a number that is free, or delete {version.tag} here first."
        )

    def latest(self, name: str) -> Version:
        """The highest number. Raises `StoreError` when the model has no version."""
        versions = self.versions(name)
        if not versions:
            raise StoreError(
                f"the model {name!r} has no version in the store; "
                f"run `serving models import {name} SOURCE`."
            )
        return versions[-1]

    def verify(
        self,
        version: Version,
        advance: Callable[[int], None] = lambda _: None,
        *,
        trust_cache: bool = True,
    ) -> None:
        """Raises `ModelRefused` when a file is missing or differs from what was imported."""
        self.cache.verify(version.path, version.files, advance, trust_cache=trust_cache)

    @contextlib.contextmanager
    def staging(self) -> Iterator[Path]:
        """An empty folder on the store's own file system, removed at the end. Folders that killed
        imports left behind are removed too."""
        root = self._own / "staging"
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(self._own / "staging.lock"):
            _remove_abandoned(root)
            folder = Path(tempfile.mkdtemp(dir=root))
            owner = (folder / ".owner").open("w")
            # Held while the import lives; the kernel lets go of it however the import ends.
            fcntl.flock(owner, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            owner.close()

    @contextlib.contextmanager
    def incoming(self, key: str, waits: Callable[[], None] = lambda: None) -> Iterator[Path]:
        """The folder in which the transfer `key` gathers its files, on the store's own file system.

        One transfer of a key runs at a time, in all processes: `waits` is called when another one
        is at work. What one that was cut off has gathered is kept for the next, for a week.
        """
        root = self._own / "incoming"
        root.mkdir(parents=True, exist_ok=True)
        _remove_forgotten(root)
        lock = FileLock(root / f"{key}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            waits()
            lock.acquire()
        try:
            folder = root / key
            folder.mkdir(exist_ok=True)
            yield folder
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            lock.release()

    def require_space(self, wanted: int) -> None:
        """Raises `StoreError` when the store's file system has not so many bytes free."""
        self._own.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self._own).free
        if free < wanted:
            raise StoreError(
                f"the disk of the model store ({self.home}) has {decimal(free)} free and "
                f"{decimal(wanted)} are wanted; free some space, as with `serving models delete`."
            )

    def add(
        self,
        name: str,
        source: Path,
        described: str,
        *,
        task: str = "generate",
        allow_pickle: bool = False,
        consume: bool = False,
        advance: Callable[[int], None] = lambda _: None,
    ) -> Version:
        """Imports the model folder `source` as the next version of `name`.

        `described` is kept as the version's source; `advance` is told the bytes done. With
        `consume` the files are moved, not copied: for a download that was staged in this store.
        Raises `ModelRefused` or `StoreError`; whatever happens, the store holds the whole version
        or nothing of it.
        """
        take = move_and_hash if consume else copy_and_hash
        check_name(name)
        with self.staging() as staging:
            folder = staging / "model"
            records = []
            for path in wanted_files(source, allow_pickle=allow_pickle):
                digest = take(source / path, folder / path, advance)
                size = (folder / path).stat().st_size
                records.append(FileRecord(path.as_posix(), size, digest))
            with self._lock():
                number = self._next_number(name)
                created = datetime.now(UTC)
                version = Version(name, number, folder, created, described, records, task)
                self._place(version)
        return self.get(name, number)

    def adopt(self, version: Version) -> Version:
        """Moves a version that was made in another store into this one as it is.

        Its files lie at `version.path`, whole and on the store's own file system. Raises
        `StoreError` when its tag is another content's.
        """
        with self._lock():
            if not self.has(version):
                self._give(version.name, max(version.number, self._given(version.name)))
                self._place(version)
        return self.get(version.name, version.number)

    def delete(self, version: Version) -> None:
        """Raises `StoreError` when a running service has the version in use."""
        with self._lock():
            try:
                with self._use_file(version).open("a") as use:
                    fcntl.flock(use, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StoreError(
                    f"{version.tag} is in use by a running service; stop it or serve another "
                    "version first."
                ) from None
            # Out of the store in one step, then out of the world.
            with self.staging() as staging:
                version.path.rename(staging / "deleted")
            rest = self.versions(version.name)
            if rest:
                replace_file(version.path.parent / "latest", str(rest[-1].number))
            elif _folders(version.path.parent):  # others' entries: BentoML finds their latest
                (version.path.parent / "latest").unlink(missing_ok=True)
            else:
                shutil.rmtree(version.path.parent, ignore_errors=True)

    @contextlib.contextmanager
    def in_use(self, version: Version) -> Iterator[None]:
        """Marks the version as used, so that no `delete`, from any process, takes it away."""
        try:
            use = self._use_file(version).open("a")
        except OSError:  # a store mounted read-only: nobody can delete from it either
            yield
            return
        with use:
            fcntl.flock(use, fcntl.LOCK_SH)
            yield

    def _use_file(self, version: Version) -> Path:
        folder = self._own / "in_use"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{version.name}-{version.number}"

    def _lock(self) -> FileLock:
        self._own.mkdir(parents=True, exist_ok=True)
        return FileLock(self._own / "store.lock")

    def _next_number(self, name: str) -> int:
        """One more than any number ever given, so that a deleted version's number is not reused."""
        number = max([self._given(name), *self.numbers(name)]) + 1
        self._give(name, number)
        return number

    def _given(self, name: str) -> int:
        """The highest number that was ever given, as far as is known."""
        counter = self._own / "numbers" / name
        return int(counter.read_text()) if counter.is_file() else 0

    def _give(self, name: str, number: int) -> None:
        counter = self._own / "numbers" / name
        counter.parent.mkdir(parents=True, exist_ok=True)
        replace_file(counter, str(number))

    def _place(self, version: Version) -> None:
        """Makes the folder at `version.path` the store's entry, in one step."""
        self._describe(version)
        target = self._models / version.name / str(version.number)
        target.parent.mkdir(parents=True, exist_ok=True)
        version.path.rename(target)
        replace_file(target.parent / "latest", str(self.numbers(version.name)[-1]))

    @staticmethod
    def _describe(version: Version) -> None:
        """Writes the entry's model.yaml by BentoML's own hand, which knows no other time than
        now."""
        with tempfile.TemporaryDirectory() as scratch:
            store = _ScratchStore(Path(scratch))
            with bentoml.models.create(
                version.tag,
                labels={"managed-by": "serving"},
                metadata={
                    "source": version.source,
                    "task": version.task,
                    "files": [vars(record) for record in version.files],
                },
                _model_store=store,  # type: ignore[arg-type]
            ):
                pass
            document = yaml.safe_load((store.path / "model.yaml").read_text("utf-8"))
        document["creation_time"] = version.created.isoformat()
        text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
        (version.path / "model.yaml").write_text(text, "utf-8")


class _ScratchStore:
    """Stands in for BentoML's store while it writes one model.yaml."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextlib.contextmanager
    def register(self, tag: object) -> Iterator[str]:
        yield str(self.path)


def check_name(name: str) -> None:
    """Raises `StoreError` for a name serving.yaml or BentoML would not take."""
    if not _NAME.fullmatch(name):
        raise StoreError(
            f"{name!r} cannot name a model; take lower-case letters, digits, '-', '_' and '.', "
            "63 characters at most."
        )


def split_tag(tag: str) -> tuple[str, int]:
    """`chat:3` as a name and a number. Raises `StoreError`."""
    parts = _TAG.fullmatch(tag)
    if parts is None or not _NAME.fullmatch(parts["name"]):
        raise StoreError(
            f"{tag!r} is not a version; write NAME:NUMBER, as `serving models list` does."
        )
    return parts["name"], int(parts["number"])


def bentoml_home() -> Path:
    """BENTOML_HOME, or BentoML's default for it."""
    return Path(os.environ.get("BENTOML_HOME") or Path.home() / "bentoml")


def _folders(parent: Path) -> list[Path]:
    return [path for path in parent.iterdir() if path.is_dir()] if parent.is_dir() else []


def _remove_abandoned(root: Path) -> None:
    for folder in _folders(root):
        with contextlib.suppress(BlockingIOError):  # another import is at work in it
            with (folder / ".owner").open("a") as owner:
                fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)


def _remove_forgotten(root: Path) -> None:
    for folder in _folders(root):
        with contextlib.suppress(Timeout), FileLock(root / f"{folder.name}.lock", timeout=0):
            if all(time.time() - path.stat().st_mtime > _KEPT for path in folder.rglob("*")):
                shutil.rmtree(folder, ignore_errors=True)
