"""The database comes up to date by itself, whoever asks first, and says what is wrong with it."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from postgres import Server
from sqlalchemy import create_engine, inspect

from serving.accounts.database import Database, DatabaseError
from serving.accounts.tables import Base
from serving.settings import Settings

Configure = Callable[..., Settings]


async def migrated(settings: Settings) -> Database:
    database = Database(settings)
    try:
        await database.migrate()
    finally:
        await database.close()
    return database


async def test_a_new_file_gets_the_tables_and_is_for_this_user_alone(
    configure: Configure, tmp_path: Path
) -> None:
    await migrated(configure())
    await migrated(configure())  # once is enough
    file = tmp_path / "state" / "serving.db"
    assert file.stat().st_mode & 0o777 == 0o600
    found = inspect(create_engine(f"sqlite:///{file}"))
    wanted = Base.metadata.tables
    assert set(found.get_table_names()) == {*wanted, "alembic_version"}
    for name, table in wanted.items():
        columns = {column["name"]: column["nullable"] for column in found.get_columns(name)}
        assert columns == {column.name: column.nullable for column in table.columns}


async def test_of_many_that_start_at_once_one_makes_the_tables(configure: Configure) -> None:
    work = [asyncio.to_thread(asyncio.run, migrated(configure())) for _ in range(8)]
    await asyncio.gather(*work)


async def test_a_database_of_a_newer_service_is_left_alone(
    configure: Configure, tmp_path: Path
) -> None:
    await migrated(configure())
    with sqlite3.connect(tmp_path / "state" / "serving.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(DatabaseError, match="newer than this service"):
        await migrated(configure())


async def test_a_file_that_is_no_database_is_told(configure: Configure, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "serving.db").write_text("no database, this is text" * 100)
    with pytest.raises(DatabaseError, match=r"serving\.db cannot be used: file is not a database"):
        await migrated(configure())


async def test_a_server_that_is_not_there_is_told_without_its_password(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_URL", "postgresql://ann:secret@127.0.0.1:1/llm")
    with pytest.raises(DatabaseError) as caught:
        await migrated(configure(database={"url_env": "THE_URL"}))
    told = str(caught.value)
    assert told.startswith("postgresql+asyncpg://ann:***@127.0.0.1:1/llm cannot be used: ")
    assert "secret" not in told


@pytest.mark.parametrize("url", ["", "mysql://ann:secret@host/llm", "secret", "://"])
def test_what_is_no_url_of_a_database_is_told_without_showing_it(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("THE_URL", url)
    with pytest.raises(DatabaseError, match="THE_URL must hold postgresql://USER") as caught:
        Database(configure(database={"url_env": "THE_URL"}))
    assert "secret" not in str(caught.value)


async def test_postgresql_gets_the_same_tables_from_many_at_once(
    postgres: Server, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_URL", postgres.make("tables"))
    settings = configure(database={"url_env": "THE_URL"})
    work = [asyncio.to_thread(asyncio.run, migrated(settings)) for _ in range(8)]
    database, *_ = await asyncio.gather(*work)
    again = Database(settings)
    async with again.session() as session:
        connection = await session.connection()
        found = await connection.run_sync(lambda c: set(inspect(c).get_table_names()))
    await again.close()
    assert found == {*Base.metadata.tables, "alembic_version"}
    assert "a-password" not in repr(database.url)
