"""A database of the test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from serving.accounts.database import Database
from serving.accounts.keys import Keys
from serving.settings import Settings

Configure = Callable[..., Settings]


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
    database = Database(configure())
    await database.migrate()
    yield database
    await database.close()


@pytest.fixture
def keys(database: Database) -> Keys:
    return Keys(database)
