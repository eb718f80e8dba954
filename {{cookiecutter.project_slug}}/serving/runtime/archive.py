"""A version as one tar file: its manifest first, then the files that it names, in that order.

Nothing is extracted by the archive's word: a member is read only when it is the file that the
manifest names next, and goes where the manifest's checked path says. So links, devices, absolute
paths and `..` lead nowhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import IO

from serving.runtime.checks import FileRecord, ModelRefused
from serving.runtime.distribution import PART, Advance
from serving.runtime.manifest import MAX_SIZE, check_safe, check_whole, from_json, to_json
from serving.runtime.store import ModelStore, StoreError, Version

_MANIFEST = "manifest.json"
_COMPRESSED = {".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip", ".7z"}


def archive_file(version: Version, target: Path) -> Path:
    """Where an export to `target` goes: into a folder by the version's own name, `chat-3.tar`.
    Raises `StoreError` when it cannot."""
    if target.is_dir():
        target = target / f"{version.name}-{version.number}.tar"
    if target.suffix in _COMPRESSED:
        name = target.stem.removesuffix(".tar")
        raise StoreError(f"weights do not get smaller; name a file {name}.tar.")
    if target.exists():
        raise StoreError(f"{target} is there already; delete it or name another file.")
    if not target.parent.is_dir():
        raise StoreError(f"{target.parent} is no folder; make it first.")
    return target


def export(
    store: ModelStore, version: Version, target: Path, advance: Advance = lambda _: None
) -> None:
    """Writes the version as the file `target`, whole or not at all, the same bytes each time.

    Raises `ModelRefused` when a file was changed after its import, `StoreError` when `target`
    cannot be written.
    """
    try:
        with store.in_use(version), _replacing(target) as file:
            _write(version, file, advance)
    except OSError as error:
        raise StoreError(
            f"{error.filename or target} could not be written: {error.strerror or error}."
        ) from None


def import_archive(
    store: ModelStore,
    file: Path,
    *,
    allow_pickle: bool = False,
    advance: Advance = lambda _: None,
) -> tuple[Version, bool]:
    """Makes the version in an archive one of the store, with its number; False when it was one.

    Raises `StoreError` or `ModelRefused`; whatever happens, the store holds the whole version or
    nothing of it, and nothing else was written.
    """
    with _opened(file) as tar:
        version = _manifest(tar, file)
        check_safe(version, allow_pickle=allow_pickle)
        if store.has(version):
            return store.get(version.name, version.number), False
        store.require_space(version.size)
        with store.staging() as staging:
            version = replace(version, path=staging / "model")
            for record in version.files:
                _extract(tar, file, record, version.path / record.path, advance)
            if tar.next() is not None:
                raise ModelRefused(f"{file} holds more than its manifest names; export it again.")
            check_whole(version, allow_pickle=allow_pickle)
            return store.adopt(version), True


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(file, "r:") as tar:
            yield tar
    except (tarfile.TarError, EOFError, UnicodeError):
        raise StoreError(
            f"{file} is no whole archive of a version; write it again: serving models export."
        ) from None


def _manifest(tar: tarfile.TarFile, file: Path) -> Version:
    member = tar.next()
    if member is None or member.name != _MANIFEST or not member.isreg() or member.size > MAX_SIZE:
        raise StoreError(f"{file} was not written by `serving models export`.")
    content = tar.extractfile(member)
    assert content is not None
    return from_json(content.read(), f"the manifest in {file}", Path())


def _extract(
    tar: tarfile.TarFile, file: Path, record: FileRecord, target: Path, advance: Advance
) -> None:
    member = tar.next()
    if member is None:
        raise StoreError(f"{file} lacks {record.path}, which its manifest names; export it again.")
    if not member.isreg() or (member.name, member.size) != (record.path, record.size):
        raise ModelRefused(
            f"{file} holds {member.name!r} where its manifest names {record.path}; export it again."
        )
    content = tar.extractfile(member)
    assert content is not None
    reader = _Hashing(content, advance)
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as out:
        while block := reader.read(PART):
            out.write(block)
        out.flush()
        os.fsync(out.fileno())
    if reader.digest != record.sha256:
        raise StoreError(
            f"{record.path} in {file} is not what was exported (its SHA-256 differs); "
            "export or copy it again."
        )


def _write(version: Version, file: IO[bytes], advance: Advance) -> None:
    manifest = to_json(version)
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(_member(version, _MANIFEST, len(manifest)), BytesIO(manifest))
        for record in version.files:
            path = version.path / record.path
            changed = ModelRefused(f"{path} was changed after its import; import the model again.")
            if path.stat().st_size != record.size:
                raise changed
            with path.open("rb") as source:
                reader = _Hashing(source, advance)
                tar.addfile(_member(version, record.path, record.size), reader)
            if reader.digest != record.sha256:
                raise changed


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[IO[bytes]]:
    """A file that gets its name when it is whole."""
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.chmod(0o644)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _member(version: Version, name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size = size
    member.mtime = int(version.created.timestamp())
    member.mode = 0o644
    return member


class _Hashing:
    """Reads a file and hashes what it reads."""

    def __init__(self, file: IO[bytes], advance: Advance) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self._advance = advance

    def read(self, size: int = -1) -> bytes:
        block = self._file.read(size)
        self._hash.update(block)
        self._advance(len(block))
        return block

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()
