"""Bake projects from a clean copy of this template, as cookiecutter and cruft users do."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import cruft
from cookiecutter.main import cookiecutter

ROOT = Path(__file__).resolve().parent.parent
PROJECT = "{{cookiecutter.project_slug}}"
ANSWERS = json.loads((ROOT / "cookiecutter.json").read_text())
SLUG = "llm-service"

IDENTITY = {
    "GIT_AUTHOR_NAME": "Template Tests",
    "GIT_AUTHOR_EMAIL": "tests@localhost",
    "GIT_COMMITTER_NAME": "Template Tests",
    "GIT_COMMITTER_EMAIL": "tests@localhost",
}


def git(folder: Path, *arguments: str) -> str:
    """Run git in a folder and return what it printed; CalledProcessError when it fails."""
    return subprocess.run(
        ["git", *arguments],
        cwd=folder,
        env=os.environ | IDENTITY,
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def commit_all(folder: Path, message: str) -> None:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", message)


def files(folder: Path) -> set[str]:
    """Relative paths of every file in a folder, outside its git repository."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and ".git" not in path.relative_to(folder).parts
    }


@dataclass(frozen=True)
class Template:
    """A git repository that holds what git would keep of this one: no caches, no environments."""

    path: Path

    @classmethod
    def copy_to(cls, path: Path) -> Template:
        listed = git(ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file():
                copy = path / name
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes((ROOT / name).read_bytes())
                copy.chmod((ROOT / name).stat().st_mode)
        git(path, "init", "--quiet")
        commit_all(path, "The template")
        return cls(path)

    @property
    def project(self) -> Path:
        """The folder that becomes the generated project."""
        return self.path / PROJECT

    def bake(self, into: Path, **answers: str) -> Path:
        """Bake a project without asking; questions not named here get their defaults."""
        return self._bake(into, answers, overwrite=False)

    def bake_over(self, into: Path, **answers: str) -> Path:
        """Bake a project over an older bake in the same place."""
        return self._bake(into, answers, overwrite=True)

    def _bake(self, into: Path, answers: dict[str, str], *, overwrite: bool) -> Path:
        into.mkdir(parents=True, exist_ok=True)
        config = into.parent / "cookiecutterrc"
        config.write_text(f"replay_dir: {json.dumps(str(into.parent / 'replay'))}\n")
        return Path(
            cookiecutter(
                str(self.path),
                no_input=True,
                extra_context=answers,
                output_dir=str(into),
                overwrite_if_exists=overwrite,
                config_file=str(config),
            )
        )

    def cruft_create(self, into: Path, **answers: str) -> Path:
        """Create a project with cruft and commit the state file that it leaves uncommitted."""
        into.mkdir(parents=True, exist_ok=True)
        project: Path = cruft.create(
            str(self.path), into, default_config=True, extra_context=answers
        )
        commit_all(project, "Follow the template with cruft")
        return project
