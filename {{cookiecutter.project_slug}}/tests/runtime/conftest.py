"""Where sockets and pipes matter, tests run on asyncio's own loop and on uvloop, which is used."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop

ON_BOTH_LOOPS = {"test_process.py", "test_stream.py", "test_wire.py"}


def pytest_asyncio_loop_factories(
    item: pytest.Item,
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"uvloop": uvloop.new_event_loop}
    if item.path.name in ON_BOTH_LOOPS:
        loops["asyncio"] = asyncio.new_event_loop
    return loops
