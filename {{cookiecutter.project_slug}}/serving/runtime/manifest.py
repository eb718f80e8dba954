"""A version as it travels: one JSON document that names its files, with their sizes and hashes.

What comes from outside is believed in nothing: a path that could leave its folder, a file that no
import would take, or a second file of one name is refused before a byte of it is written.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from serving.runtime.checks import (
    PICKLES,
    TEXT_SUFFIXES,
    FileRecord,
    ModelRefused,
    wanted_files,
)
from serving.runtime.store import StoreError, Version, split_tag

#: Bytes: far more than a version of a thousand files takes.
MAX_SIZE = 16 * 1024 * 1024
_FORMAT = 1
_HASH = re.compile(r"[0-9a-f]{64}")


def to_json(version: Version) -> bytes:
    """The manifest of a version, the same bytes each time."""
    document = {
        "format": _FORMAT,
        "name": version.name,
        "number": version.number,
        "task": version.task,
        "source": version.source,
        "created": version.created.astimezone(UTC).isoformat(),
        "files": [vars(file) for file in version.files],
    }
    return json.dumps(document, indent=1).encode() + b"\n"


def from_json(data: bytes, where: str, path: Path) -> Version:
    """The version that a manifest describes, its files to be at `path`. `where` names the manifest
    in messages. Raises `StoreError`."""
    broken = StoreError(f"{where} is no whole manifest of a version; push or export it again.")
    try:
        document: dict[str, Any] = json.loads(data)
        release = _count(document["format"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise broken from None
    if release != _FORMAT:
        raise StoreError(
            f"{where} was written by another release of this service (format {release}); push or "
            "export it again with this one."
        )
    try:
        # What no folder of a store is called would lead out of it.
        name, number = split_tag(f"{_text(document['name'])}:{_count(document['number'])}")
        version = Version(
            name=name,
            number=number,
            path=path,
            created=datetime.fromisoformat(document["created"]).astimezone(UTC),
            source=_text(document["source"]),
            files=[_record(file) for file in document["files"]],
            task=_text(document["task"]),
        )
    except (StoreError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        raise broken from None
    if version.task not in {"generate", "embed"} or not version.files:
        raise broken
    return version


def check_safe(version: Version, *, allow_pickle: bool) -> None:
    """Raises `ModelRefused` unless every file stays in its folder and is one an import takes."""
    taken = TEXT_SUFFIXES | {".safetensors"} | PICKLES
    seen: set[str] = set()
    for file in version.files:
        path = PurePosixPath(file.path)
        whole = file.path == path.as_posix() and not path.is_absolute() and "\\" not in file.path
        if (
            not whole
            or not file.path.isprintable()
            or any(part.startswith(".") for part in path.parts)
            or path.suffix not in taken
            or file.path in seen
        ):
            raise ModelRefused(
                f"{version.tag} names the file {file.path!r}, which no version of a model has; "
                "take it only from somebody you trust, made again."
            )
        if path.suffix in PICKLES and not allow_pickle:
            raise ModelRefused(
                f"{version.tag} holds {file.path}, a pickle, which can run code; take safetensors, "
                "or trust it with --allow-pickle."
            )
        seen.add(file.path)
    if any(parent.as_posix() in seen for name in seen for parent in PurePosixPath(name).parents):
        raise ModelRefused(f"{version.tag} names a file that is a folder too; make it again.")


def check_whole(version: Version, *, allow_pickle: bool) -> None:
    """Raises `ModelRefused` unless the files at `version.path` are a model that can be served."""
    found = {path.as_posix() for path in wanted_files(version.path, allow_pickle=allow_pickle)}
    missing = sorted({file.path for file in version.files} - found)
    if missing:
        raise ModelRefused(f"{version.tag} lacks {missing[0]}; push or export it again.")


def _record(file: dict[str, Any]) -> FileRecord:
    record = FileRecord(_text(file["path"]), _count(file["size"]), _text(file["sha256"]))
    if not _HASH.fullmatch(record.sha256):
        raise ValueError(record.sha256)
    return record


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(value)
    return value
