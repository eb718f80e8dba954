"""The files of a Bento: those that bentofile.yaml includes, and nothing else of the project."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pathspec import PathSpec

BENTOFILE = "bentofile.yaml"
#: Never in a Bento, whatever the patterns say.
_NEVER = ("__pycache__/", "*.py[cod]", ".*", "/state/", "/sbom/")


class NotPacked(Exception):
    """The project cannot be packed. The message says why and what to do."""


def files(project: Path) -> list[Path]:
    """Relative paths of what `bentofile.yaml` includes, in order. Raises `NotPacked`."""
    described = _described(project / BENTOFILE)
    excluded = PathSpec.from_lines("gitwildmatch", [*(described.get("exclude") or []), *_NEVER])
    found = set()
    for pattern in described["include"]:
        matched = [path for path in _matches(project, pattern) if not excluded.match_file(path)]
        if not matched:
            raise NotPacked(
                f"{BENTOFILE}: nothing matches {pattern}; take it out, or put the file back."
            )
        found.update(matched)
    return sorted(found)


def stage(project: Path, folder: Path) -> str:
    """Copies those files into the empty `folder`, all with the same mode, and returns a SHA-256 of
    their names and contents. Raises `NotPacked`."""
    digest = hashlib.sha256()
    for path in files(project):
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(project / path, target)
        target.chmod(0o644)
        content = hashlib.sha256(target.read_bytes()).hexdigest()
        digest.update(f"{content}  {path.as_posix()}\n".encode())
    return digest.hexdigest()


def _matches(project: Path, pattern: str) -> Iterator[Path]:
    for path in project.glob(pattern.strip("/")):
        inside = path.rglob("*") if path.is_dir() else [path]
        yield from (file.relative_to(project) for file in inside if file.is_file())


def _described(file: Path) -> dict[str, Any]:
    try:
        described = yaml.safe_load(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        raise NotPacked(f"{file} cannot be read; put the project's {BENTOFILE} back.") from None
    included = described.get("include") if isinstance(described, dict) else None
    if not isinstance(included, list) or not all(isinstance(item, str) for item in included):
        raise NotPacked(f"{BENTOFILE}: `include` must be a list of files and patterns.")
    return dict(described)
