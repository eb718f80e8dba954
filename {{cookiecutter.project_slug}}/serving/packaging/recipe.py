"""What the image is made of, in BentoML's words: a base image, the engines' environments, the
gateway's packages.

Each environment is its own: the gateway's is BentoML's /app/.venv, the engines' are below
/app/engine, made by pip from the pins in `engines/`. They come first, because they are the large
part and change least. SERVING_BASE_IMAGE names another base image while the Bento is built, where
the usual registries cannot be reached; it must bring the same Python with `venv`.
"""

from __future__ import annotations

import os
import shlex
import tomllib
from dataclasses import dataclass
from pathlib import Path

from bentoml.images import Image

from serving.settings import GpuEngine, ProcessEngine, Settings

BASE_IMAGE = "SERVING_BASE_IMAGE"
#: Where the image keeps the engines' environments.
ENGINES = "/app/engine"
#: Where BentoML puts the project there.
SOURCE = "/home/bentoml/bento/src"


@dataclass(frozen=True)
class Base:
    """`setup` is the command that gives it what it lacks."""

    image: str
    python: str
    setup: str = ""


_CPU = Base("docker.io/library/python:3.11-slim-bookworm", "3.11")
# vLLM and SGLang compile kernels when they start: that takes nvcc, a C compiler, Python's headers.
_CUDA = Base(
    "docker.io/nvidia/cuda:13.0.0-devel-ubuntu24.04",
    "3.12",
    "{ command -v cc && python3 -c 'import ensurepip'; } >/dev/null 2>&1 "
    "|| { apt-get update && apt-get install --yes --no-install-recommends "
    "build-essential ca-certificates python3-dev python3-pip python3-venv "
    "&& rm -rf /var/lib/apt/lists/*; } "
    # BentoML installs its uv beside Ubuntu's own packages, which this file forbids.
    "&& rm -f /usr/lib/python3*/EXTERNALLY-MANAGED",
)


def image(settings: Settings, project: Path) -> Image:
    """The gateway's image, with an environment for each engine in serving.yaml."""
    sections = [s for s in settings.engine_sections.values() if isinstance(s, ProcessEngine)]
    base = _CUDA if any(isinstance(section, GpuEngine) for section in sections) else _CPU
    recipe = Image(
        base_image=os.environ.get(BASE_IMAGE) or base.image,
        distro="none",  # whose packages would be a compiler and git, twice
        python_version=base.python,
        lock_python_packages=False,  # BentoML's lock wants a certifi that not every index has
    )
    if base.setup:
        recipe.run(base.setup)
    for home, name in {_inside(s.home, project): s.name for s in sections}.items():
        recipe.run(_environment(home, project / "engines" / f"{name}.txt"))
    described = tomllib.loads((project / "pyproject.toml").read_text("utf-8"))["project"]
    extras = described["optional-dependencies"]
    # With the buckets' clients: a container that starts pulls its models from there.
    return recipe.python_packages(*described["dependencies"], *extras["s3"], *extras["gcs"])


def _inside(home: Path, project: Path) -> str:
    """Where the image has it: see `serving.settings.places`."""
    near = str(home.relative_to(project)) if home.is_relative_to(project) else str(home)
    if near.startswith(".engine"):
        return ENGINES + near.removeprefix(".engine")
    return str(Path(SOURCE) / near)


def _environment(home: str, pins: Path) -> str:
    lines = [line.partition(" #")[0].strip() for line in pins.read_text("utf-8").splitlines()]
    wanted = " ".join(shlex.quote(line) for line in lines if line and not line.startswith("#"))
    return (
        f"python3 -m venv {home} && printf '%s\\n' {wanted} > /tmp/pins.txt "
        f"&& {home}/bin/python -m pip --disable-pip-version-check install --no-cache-dir "
        "--requirement /tmp/pins.txt && rm /tmp/pins.txt"
    )
