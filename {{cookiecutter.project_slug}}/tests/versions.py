"""Services with several versions: made, asked about, and looked into from outside."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import httpx
import psutil
from live_service import Service, alive

from serving.runtime.store import ModelStore


def import_versions(service: Service, model: Path, count: int) -> None:
    """Until the store has `count` of them."""
    store = ModelStore(service.home)
    while len(store.numbers("chat")) < count:
        store.add("chat", model, "a test")


def in_production(service: Service, number: int, **more: Any) -> None:
    """Before the start."""
    path = service.folder / "state" / "routing.json"
    path.parent.mkdir(exist_ok=True)
    wanted = {"labels": {"production": number, **more.pop("labels", {})}, **more}
    path.write_text(json.dumps({"revision": 1, "models": {"chat": wanted}}), "utf-8")


def status_of(service: Service) -> Any:
    return service.http.get("/admin/status").json()


def version_states(service: Service) -> dict[int, str]:
    versions = status_of(service)["models"]["chat"]["versions"]
    return {version["version"]: version["state"] for version in versions}


def engines(service: Service) -> list[psutil.Process]:
    assert service.process is not None
    children = psutil.Process(service.process.pid).children(recursive=True)
    return [child for child in children if "--dialect" in child.cmdline()]


def engine_of(service: Service, number: int, model: str = "chat") -> psutil.Process:
    """The one replica of a version."""
    (engine,) = (
        engine
        for engine in engines(service)
        if any(word.endswith(f"models/{model}/{number}") for word in engine.cmdline())
    )
    return engine


def stats_of(service: Service, number: int, model: str = "chat") -> dict[str, Any]:
    """What the engine of a version saw; see `scripted_engine.Stats`."""
    line = engine_of(service, number, model).cmdline()
    port = line[line.index("--port") + 1]
    stats: dict[str, Any] = httpx.get(f"http://127.0.0.1:{port}/stats").json()
    return stats


def family_of(service: Service) -> list[int]:
    """The process ids of a service, its own first."""
    assert service.process is not None
    parent = psutil.Process(service.process.pid)
    return [parent.pid, *(child.pid for child in parent.children(recursive=True))]


def kill(family: list[int]) -> None:
    for pid in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def all_gone(family: list[int]) -> bool:
    return not any(map(alive, family))
