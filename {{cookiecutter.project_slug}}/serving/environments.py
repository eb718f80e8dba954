"""The virtual environments of the engines that serving.yaml names, made by plain pip.

An environment is up to date when its stamp, a file named after the engine and the checksum of its
pins, is there. It is written last, so that one left half made is made again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from serving.settings import ProcessEngine, Settings

OLDEST_PYTHON = (3, 11)
#: In place of the stamp while an environment is made: it tells ours from a folder that is not.
UNFINISHED = ".installed-in-part"


class NotInstalled(Exception):
    """An engine's environment cannot be made. The message says what to do."""


@dataclass(frozen=True)
class Environment:
    """One engine's environment: the folder `home`, made from the requirements in `pins`."""

    engine: str
    home: Path
    pins: Path

    @property
    def stamp(self) -> Path:
        checksum = hashlib.sha256(self.pins.read_bytes()).hexdigest()[:16]
        return self.home / f".installed-{self.engine}-{checksum}"

    def install(self, python: str) -> bool:
        """Makes it with the interpreter `python`, unless it is up to date; says whether it did.

        Raises `NotInstalled`.
        """
        self._check()
        if self.stamp.exists():
            return False
        _check_python(python)
        home = _shown(self.home)
        print(f"Installing the engine {self.engine} into {home}", flush=True)
        self._clear()
        if not _succeeds(python, "-m", "venv", str(self.home)):
            raise NotInstalled(
                f"{home} could not be made: see above; Debian and Ubuntu need their python3-venv "
                "package."
            )
        pip = (str(self.home / "bin" / "python"), "-m", "pip", "--disable-pip-version-check")
        if not _succeeds(*pip, "install", "--requirement", str(self.pins)):
            raise NotInstalled(
                f"The engine's environment could not be installed: see above; then delete {home} "
                "and run make install again."
            )
        (self.home / UNFINISHED).rename(self.stamp)
        return True

    def _check(self) -> None:
        if not self.pins.is_file():
            known = ", ".join(sorted(path.stem for path in self.pins.parent.glob("*.txt")))
            raise NotInstalled(
                f"serving.yaml names the engine '{self.engine}', which has no "
                f"{self.pins.parent.name}/{self.pins.name}: choose one of {known}."
            )
        # Two dashes: the gateway's own environment has a stamp with one.
        ours = any(self.home.glob(".installed-*-*"))
        if self.home.exists() and not ours and not _is_empty(self.home):
            raise NotInstalled(
                f"{_shown(self.home)} is there, but was not made for an engine: name another home "
                "in serving.yaml, or delete it if you need nothing in it."
            )

    def _clear(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        (self.home / UNFINISHED).touch()
        for path in self.home.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != UNFINISHED:
                path.unlink()


def environments(settings: Settings, pins: Path) -> list[Environment]:
    """One for each home in serving.yaml; `pins` is the folder with a requirements file an engine.

    A remote engine needs none.
    """
    sections = [s for s in settings.engine_sections.values() if isinstance(s, ProcessEngine)]
    names = {section.home: section.name for section in sections}
    return [Environment(name, home, pins / f"{name}.txt") for home, name in names.items()]


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _check_python(python: str) -> None:
    code = f"import sys; sys.exit(sys.version_info < {OLDEST_PYTHON})"
    if not _succeeds(python, "-c", code, stderr=subprocess.DEVNULL):
        raise NotInstalled(
            "Python 3.11 or newer is needed: name one with make install PYTHON=/path/to/python3.12."
        )


def _succeeds(*command: str, stderr: int | None = None) -> bool:
    try:
        return subprocess.run(command, check=False, stderr=stderr).returncode == 0
    except OSError as error:
        print(f"{command[0]}: {error.strerror}.", file=sys.stderr)
        return False


def _shown(path: Path) -> str:
    """The path as a person would type it here."""
    near = os.path.relpath(path)
    return str(path) if near.startswith("..") else near
