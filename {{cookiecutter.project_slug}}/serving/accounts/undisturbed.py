"""Work in the database that is not broken off, whoever waited for it and had to leave.

A statement that is cancelled half-way leaves SQLite locked for every other writer: the connection
is closed, but SQLite ends its transaction only with its last statement, and that one lives on in a
traceback until the garbage is collected. A stop would meet its own lock, and take half a minute.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

Given = ParamSpec("Given")
Result = TypeVar("Result")
Work = Callable[Given, Coroutine[Any, Any, Result]]


def undisturbed(work: Work[Given, Result]) -> Work[Given, Result]:
    """Who is cancelled while he waits for `work` is so when it has ended; who is cancelled twice,
    at once, and it ends by itself."""

    @functools.wraps(work)
    async def to_its_end(*arguments: Given.args, **options: Given.kwargs) -> Result:
        task = asyncio.ensure_future(work(*arguments, **options))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_unheard)
            await asyncio.wait({task})
            raise

    return to_its_end


def _unheard(task: asyncio.Task[Any]) -> None:
    """Asks how it ended, as nobody else will, so that asyncio does not log it."""
    if not task.cancelled():
        task.exception()
