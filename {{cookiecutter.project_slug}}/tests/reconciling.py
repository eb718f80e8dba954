"""What tests of the reconciler share: where it runs, and what they ask of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

import psutil

from serving.runtime.reconciler import Reconciler
from serving.runtime.replica import State
from serving.runtime.served_version import ServedVersion
from serving.settings import Settings

Configure = Callable[..., Settings]
Run = Callable[[Settings], Reconciler]
Add = Callable[[], int]


def served(reconciler: Reconciler, name: str = "chat", number: int = 1) -> ServedVersion:
    return reconciler.served[name][number]


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not what():
            await asyncio.sleep(0.005)


def starts(scripted_home: Path) -> int:
    """How often an engine was started."""
    path = scripted_home.parent / "behaviour.starts"
    return len(path.read_text("utf-8").splitlines()) if path.exists() else 0


def engine_pid(reconciler: Reconciler) -> int:
    (replica,) = served(reconciler).replicas
    assert replica.pid is not None
    return replica.pid


def guards() -> list[psutil.Process]:
    """Of the engines that run: directly under this process."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):  # a zombie has none, either
            if "guard.py" in " ".join(child.cmdline()):
                found.append(child)
    return found


def running_children() -> list[str]:
    """The command lines of the guards and of their engines."""
    commands = []
    for guard in guards():
        with contextlib.suppress(psutil.NoSuchProcess):
            commands += [" ".join(p.cmdline()) for p in (guard, *guard.children())]
    return commands


def states(reconciler: Reconciler) -> dict[int, State]:
    return {number: version.state for number, version in reconciler.served["chat"].items()}
