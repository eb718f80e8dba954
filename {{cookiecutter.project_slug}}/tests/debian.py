"""Programs of Debian's that some tests need: skipped without them, but never in continuous
integration."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, Protocol, TypeVar

import pytest


class Server(Protocol):
    def start(self) -> None: ...

    def stop(self) -> None: ...


Made = TypeVar("Made", bound=Server)


def lacking(message: str) -> NoReturn:
    """Skips the test, or fails it in continuous integration."""
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


@contextmanager
def running(make: Callable[[Path], Made], name: str) -> Iterator[Made]:
    """A started server with a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix=f"serving-{name}-"))
    try:
        server = make(folder)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
