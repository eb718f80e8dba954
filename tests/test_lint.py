"""All Python is clean: the template's own, and each distinct set of files a bake can hold."""

from __future__ import annotations

import hashlib
import itertools
import subprocess
import sys
from pathlib import Path

import pytest
from baking import ANSWERS, ROOT, Template, files

CHECKS = {
    "style": ("ruff", "check"),
    "format": ("ruff", "format", "--check"),
    "types": ("mypy",),
}


def run(folder: Path, *command: str) -> None:
    """Run a checker in a folder and fail with what it said."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"


def fingerprint(project: Path) -> str:
    """A hash of everything the checkers look at: the Python files and their settings."""
    digest = hashlib.sha256()
    for name in sorted(files(project)):
        if name.endswith(".py") or name == "pyproject.toml":
            digest.update(name.encode() + b"\0" + (project / name).read_bytes())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def distinct_bakes(template: Template, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One bake for each distinct set of Python files over every engine, source and CI."""
    distinct: dict[str, Path] = {}
    for engine, source, ci in itertools.product(
        ANSWERS["engine"], ANSWERS["model_source"], ANSWERS["ci"]
    ):
        into = tmp_path_factory.mktemp("bakes") / "projects"
        project = template.bake(into, engine=engine, model_source=source, ci=ci)
        distinct.setdefault(fingerprint(project), project)
    return list(distinct.values())


@pytest.mark.parametrize("check", CHECKS)
def test_the_python_of_each_distinct_bake_is_clean(
    distinct_bakes: list[Path], demo_environment: Path, check: str
) -> None:
    tool, *arguments = CHECKS[check]
    assert distinct_bakes
    for project in distinct_bakes:
        run(project, str(demo_environment / "bin" / tool), *arguments)


@pytest.mark.parametrize("check", CHECKS)
def test_the_templates_own_python_is_clean(check: str) -> None:
    run(ROOT, sys.executable, "-m", *CHECKS[check])
