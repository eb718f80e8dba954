"""Counters for the tests: of each kind, with what a request may ask of them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from gateway_client import settings
from redis_server import Server

from serving.gateway.counters import Slot, Window
from serving.gateway.shared_counters import LEASE, SharedCounters
from serving.settings import Settings

TEN = [Slot("key ann", 10)]


def window(limit: int = 100, *, ends: float | None = None, whose: str = "key ann") -> Window:
    """A day that is not over while a test runs, unless it `ends` earlier."""
    return Window(whose, "tokens", limit, 86400, ends or (time.time() // 86400 + 2) * 86400)


def shared_settings(server: Server, monkeypatch: pytest.MonkeyPatch, **limits: Any) -> Settings:
    monkeypatch.setenv("THE_REDIS", server.url)
    made = settings()
    made.limits = made.limits.model_copy(update={"redis_env": "THE_REDIS", **limits})
    return made


@contextlib.asynccontextmanager
async def shared(settings: Settings, *, lease: float = LEASE) -> AsyncIterator[SharedCounters]:
    counters = SharedCounters(settings, lease=lease)
    await counters.start()
    try:
        yield counters
    finally:
        await counters.stop()
