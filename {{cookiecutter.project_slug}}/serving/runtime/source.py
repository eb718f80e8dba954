"""Where a model comes from: a folder, the demo, or a Hugging Face repository at one commit."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from serving.runtime.checks import PICKLES, TEXT_SUFFIXES
from serving.runtime.store import ModelStore, StoreError

_REPOSITORY = re.compile(r"^(?P<id>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w./-]+))?$")


@dataclass(frozen=True)
class Fetched:
    """A model folder on this machine, and how to name its origin for good. A `staged` one was made
    for the import, which may take its files away."""

    folder: Path
    described: str
    staged: bool = False


@contextlib.contextmanager
def fetch(source: str, store: ModelStore, demo: Path, *, allow_pickle: bool) -> Iterator[Fetched]:
    """Makes `source` a local folder for as long as the context lasts.

    A folder wins over a repository of the same name. Raises `StoreError`.
    """
    folder = demo if source == "demo" else Path(os.path.expanduser(source))
    if folder.is_dir():
        yield Fetched(folder, "demo" if source == "demo" else str(folder.absolute()))
        return
    if source == "demo":
        raise StoreError(f"this project has no demo model ({demo} is not there).")
    repository = _REPOSITORY.match(source)
    if repository is None:
        raise StoreError(
            f"{source!r} is neither a folder nor a Hugging Face repository (org/name[@revision])."
        )
    with store.staging() as staging:
        commit = _download(
            repository["id"], repository["revision"] or "main", staging / "hub", allow_pickle
        )
        yield Fetched(staging / "hub", f"hf:{repository['id']}@{commit}", staged=True)


def _download(repository: str, revision: str, folder: Path, allow_pickle: bool) -> str:
    """Downloads what an import may take and returns the commit that `revision` named."""
    suffixes = TEXT_SUFFIXES | {".safetensors"} | (PICKLES if allow_pickle else set())
    try:
        commit = HfApi().model_info(repository, revision=revision).sha
        snapshot_download(
            repository,
            revision=commit,
            local_dir=folder,
            allow_patterns=[f"*{suffix}" for suffix in sorted(suffixes)],
            ignore_patterns=["original/*"],
        )
    except RepositoryNotFoundError:
        raise StoreError(
            f"{repository} is not on the hub, or needs a token (set HF_TOKEN)."
        ) from None
    except RevisionNotFoundError:
        raise StoreError(f"{repository} has no revision {revision!r}.") from None
    except Exception as error:  # errors of its HTTP client, its own and the system's: any of many
        reason = str(error).split("\n", 1)[0] or type(error).__name__
        raise StoreError(f"{repository} could not be downloaded: {reason}") from None
    return str(commit)
