"""The image: what `bentoml containerize` makes of the Bento, and a layer from Containerfile."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from serving.packaging import builders
from serving.packaging.bento import Built

_FILE = "Containerfile"


def build(project: Path, bento: Built, tag: str, backend: builders.Name | None) -> int:
    """Builds it as `tag` and returns its size in bytes. Raises `NotPacked`."""
    builder = builders.find(backend)
    below = f"{builder.local}{bento.tag}"
    # Its own format, unlike OCI's, has the shell that the Dockerfile asks for, and health checks.
    environment = {**os.environ, "BUILDAH_FORMAT": "docker", "BENTOML_DO_NOT_TRACK": "True"}
    command = [sys.executable, "-m", "bentoml", "containerize", bento.tag]
    builders.run([*command, f"--backend={builder.name}", f"--image-tag={below}"], environment)
    with tempfile.TemporaryDirectory(prefix="image-") as empty:
        file = str(project / _FILE)
        builder.build(empty, file, tag, {"BENTO_IMAGE": below})
    return builder.size(tag)
