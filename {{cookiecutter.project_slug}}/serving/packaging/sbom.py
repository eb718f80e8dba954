"""What is installed, as CycloneDX documents: one for the gateway's environment, one for each
engine's. `cyclonedx-py` looks into them, and checks its documents against CycloneDX's schema."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

from serving.environments import environments
from serving.packaging.contents import NotPacked
from serving.settings import Settings

_PROGRAM = "cyclonedx-py"


def write(project: Path, settings: Settings, folder: Path) -> list[Path]:
    """Writes them into `folder`, the same bytes for the same environments. Raises `NotPacked`."""
    program = _program()
    folder.mkdir(parents=True, exist_ok=True)
    named = ["--pyproject", str(project / "pyproject.toml")]
    written = [_document(program, sys.executable, folder / "gateway.cdx.json", named)]
    engines = environments(settings, project / "engines")
    names = Counter(environment.engine for environment in engines)
    for environment in engines:
        name, home = environment.engine, environment.home
        python = home / "bin" / "python"
        if not python.exists():
            raise NotPacked(f"the engine {name} is not installed in {home}; run make install.")
        # Two environments of one engine are told apart by their folders.
        file = f"{name}.cdx.json" if names[name] == 1 else f"{name}-{home.name}.cdx.json"
        written.append(_document(program, str(python), folder / file, []))
    return written


def _document(program: str, python: str, file: Path, options: list[str]) -> Path:
    command = [program, "environment", "--output-reproducible", "--output-format", "JSON"]
    done = subprocess.run(
        [*command, "--output-file", str(file), *options, python],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise NotPacked(f"{_PROGRAM} could not look into {python} ({said}); run make install.")
    return file


def _program() -> str:
    beside = shutil.which(_PROGRAM, path=str(Path(sys.executable).parent))
    if program := beside or shutil.which(_PROGRAM):
        return program
    raise NotPacked(f"{_PROGRAM} is not installed; run make install, which brings it.")
