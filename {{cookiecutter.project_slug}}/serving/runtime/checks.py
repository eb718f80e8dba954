"""What a model folder must be before it is imported, and unchanged before it is loaded."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

#: Files a model folder may hold besides weights. Everything else stays behind at import.
TEXT_SUFFIXES = {".json", ".txt", ".model", ".jinja", ".tiktoken", ".md"}
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "tekken.json", "vocab.json")


class ModelRefused(Exception):
    """A model folder that cannot be served. The message names the file and what to do."""


@dataclass(frozen=True)
class FileRecord:
    """What an import remembers of one file: its path in the folder, bytes, SHA-256."""

    path: str
    size: int
    sha256: str


def wanted_files(folder: Path, *, allow_pickle: bool) -> list[Path]:
    """The files of `folder` an import takes, as sorted relative paths.

    Hidden files, code and formats no engine here loads are left out. Raises `ModelRefused`.
    """
    suffixes = TEXT_SUFFIXES | {".safetensors"} | (PICKLES if allow_pickle else set())
    files = sorted(
        path.relative_to(folder)
        for path in folder.rglob("*")
        if path.is_file()
        and path.suffix in suffixes
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    check_files(folder, files, allow_pickle=allow_pickle)
    return files


def check_files(folder: Path, files: list[Path], *, allow_pickle: bool) -> None:
    """Refuses a folder without configuration, weights or tokenizer, or with broken weights."""
    names = {path.as_posix() for path in files}
    weights = [path for path in files if path.suffix == ".safetensors"]
    if "config.json" not in names:
        raise ModelRefused(f"{folder} has no config.json; name a folder that holds one model.")
    if not weights and not (allow_pickle and any(path.suffix in PICKLES for path in files)):
        found = any(path.suffix in PICKLES for path in folder.iterdir())
        advice = (
            "its weights are pickles, which can run code; convert them to safetensors, "
            "or trust them with --allow-pickle"
            if found
            else "export the model with save_pretrained(..., safe_serialization=True)"
        )
        raise ModelRefused(f"{folder} has no .safetensors file; {advice}.")
    if not names.intersection(TOKENIZERS):
        raise ModelRefused(
            f"{folder} has no tokenizer ({', '.join(TOKENIZERS[:2])}); save it beside the weights."
        )
    _check_index(folder, names)
    for path in weights:
        try:
            with safe_open(folder / path, framework="numpy") as tensors:
                tensors.keys()
        except (SafetensorError, OSError) as error:
            raise ModelRefused(f"{folder / path} is no whole safetensors file: {error}.") from None


def _check_index(folder: Path, names: set[str]) -> None:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return
    try:
        shards = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError):
        raise ModelRefused(f"{index} cannot be read; fetch the model again.") from None
    missing = sorted(shards - names)
    if missing:
        raise ModelRefused(f"{folder} lacks {missing[0]}, which its index names; fetch it again.")


def hash_file(path: Path, advance: Callable[[int], None] = lambda _: None) -> str:
    """SHA-256 in hex; `advance` is told the bytes read."""
    digest = hashlib.sha256()
    for block in _blocks(path):
        digest.update(block)
        advance(len(block))
    return digest.hexdigest()


def copy_and_hash(source: Path, target: Path, advance: Callable[[int], None]) -> str:
    """Copies one file, reading it once, and returns the SHA-256 of what was written."""
    digest = hashlib.sha256()
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as out:
        for block in _blocks(source):
            out.write(block)
            digest.update(block)
            advance(len(block))
        out.flush()
        os.fsync(out.fileno())
    return digest.hexdigest()


def move_and_hash(source: Path, target: Path, advance: Callable[[int], None]) -> str:
    """Moves one file within its file system and returns its SHA-256."""
    digest = hash_file(source, advance)
    target.parent.mkdir(parents=True, exist_ok=True)
    source.rename(target)
    return digest


def _blocks(path: Path, size: int = 4 * 1024 * 1024) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(size):
            yield block


class VerifiedCache:
    """Remembers which files were verified, by size and modification time, so that a restart does
    not hash tens of gigabytes again. Losing it costs time, nothing else."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def verify(
        self,
        folder: Path,
        records: list[FileRecord],
        advance: Callable[[int], None] = lambda _: None,
        *,
        trust_cache: bool = True,
    ) -> None:
        """Raises `ModelRefused` naming the first file that is missing or changed since import."""
        known = self._read() if trust_cache else {}
        fresh: dict[str, list[int | str]] = {}
        for record in records:
            path = folder / record.path
            try:
                status = path.stat()
            except OSError:
                raise ModelRefused(f"{path} is missing; import the model again.") from None
            mark: list[int | str] = [status.st_size, status.st_mtime_ns, record.sha256]
            if known.get(str(path)) != mark and (
                status.st_size != record.size or hash_file(path, advance) != record.sha256
            ):
                raise ModelRefused(f"{path} was changed after its import; import the model again.")
            fresh[str(path)] = mark
        self._write({**self._read(), **fresh})

    def _read(self) -> dict[str, list[int | str]]:
        try:
            known = json.loads(self._path.read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}

    def _write(self, known: dict[str, list[int | str]]) -> None:
        temporary = self._path.with_suffix(f".{os.getpid()}.tmp")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(known), "utf-8")
            temporary.replace(self._path)
        except OSError:  # a read-only folder: every start verifies in full
            with contextlib.suppress(OSError):
                temporary.unlink()
