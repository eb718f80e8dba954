"""A place outside this machine's store that holds versions: a folder, or a prefix in a bucket.

    chat/3/manifest.json      written last, once, and never changed
    chat/3/5f0c…/config.json  the files, in a folder that is named after their content

So what a push was cut off in is nowhere taken for a version, two pushes of different versions under
one tag never mix their files, and a file that is there is whole: it got its name when it was.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from datetime import UTC
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from filelock import FileLock
from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from serving.runtime.files import FULL, replace_file
from serving.runtime.manifest import MAX_SIZE, from_json, to_json
from serving.runtime.store import StoreError, Version, split_tag

MANIFEST = "manifest.json"
#: The extra of pyproject.toml that brings what speaks a scheme.
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
_CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "gcs": "set GOOGLE_APPLICATION_CREDENTIALS",
}
# gcsfs prints its retries and their tracebacks, where a sentence of ours says what went wrong.
logging.getLogger("gcsfs").setLevel(logging.CRITICAL)

#: How the clients of object stores name what went wrong: they share no classes.
_REFUSED = re.compile(r"(\w*Credentials|Refresh|TokenRetrieval)\w*Error|\w*Denied")
_UNREACHABLE = re.compile(r"\w*(Connection|Connect|Timeout|DNS|SSL)\w*(Error)?")


class Remote:
    """The versions at `url`: a folder, or what fsspec knows: `s3://bucket/prefix`, `gs://…`.

    Every method raises `StoreError` when the place cannot be reached, refuses the credentials, or
    has no space left.
    """

    def __init__(self, url: str) -> None:
        scheme = urlsplit(url).scheme if "://" in url else "file"
        if urlsplit(url).password:
            raise StoreError(
                "the URL holds a password, which everybody on this machine can read; "
                "take it out and give the credentials in the environment."
            )
        self.url = url.rstrip("/")
        self._extra = EXTRAS.get(scheme)
        try:
            self._fs, root = _open(url)
        except ImportError as error:
            advice = (
                f"install the extra {self._extra}: pip install --editable '.[{self._extra}]'"
                if self._extra
                else str(error)
            )
            raise StoreError(
                f"{scheme}:// needs a package that is not installed; {advice}."
            ) from None
        except ValueError:
            raise StoreError(
                f"{url!r} is neither a folder nor a URL that can hold models, as s3://BUCKET/MODELS."
            ) from None
        self._root = root.rstrip("/")
        self._is_folder = isinstance(self._fs, LocalFileSystem)

    def tags(self) -> list[str]:
        """Of all versions here, by name and number."""
        with self._told():
            found = self._fs.glob(f"{self._root}/*/*/{MANIFEST}")
        tags = []
        for path in found:
            name, number = str(path).split("/")[-3:-1]
            with contextlib.suppress(StoreError):
                tags.append(split_tag(f"{name}:{number}"))
        return [f"{name}:{number}" for name, number in sorted(tags)]

    def find(self, name: str, number: int) -> Version | None:
        """The version, as its manifest describes it."""
        path = f"{self._root}/{name}/{number}/{MANIFEST}"
        try:
            with self._told(missing=True):
                data = self._fs.cat_file(path)
        except FileNotFoundError:
            return None
        where = f"{self.url}/{name}/{number}/{MANIFEST}"
        if len(data) > MAX_SIZE:
            raise StoreError(f"{where} is too large to be a manifest.")
        version = from_json(data, where, Path())
        if (version.name, version.number) != (name, number):
            raise StoreError(
                f"{where} is the manifest of {version.tag}; push {name}:{number} again."
            )
        return version

    def sizes(self, version: Version) -> dict[str, int]:
        """Bytes of each of the version's files that is here, whole."""
        folder = self._folder(version)
        try:
            with self._told(missing=True):
                found: dict[str, Any] = self._fs.find(folder, detail=True)
        except FileNotFoundError:
            return {}
        return {path.removeprefix(f"{folder}/"): info["size"] for path, info in found.items()}

    def read(self, version: Version, path: str, start: int, end: int) -> bytes:
        """Some bytes of a file."""
        try:
            with self._told(missing=True):
                data: bytes = self._fs.cat_file(
                    f"{self._folder(version)}/{path}", start=start, end=end
                )
        except FileNotFoundError:
            data = b""
        if len(data) != end - start:
            raise StoreError(
                f"{self.url} has not the whole {path} of {version.tag}; push {version.tag} again."
            )
        return data

    @contextlib.contextmanager
    def sending(self, version: Version, path: str) -> Iterator[Telling]:
        """What is written gets the file's name when all of it is there, or is dropped."""
        target = f"{self._folder(version)}/{path}"
        with self._in_folder(target) if self._is_folder else self._in_bucket(target) as file:
            yield Telling(file, self)

    def publish(self, version: Version) -> bool:
        """Writes the manifest, unless another push was faster: then False."""
        path = f"{self._root}/{version.name}/{version.number}/{MANIFEST}"
        with self._told():
            if self._is_folder:  # under `locked`
                if Path(path).exists():
                    return False
                replace_file(Path(path), to_json(version).decode())
                return True
            try:
                self._fs.pipe_file(path, to_json(version), mode="create")
            except FileExistsError:
                return False
            return True

    @contextlib.contextmanager
    def locked(self, version: Version) -> Iterator[None]:
        """In a folder, one push of a tag at a time. In a bucket each write is one step."""
        if not self._is_folder:
            yield
            return
        folder = Path(self._root, version.name, str(version.number))
        with self._told():
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / ".lock")
            lock.acquire()
        with lock:
            lock.release()
            yield

    def another(self, version: Version) -> StoreError:
        """For a push of something else under the tag of `version`, which is here."""
        day = version.created.astimezone(UTC).date()
        return StoreError(
            f"{self.url} has another {version.tag} (of {day}, from {version.source}), and a "
            "version never changes; import yours again under a number that is free there."
        )

    def _folder(self, version: Version) -> str:
        return f"{self._root}/{version.name}/{version.number}/{version.content[:16]}"

    @contextlib.contextmanager
    def _in_folder(self, target: str) -> Iterator[IO[bytes]]:
        path = Path(target)
        part = path.with_name(f".{path.name}.part")
        with self._told():
            path.parent.mkdir(parents=True, exist_ok=True)
            file = part.open("wb")
        try:
            with file:
                yield file
                with self._told():
                    file.flush()
                    os.fsync(file.fileno())
            with self._told():
                part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _in_bucket(self, target: str) -> Iterator[IO[bytes]]:
        with self._told():
            if self._extra is None:  # other places want their folders made
                self._fs.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
            file = self._fs.open(target, "wb", autocommit=False)
        try:
            yield file
            with self._told():
                file.close()
                file.commit()
        except BaseException:
            with contextlib.suppress(Exception):
                file.discard()
            raise

    @contextlib.contextmanager
    def _told(self, *, missing: bool = False) -> Iterator[None]:
        """Says what went wrong there in one sentence. With `missing`, FileNotFoundError is an
        answer."""
        try:
            yield
        except (StoreError, FileExistsError):
            raise
        except FileNotFoundError as error:
            if "bucket does not exist" in str(error):
                raise StoreError(f"{self.url}: there is no such bucket; make it first.") from None
            if missing:
                raise
            raise StoreError(f"{self.url} {self._reason(error)}") from None
        except Exception as error:  # a backend's own, its HTTP client's, the system's: any of many
            raise StoreError(f"{self.url} {self._reason(error)}") from None

    def _reason(self, error: Exception) -> str:
        kind = type(error).__name__
        said = " ".join(str(error).split()).rstrip(".") or kind
        if isinstance(error, OSError) and error.errno in FULL:
            return (
                "has no space left; free some and run this again: what is there whole is not "
                "sent again."
            )
        if self._is_folder:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else said
            return f"cannot be used: {reason}."
        if isinstance(error, PermissionError) or _REFUSED.fullmatch(kind):
            advice = _CREDENTIALS.get(self._extra or "", "see its own documentation")
            return f"refuses the credentials ({said}); {advice}."
        if isinstance(error, ConnectionError | TimeoutError) or _UNREACHABLE.fullmatch(kind):
            return f"cannot be reached ({said}); run this again when it can: it goes on from there."
        return f"failed ({said}); run this again: it goes on from there."


class Telling:
    """A file whose writes tell what went wrong."""

    def __init__(self, file: IO[bytes], remote: Remote) -> None:
        self._file = file
        self._remote = remote

    def write(self, data: bytes) -> None:
        with self._remote._told():
            self._file.write(data)


def _open(url: str) -> tuple[AbstractFileSystem, str]:
    """No listing is remembered, and no connection shared: others change what is there."""
    fs, root = url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
    return fs, str(root)
