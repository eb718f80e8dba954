"""A database of the test's own: SQLite, and PostgreSQL where a test is for both."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from postgres import Server

from serving.accounts.database import Database
from serving.accounts.keys import Keys
from serving.settings import Settings

Configure = Callable[..., Settings]
_names = (f"accounts_{number}" for number in itertools.count())


@pytest.fixture
def configure(tmp_path: Path) -> Configure:
    def configure(**sections: Any) -> Settings:
        return Settings.model_validate(
            {
                "service": {"name": "llm", "state": tmp_path / "state"},
                "engine": {"name": "vllm", "max_model_len": 256},
                "models": {"chat": {}},
                **sections,
            }
        )

    return configure


@pytest.fixture
async def database(configure: Configure) -> AsyncIterator[Database]:
    """A SQLite file."""
    database = Database(configure())
    await database.migrate()
    yield database
    await database.close()


@pytest.fixture(params=["sqlite", "postgresql"])
async def either(
    request: pytest.FixtureRequest, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Database]:
    """Of each kind."""
    sections = {}
    if request.param == "postgresql":
        server: Server = request.getfixturevalue("postgres")
        monkeypatch.setenv("THE_URL", server.make(next(_names)))
        sections = {"database": {"url_env": "THE_URL"}}
    database = Database(configure(**sections))
    await database.migrate()
    yield database
    await database.close()


@pytest.fixture
def keys(either: Database) -> Keys:
    return Keys(either)
