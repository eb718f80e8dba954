"""Errors of the start told to the person who started it: one sentence, no traceback."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import resource
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType

from serving.accounts.database import Database, DatabaseError
from serving.runtime.plan import check_plan
from serving.runtime.routing_file import RoutingFile, RoutingFileError
from serving.runtime.store import ModelStore
from serving.settings import Settings, SettingsError, load_settings, routing_file

_BIND_ERRORS = {
    errno.EADDRINUSE: "the port is taken by another program; choose one with --port",
    errno.EACCES: "this user may not open the port; choose one above 1023 with --port",
    errno.EADDRNOTAVAIL: "this machine has no such address; choose one with --host",
}


_described = ContextVar("_described", default=False)


@contextlib.contextmanager
def only_described() -> Iterator[None]:
    """Within it, `load` neither wants nor makes what a start needs, engines, versions, secrets and
    database: BentoML imports a service also to build a Bento of it."""
    token = _described.set(True)
    try:
        yield
    finally:
        _described.reset(token)


def raise_open_file_limit() -> None:
    """Each stream takes two sockets, and the usual soft limit of 1,024 ends at 500 streams."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # some systems have an "unlimited" nobody gets
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def load(config: Path) -> tuple[Settings, ModelStore, RoutingFile]:
    """The checked settings, the store, and what was asked for before; ends the program when one of
    them cannot be used."""
    if _described.get():
        settings = load_settings(config, surroundings=False)
        # Their URLs are known only where the service runs.
        settings.database = settings.database.model_copy(update={"url_env": None})
        settings.limits = settings.limits.model_copy(update={"redis_env": None})
        return settings, ModelStore(), RoutingFile(routing_file(settings.service.state))
    sys.excepthook = _explain
    raise_open_file_limit()
    try:
        settings = load_settings(config)
        store = ModelStore()
        routing = RoutingFile(routing_file(settings.service.state))
        routing.load()
        check_plan(settings, store)
        asyncio.run(_prepare(settings))
    except (SettingsError, RoutingFileError, DatabaseError) as error:
        sys.exit(str(error))
    return settings, store, routing


async def _prepare(settings: Settings) -> None:
    """Better no start than one without its keys."""
    database = Database(settings)
    try:
        await database.migrate()
    finally:
        await database.close()


def _explain(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """BentoML lets a socket that cannot be bound run through to the interpreter."""
    if isinstance(error, OSError) and error.errno in _BIND_ERRORS:
        print(f"bentoml serve: {_BIND_ERRORS[error.errno]}.", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)
