"""What `kill -9` of the whole service, at any moment under load, takes from the ledger.

With `durability: batched`, rows that are younger than `ledger.flush` and a second; with `strict`,
none of a request that was answered. The same while the database is away and rows go to the spool.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from lean_client import LeanClient
from live_service import Service, chat_body, eventually
from scripted_engine import script
from versions import all_gone, family_of, kill

pytestmark = pytest.mark.integration

WORKERS = 4
FLUSH = 0.5


@dataclass
class Load:
    """Clients that ask on and on; `answered` has each request that came to its end, and when."""

    service: Service
    answered: dict[str, float] = field(default_factory=dict)
    _names: Any = field(default_factory=itertools.count)

    async def until_killed(self, seconds: float) -> float:
        """Kills the service after so many seconds. Returns when it did."""
        before = len(self.answered)
        workers = [asyncio.ensure_future(self._ask_on()) for _ in range(WORKERS)]
        await asyncio.sleep(seconds)
        async with asyncio.timeout(30):
            while len(self.answered) == before:  # it may be slow to begin
                await asyncio.sleep(0.01)
        family = family_of(self.service)
        killed = time.monotonic()
        kill(family)
        await asyncio.gather(*workers)
        self.service.wait()
        eventually(lambda: all_gone(family), "all are dead")
        return killed

    async def _ask_on(self) -> None:
        client = LeanClient(self.service.port)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                number = next(self._names)
                body = chat_body(script(tokens=3), stream=bool(number % 2))
                headers = {"x-request-id": f"r{number}"}
                told = await client.post("/v1/chat/completions", body, headers)
                assert told.status == 200
                if body["stream"]:
                    assert told.events[-1] == "[DONE]"
                self.answered[f"r{number}"] = time.monotonic()
        client.close()


def database_of(service: Service) -> Path:
    return service.folder / "state" / "serving.db"


def spool_of(service: Service) -> Path:
    return service.folder / "state" / "ledger.spool"


def rename(service: Service, old: str, new: str) -> None:
    """As good as a database that went away: every write to it fails at once."""
    with closing(sqlite3.connect(database_of(service), timeout=20)) as database, database:
        database.execute(f"ALTER TABLE {old} RENAME TO {new}")


def rows_of(service: Service) -> Counter[str]:
    """How many rows each request has."""
    with closing(sqlite3.connect(database_of(service), timeout=20)) as database:
        return Counter(name for (name,) in database.execute("SELECT request FROM usage"))


def spooled_in(service: Service) -> Counter[str]:
    if not spool_of(service).exists():
        return Counter()
    names: Counter[str] = Counter()
    for line in spool_of(service).read_bytes().splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # a kill may leave half of the last
            names[json.loads(line)["request"]] += 1
    return names


@pytest.mark.parametrize("away", [False, True], ids=["database", "spool"])
@pytest.mark.parametrize("durability", ["batched", "strict"])
def test_a_hard_kill_loses_what_is_stated_and_nothing_else(
    serve: Callable[..., Service], durability: Literal["batched", "strict"], away: bool
) -> None:
    service = serve(settings={"ledger": {"durability": durability, "flush": FLUSH}})
    load = Load(service)
    may_lose = 0.0 if durability == "strict" else FLUSH + 1
    lost: set[str] = set()
    oldest = 0.0
    for _ in range(3):
        service.start().wait_ready()
        if away:
            rename(service, "usage", "away")
        killed = asyncio.run(load.until_killed(random.uniform(0.5, 3)))
        if away:
            assert sum(spooled_in(service).values()) > 0
            rename(service, "away", "usage")
        kept = rows_of(service) + spooled_in(service)
        for name in load.answered.keys() - kept.keys() - lost:
            oldest = max(oldest, killed - load.answered[name])
            lost.add(name)
        assert oldest <= may_lose, f"{len(lost)} rows lost"
        if durability == "strict":
            assert lost == set()
    print(f"{durability}: {len(lost)} of {len(load.answered)} lost, the oldest {oldest:.2f} s old")

    if away:
        service.start().wait_ready()
        eventually(lambda: not spool_of(service).exists(), "the spool is written")
    rows = rows_of(service)
    assert load.answered.keys() - lost <= rows.keys()
    assert set(rows.values()) == {1}
