"""pip as it is set up on this machine, for the commands that build an image.

Indexes and wheels that are folders of this machine are mounted while the image is built; nothing of
it stays in the image.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

#: What says where packages come from; the rest is a matter of taste.
_SOURCES = ("index-url", "extra-index-url", "find-links", "constraint", "trusted-host", "no-index")


def settings() -> dict[str, str]:
    """As pip sees them; of several places that name one, the environment wins."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True
    ).stdout
    found: dict[str, str] = {}
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        place, _, name = key.partition(".")
        if name in _SOURCES and (name not in found or place == ":env:"):
            found[name] = value.strip("'\"")
    return found


def containers_conf(folder: Path) -> Path:
    """A configuration for buildah that mounts pip's own and the folders it names."""
    found = settings()
    pip_conf = folder / "pip.conf"
    lines = [f"{name} = {value}" for name, value in found.items()]
    pip_conf.write_text("\n".join(["[global]", *lines, ""]))
    volumes = [f"{pip_conf}:/etc/pip.conf:ro"]
    volumes += [f"{place}:{place}:ro" for place in sorted(_local(found))]
    conf = folder / "containers.conf"
    conf.write_text(f"[containers]\nvolumes = {json.dumps(volumes)}\n")
    return conf


def _local(found: dict[str, str]) -> set[Path]:
    words = (word for value in found.values() for word in re.split(r"\s+", value))
    paths = (Path(unquote(urlsplit(word).path)) for word in words if _names_a_file(word))
    return {_whole(path) for path in paths if path.exists()}


def _names_a_file(word: str) -> bool:
    return word.startswith(("/", "file://"))


def _whole(path: Path) -> Path:
    """A simple index links to files beside it."""
    return path.parent if path.name == "simple" else path
