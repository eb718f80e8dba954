"""Versions sent from the store to a folder or a bucket, and fetched from there into another store.

Both go on where they were cut off, and believe nothing but hashes: what is sent is hashed while it
is read, what was fetched before it becomes a version.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

from serving.runtime.checks import FileRecord, ModelRefused
from serving.runtime.files import FULL
from serving.runtime.manifest import check_safe, check_whole
from serving.runtime.remote import Remote
from serving.runtime.store import ModelStore, StoreError, Version, split_tag

#: Bytes fetched or sent at a time; what a cut connection may lose of each file.
PART = 16 * 1024 * 1024
#: Files under way at once.
AT_ONCE = 4

Advance = Callable[[int], None]


def push(
    store: ModelStore, remote: Remote, version: Version, advance: Advance = lambda _: None
) -> bool:
    """Makes the version one at `remote`; False when it was one. What is there whole stays.

    `advance` is told the bytes done. Raises `StoreError`, also when its tag is another content's
    there, or `ModelRefused` when a file here was changed after its import.
    """
    with store.in_use(version), remote.locked(version):
        known = remote.find(version.name, version.number)
        if known and known.content != version.content:
            raise remote.another(known)
        there = remote.sizes(version)

        def send(file: FileRecord, stopped: threading.Event) -> None:
            if there.get(file.path) == file.size:
                advance(file.size)
            else:
                _send(remote, version, file, advance, stopped)

        _side_by_side(send, version.files)
        if known:
            return False
        if not remote.publish(version):
            faster = remote.find(version.name, version.number)
            if faster and faster.content != version.content:
                raise remote.another(faster)
        return True


def find(remote: Remote, tag: str) -> Version:
    """The version `chat:3` at `remote`. Raises `StoreError`."""
    version = remote.find(*split_tag(tag))
    if version is None:
        raise StoreError(f"{remote.url} has no {tag}; push it there first: serving models push.")
    return version


def pull(
    store: ModelStore,
    remote: Remote,
    version: Version,
    *,
    allow_pickle: bool = False,
    advance: Advance = lambda _: None,
    waits: Callable[[], None] = lambda: None,
) -> bool:
    """Makes what `find` found a version of the store; False when it was one.

    Of several pulls at once into one store, one works: the others call `waits` and find it done.
    Raises `StoreError` or `ModelRefused`; whatever happens, the store holds the whole version or
    nothing of it.
    """
    if store.has(version):
        return False
    check_safe(version, allow_pickle=allow_pickle)
    key = f"{version.name}-{version.number}-{version.content[:16]}"
    with store.incoming(key, waits) as folder:
        if store.has(version):
            return False
        version = replace(version, path=folder / "model")
        gathered = sum(_size(version.path / file.path) for file in version.files)
        store.require_space(version.size - gathered)

        def fetch(file: FileRecord, stopped: threading.Event) -> None:
            _fetch(remote, version, file, advance, stopped)

        try:
            _side_by_side(fetch, version.files)
            check_whole(version, allow_pickle=allow_pickle)
            store.adopt(version)
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise StoreError(
                f"the disk of the model store ({store.home}) is full; free some space and run this "
                "again: it goes on where it stopped."
            ) from None
        return True


def _send(
    remote: Remote, version: Version, file: FileRecord, advance: Advance, stopped: threading.Event
) -> None:
    path = version.path / file.path
    digest = hashlib.sha256()
    with path.open("rb") as source, remote.sending(version, file.path) as target:
        while block := source.read(PART):
            if stopped.is_set():
                raise _Stopped
            target.write(block)
            digest.update(block)
            advance(len(block))
        if digest.hexdigest() != file.sha256:
            raise ModelRefused(f"{path} was changed after its import; import the model again.")


def _fetch(
    remote: Remote, version: Version, file: FileRecord, advance: Advance, stopped: threading.Event
) -> None:
    """Goes on at the end of what an earlier fetch wrote."""
    path = version.path / file.path
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with path.open("a+b") as target:
        if target.tell() > file.size:
            target.truncate(0)
        target.seek(0)
        while block := target.read(PART):
            digest.update(block)
            advance(len(block))
        while (start := target.tell()) < file.size:
            if stopped.is_set():
                raise _Stopped
            block = remote.read(version, file.path, start, min(start + PART, file.size))
            target.write(block)
            target.flush()
            digest.update(block)
            advance(len(block))
        os.fsync(target.fileno())
    if digest.hexdigest() != file.sha256:
        path.unlink()
        raise StoreError(
            f"{file.path} of {version.tag} at {remote.url} is not what was pushed (its SHA-256 "
            f"differs); delete it there and push {version.tag} again."
        )


class _Stopped(Exception):
    """Another file has failed, and its error is the one to tell."""


def _side_by_side(
    work: Callable[[FileRecord, threading.Event], None], files: list[FileRecord]
) -> None:
    """Raises the first error, and lets the others stop where they are."""
    stopped = threading.Event()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        tasks = [pool.submit(work, file, stopped) for file in files]
        try:
            for task in as_completed(tasks):
                task.result()
        except BaseException:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
