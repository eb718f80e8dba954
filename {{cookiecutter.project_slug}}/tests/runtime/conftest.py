"""The surroundings of the reconciler, and the loops: where sockets and pipes matter, tests run on
asyncio's own loop and on uvloop, which is used."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import uvloop
from reconciling import Add, Configure, Run

from serving.runtime import replica as replica_module
from serving.runtime.plan import check_plan
from serving.runtime.reconciler import Reconciler
from serving.runtime.routing_file import RoutingFile
from serving.runtime.store import ModelStore
from serving.settings import Settings

ON_BOTH_LOOPS = {"test_process.py", "test_stream.py", "test_wire.py"}


def pytest_asyncio_loop_factories(
    item: pytest.Item,
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"uvloop": uvloop.new_event_loop}
    if item.path.name in ON_BOTH_LOOPS:
        loops["asyncio"] = asyncio.new_event_loop
    return loops


@pytest.fixture
def store(store_home: Path, model_folder: Path) -> ModelStore:
    store = ModelStore(store_home)
    store.add("chat", model_folder, "here")
    return store


@pytest.fixture
def configure(scripted_home: Path, tmp_path: Path) -> Configure:
    def configure(models: Any = None, engine: str = "vllm", **restarts: float) -> Settings:
        return Settings.model_validate(
            {
                "service": {"name": "llm", "state": tmp_path / "state"},
                "engine": {"name": engine, "max_model_len": 256, "home": scripted_home},
                "models": models or {"chat": {}},
                "timeouts": {"start": 20, "warmup": 10, "stop": 5, "lazy": 20},
                "restarts": {"attempts": 3, "backoff": 0.05, "backoff_max": 0.1, **restarts},
            }
        )

    return configure


@pytest.fixture
async def run(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Run]:
    monkeypatch.setattr(replica_module, "HEALTH_EVERY", 0.02)
    running: list[Reconciler] = []

    def run(settings: Settings) -> Reconciler:
        check_plan(settings, store)
        file = RoutingFile(settings.service.state / "routing.json")
        file.load()
        reconciler = Reconciler(settings, store, file, tmp_path / "warmup_hooks.py")
        reconciler.start()
        running.append(reconciler)
        return reconciler

    yield run
    for reconciler in running:
        await reconciler.stop()


@pytest.fixture
def add(store: ModelStore, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Add:
    """Imports one more version; the service looks into its store all the time."""
    monkeypatch.setattr("serving.runtime.reconciler.WATCH_EVERY", 0.02)
    return lambda: store.add("chat", model_folder, "here").number
