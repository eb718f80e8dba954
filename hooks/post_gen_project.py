"""Make the new project a git repository with a first commit and say what to do next.

No file is ever deleted here: what an answer leaves out has a file name that renders to nothing. A
folder cannot be left out that way (cookiecutter raises OutputDirExistsException when a folder's
name renders to an existing one), so a folder whose files were all left out is still made, empty.
Git would not keep it; neither do we.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

SLUG = "{{ cookiecutter.project_slug }}"

# Folders whose every file is optional, innermost first.
OPTIONAL_FOLDERS = (
    "demo_model",
    ".github/workflows",
    ".github",
    "deploy/compose/grafana",
    "deploy/compose",
    "deploy/kubernetes/base",
    "deploy/kubernetes/image",
    "deploy/kubernetes/import",
    "deploy/kubernetes/store",
    "deploy/kubernetes/overlays/cpu",
    "deploy/kubernetes/overlays/gpu",
    "deploy/kubernetes/overlays/gpu-mig",
    "deploy/kubernetes/overlays/gpu-shared",
    "deploy/kubernetes/overlays/replicas",
    "deploy/kubernetes/overlays",
    "deploy/kubernetes/components/keda",
    "deploy/kubernetes/components/pull-models",
    "deploy/kubernetes/components",
    "deploy/kubernetes",
    "deploy/kserve",
    "deploy/bentocloud",
    "deploy/ray",
    "deploy",
)

NEXT = f"""
Next:
  cd {SLUG}
  make install   # the gateway's and the engine's environments
  make model     # the first version of the model into the store
  make serve     # http://127.0.0.1:3000
"""


def remove_empty_folders(project: Path) -> None:
    """Remove the optional folders that no answer filled; a folder that holds anything stays."""
    for name in OPTIONAL_FOLDERS:
        folder = project / name
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def git(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run git here, whatever repository the caller's environment points at (a git hook's does)."""
    elsewhere = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
    environment = {name: value for name, value in os.environ.items() if name not in elsewhere}
    return subprocess.run(
        ["git", *arguments], env=environment, capture_output=True, text=True, check=False
    )


def missing_identity() -> list[str]:
    """Options that stand in for the user's name and address where git has none."""
    options = []
    for setting, value in (("user.name", "cookiecutter"), ("user.email", "cookiecutter@localhost")):
        if git("config", setting).returncode != 0:
            options += ["-c", f"{setting}={value}"]
    return options


def make_repository() -> str:
    """Commit everything to a new repository; return what the user should know, or nothing."""
    if shutil.which("git") is None:
        return "git is not installed, so no repository was made: install it and run git init here."
    if git("rev-parse", "--is-inside-work-tree").stdout.strip() == "true":
        return "This folder is already inside a git repository, so no new one was made."
    commit = [*missing_identity(), "-c", "commit.gpgsign=false", "commit", "--quiet", "--no-verify"]
    for arguments in (
        ["-c", "init.defaultBranch=main", "init", "--quiet"],
        ["add", "--all"],
        [*commit, "--message", "Bake the project from its template"],
    ):
        step = git(*arguments)
        if step.returncode != 0:
            return f"The first commit was not made, git said: {step.stderr.strip()}"
    return ""


def main() -> None:
    remove_empty_folders(Path.cwd())
    notice = make_repository()
    if notice:
        print(notice)
    print(NEXT, end="")


if __name__ == "__main__":
    main()
