"""The database of keys: a SQLite file, or PostgreSQL for several replicas of the service."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from filelock import FileLock
from sqlalchemy import Connection, event, make_url, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from serving.accounts.undisturbed import undisturbed
from serving.settings import Settings

#: Seconds to wait for a connection, for what is done with a few rows, and for another writer of a
#: SQLite file.
PATIENCE = 5
_MIGRATIONS = Path(__file__).parent / "migrations"
_DRIVERS = {
    "postgresql": "postgresql+asyncpg",
    "postgres": "postgresql+asyncpg",
    "sqlite": "sqlite+aiosqlite",
}
#: Any number that no other program takes for its own lock in the same PostgreSQL database.
_LOCK = 0x73657276


class DatabaseError(Exception):
    """The database cannot be used. The message says why, without its password."""


class Database:
    """A pool of connections to one database. Raises `DatabaseError` for a URL that is none."""

    def __init__(self, settings: Settings) -> None:
        self.url = _url(settings)
        self.postgresql = self.url.get_backend_name() == "postgresql"
        options: dict[str, Any] = {"pool_pre_ping": True}
        if self.postgresql:
            options["connect_args"] = {"timeout": PATIENCE}
        self._engine = create_async_engine(self.url, **options)
        if not self.postgresql:
            event.listen(self._engine.sync_engine, "connect", _prepare_sqlite)
        self.session: async_sessionmaker[AsyncSession] = async_sessionmaker(
            self._engine, expire_on_commit=False
        )

    async def migrate(self) -> None:
        """Brings the tables up to date; of several services that do so at once, one does. Raises
        `DatabaseError`."""
        with _explained(self.url), self._alone():
            async with self._engine.begin() as connection:
                if self.postgresql:
                    await connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
                await connection.run_sync(_upgrade)

    @asynccontextmanager
    async def transaction(self, patience: float = PATIENCE) -> AsyncIterator[AsyncSession]:
        """Is committed at its end. Raises `DatabaseError`, also for a PostgreSQL server that is
        silent for `patience` seconds. In a SQLite file only another writer takes time, see
        `_prepare_sqlite`, and it must not be left in the middle, see `undisturbed`."""
        limit = patience if self.postgresql else None
        with _explained(self.url):
            async with asyncio.timeout(limit), self.session.begin() as session:
                yield session

    @undisturbed
    async def check(self) -> None:
        """Raises `DatabaseError` when it answers nothing."""
        async with self.transaction() as session:
            await session.execute(text("SELECT 1"))

    async def close(self) -> None:
        with suppress(TimeoutError):  # a server that is silent: its connections end with us
            async with asyncio.timeout(PATIENCE):
                await self._engine.dispose()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if self.postgresql or not self.url.database:
            yield
            return
        file = Path(self.url.database)
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_name(f".{file.name}.lock")):
            # Digests of keys are no secrets, but whose keys they are is nobody's business.
            file.touch(mode=0o600)
            yield


@contextmanager
def _explained(url: URL) -> Iterator[None]:
    """What goes wrong with the database inside, as `DatabaseError`."""
    shown = url.render_as_string(hide_password=True)
    try:
        yield
    except CommandError as error:
        raise DatabaseError(
            f"{shown}: its tables are newer than this service ({error}); run the newer one."
        ) from None
    except (OSError, SQLAlchemyError, TimeoutError) as error:
        cause = getattr(error, "orig", None) or error
        if isinstance(cause, TimeoutError):
            told = "it does not answer"
        else:
            told = str(cause).splitlines()[0] if str(cause) else type(cause).__name__
        raise DatabaseError(f"{shown} cannot be used: {told}.") from None


def _url(settings: Settings) -> URL:
    variable = settings.database.url_env
    if variable is None:
        file = settings.service.state / "serving.db"
        return URL.create("sqlite+aiosqlite", database=str(file))
    try:
        url = make_url(os.environ[variable])
        return url.set(drivername=_DRIVERS[url.drivername])
    except (ArgumentError, KeyError, ValueError):  # without the URL, which holds a password
        raise DatabaseError(
            f"{variable} must hold postgresql://USER:PASSWORD@HOST/NAME or sqlite:////PATH."
        ) from None


def _prepare_sqlite(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")  # readers do not wait for a writer
    cursor.execute(f"PRAGMA busy_timeout={PATIENCE * 1000}")
    cursor.close()


def _upgrade(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
