"""Numbered, immutable model versions as entries of BentoML's model store.

What BentoML's store does not do by itself, measured on 1.4: a look-up of `chat:1` may answer with
`chat:10`; concurrent creates fail; an import killed midway leaves an entry that breaks every list.
So every look-up here is exact, every change holds a file lock, and an import is staged beside the
store and renamed into place when it is whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import bentoml
from bentoml._internal.models.model import Model  # the public `get` matches prefixes
from bentoml.exceptions import BentoMLException
from filelock import FileLock

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
        parts = _TAG.fullmatch(tag)
        if parts is None or not _NAME.fullmatch(parts["name"]):
            raise StoreError(
                f"{tag!r} is not a version; write NAME:NUMBER, as `serving models list` does."
            )
        return self.get(parts["name"], int(parts["number"]))

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
                metadata = {
                    "source": described,
                    "task": task,
                    "files": [vars(record) for record in records],
                }
                self._describe(folder, f"{name}:{number}", metadata)
                target = self._models / name / str(number)
                target.parent.mkdir(parents=True, exist_ok=True)
                folder.rename(target)
                replace_file(target.parent / "latest", str(number))
        return self.get(name, number)

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
        counter = self._own / "numbers" / name
        counter.parent.mkdir(parents=True, exist_ok=True)
        given = int(counter.read_text()) if counter.is_file() else 0
        number = max([given, *self.numbers(name)]) + 1
        replace_file(counter, str(number))
        return number

    @staticmethod
    def _describe(folder: Path, tag: str, metadata: dict[str, Any]) -> None:
        """Writes the entry's model.yaml by BentoML's own hand."""
        with tempfile.TemporaryDirectory() as scratch:
            store = _ScratchStore(Path(scratch))
            with bentoml.models.create(
                tag,
                labels={"managed-by": "serving"},
                metadata=metadata,
                _model_store=store,  # type: ignore[arg-type]
            ):
                pass
            shutil.copyfile(store.path / "model.yaml", folder / "model.yaml")


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
