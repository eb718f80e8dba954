"""Every row is written once, whatever happens to the database or to us."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime
from pathlib import Path

import msgspec
import pytest
from postgres import Server
from sqlalchemy import func, select
from sqlalchemy.exc import OperationalError

from serving.accounts.accounts import Accounts
from serving.accounts.database import Database, DatabaseError
from serving.accounts.ledger import BATCH, Entry, Ledger
from serving.accounts.tables import UsageRow
from serving.accounts.usage import Used, used
from serving.settings import Settings

Configure = Callable[..., Settings]


def entry(**fields: object) -> Entry:
    usual = {"request": "r", "key": "ann", "model": "chat", "status": 200}
    return msgspec.convert({**usual, **fields}, Entry)


async def count(database: Database) -> int:
    async with database.session() as session:
        return await session.scalar(select(func.count()).select_from(UsageRow)) or 0


async def count_if_there(database: Database) -> int:
    try:
        return await count(database)
    except OperationalError:
        return 0


class Away:
    """The database's file, put where it cannot be found."""

    def __init__(self, database: Database, state: Path) -> None:
        self._database = database
        self._file = state / "serving.db"

    async def go(self) -> None:
        await self._database.close()
        self._file.rename(self._file.with_suffix(".away"))
        self._file.mkdir()

    async def come_back(self) -> None:
        self._file.rmdir()
        self._file.with_suffix(".away").rename(self._file)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def away(database: Database, state: Path) -> Away:
    return Away(database, state)


@pytest.fixture
def ledger(configure: Configure, database: Database) -> Ledger:
    return Ledger(configure(), database)


async def test_a_row_is_written_as_it_was(either: Database, configure: Configure) -> None:
    ledger = Ledger(configure(), either)
    full = entry(
        request="abc",
        version=3,
        label="canary",
        engine="vllm",
        prompt_tokens=7,
        completion_tokens=9,
        cached_tokens=2,
        reasoning_tokens=1,
        finish_reason="stop",
        ttft=0.25,
        duration=1.5,
        shadow=True,
    )
    ledger.note(full)
    await ledger.flush()
    async with either.session() as session:
        row = await session.scalar(select(UsageRow))
    assert row is not None
    kept = {name: getattr(row, name) for name in Entry.__struct_fields__}
    assert kept == msgspec.structs.asdict(full)
    assert row.day == full.at.date().isoformat()


async def test_rows_are_written_in_batches_by_themselves_and_at_the_stop(
    ledger: Ledger, database: Database, configure: Configure
) -> None:
    ledger._settings.ledger = configure(ledger={"flush": 0.01}).ledger
    ledger.start()
    for _ in range(2 * BATCH + 1):
        ledger.note(entry())
    async with asyncio.timeout(10):
        while await count(database) < 2 * BATCH + 1:
            await asyncio.sleep(0.01)
    ledger._settings.ledger = configure(ledger={"flush": 1000}).ledger
    ledger.note(entry())
    await ledger.stop()
    assert await count(database) == 2 * BATCH + 2


async def test_a_stop_in_the_middle_of_a_batch_leaves_no_lock(
    database: Database, ledger: Ledger
) -> None:
    """Wherever it finds the batch: each stop comes a little later than the one before."""
    written = 0
    for delay in range(60):
        for _ in range(5):
            ledger.note(entry())
        written += 5
        writing = asyncio.ensure_future(ledger.flush())
        await asyncio.sleep(delay / 10_000)
        writing.cancel()
        await asyncio.wait({writing})
        async with asyncio.timeout(4):  # less than SQLite waits for a lock
            await ledger.flush()
        assert await count(database) == written


async def test_what_the_database_cannot_take_waits_for_it(
    ledger: Ledger, database: Database, away: Away
) -> None:
    await away.go()
    ledger.note(entry())
    await ledger.flush()
    assert "cannot be used" in ledger.fault
    await away.come_back()
    await ledger.flush()
    assert (ledger.fault, await count(database)) == ("", 1)


async def test_what_waits_at_the_stop_is_found_by_the_next_start(
    ledger: Ledger, database: Database, away: Away, configure: Configure, state: Path
) -> None:
    await away.go()
    for _ in range(BATCH + 1):
        ledger.note(entry())
    await ledger.stop()
    assert (state / "ledger.spool").stat().st_mode & 0o777 == 0o600
    await away.come_back()
    again = Ledger(configure(), database)
    again.note(entry())
    await again.flush()
    assert await count(database) == BATCH + 2
    assert not (state / "ledger.spool").exists()


async def test_rows_that_are_written_already_are_not_written_twice(
    ledger: Ledger, database: Database, state: Path
) -> None:
    first = entry()
    ledger.note(first)
    await ledger.flush()
    half = msgspec.json.encode(entry())[:20]  # as a kill leaves it
    (state / "ledger.spool").write_bytes(msgspec.json.encode(first) + b"\n" + half)
    await ledger.flush()
    assert await count(database) == 1


async def test_rows_wait_on_the_disk_as_far_as_there_is_room(
    ledger: Ledger, away: Away, configure: Configure, state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    size = len(msgspec.json.encode(entry())) + 1
    room = 10
    settings = configure(ledger={"flush": 0.01, "spool_bytes": room * (size + 8)})
    ledger._settings.ledger = settings.ledger
    await away.go()
    ledger.start()
    for _ in range(25):
        ledger.note(entry())
    async with asyncio.timeout(20):
        while ledger.lost == 0:
            await asyncio.sleep(0.01)
    kept = len((state / "ledger.spool").read_bytes().splitlines())
    assert room <= kept < 25
    assert ledger.lost == 25 - kept
    assert "the spool is full" in caplog.text
    await ledger.stop()
    await away.come_back()


async def test_a_strict_row_is_on_a_disk_when_it_is_said_to_be(
    ledger: Ledger, database: Database, away: Away, state: Path
) -> None:
    await ledger.commit(entry())
    assert await count(database) == 1
    await away.go()
    await ledger.commit(entry())
    assert len((state / "ledger.spool").read_bytes().splitlines()) == 1
    await away.come_back()
    await ledger.commit(entry())
    await ledger.flush()
    assert await count(database) == 3


async def test_strict_rows_do_not_each_wait_for_a_database_that_is_away(
    ledger: Ledger, database: Database, monkeypatch: pytest.MonkeyPatch, state: Path
) -> None:
    tries = 0

    async def fail_slowly(entries: list[Entry]) -> None:
        nonlocal tries
        tries += 1
        await asyncio.sleep(0.05)
        raise DatabaseError("away")

    monkeypatch.setattr(ledger, "_insert", fail_slowly)
    async with asyncio.timeout(10):
        await asyncio.gather(*(ledger.commit(entry()) for _ in range(1000)))
    assert tries < 20
    assert len((state / "ledger.spool").read_bytes().splitlines()) == 1000


async def test_a_row_that_the_database_does_not_take_holds_up_no_other(
    postgres: Server, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_URL", postgres.make("refuses"))
    database = Database(configure(database={"url_env": "THE_URL"}))
    await database.migrate()
    ledger = Ledger(configure(), database)
    for model in ("chat", "chat\0", "x" * 201, "chat"):
        ledger.note(entry(model=model))
    await ledger.flush()
    assert (ledger.fault, ledger.lost, await count(database)) == ("", 2, 2)
    await database.close()


@pytest.mark.parametrize("after", [1, 2, 3, 4])
async def test_a_database_that_comes_back_in_the_midst_of_a_batch_has_refused_none(
    ledger: Ledger, database: Database, away: Away, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """After so many of: the batch, its first row, a look at the database, its first row again."""
    steps = 0

    def counted(step: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        async def then_come_back(*args: object) -> None:
            nonlocal steps
            steps += 1
            this = steps
            try:
                await step(*args)
            finally:
                if this == after:
                    await away.come_back()

        return then_come_back

    monkeypatch.setattr(ledger, "_insert", counted(ledger._insert))
    monkeypatch.setattr(database, "check", counted(database.check))
    await away.go()
    for _ in range(3):
        ledger.note(entry())
    while await count_if_there(database) < 3:
        await ledger.flush()
    assert (ledger.fault, ledger.lost) == ("", 0)


async def test_strict_rows_are_all_kept_while_the_database_comes_and_goes(
    ledger: Ledger, database: Database, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, insert, check = time.monotonic(), ledger._insert, database.check

    def check_that_it_is_there() -> None:
        if int((time.monotonic() - began) * 100) % 2 == 0:  # ten milliseconds it is, ten it is not
            raise DatabaseError("It is away.")

    async def insert_if_there(entries: list[Entry]) -> None:
        check_that_it_is_there()
        await insert(entries)

    async def check_if_there() -> None:
        check_that_it_is_there()
        await check()

    monkeypatch.setattr(ledger, "_insert", insert_if_there)
    monkeypatch.setattr(database, "check", check_if_there)

    async def commit(number: int) -> None:
        await asyncio.sleep(number / 1000)
        await ledger.commit(entry())

    await asyncio.gather(*(commit(number) for number in range(300)))
    monkeypatch.undo()
    await ledger.flush()
    assert (ledger.lost, await count(database)) == (0, 300)
    assert not (state / "ledger.spool").exists()


async def test_a_postgresql_server_that_is_silent_holds_nothing_up_for_good(
    postgres: Server, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_URL", postgres.make("silent"))
    settings = configure(database={"url_env": "THE_URL"})
    accounts = Accounts(settings)
    await accounts.database.migrate()
    await accounts.start()
    await accounts.ledger.commit(entry())
    with postgres.hanging():
        async with asyncio.timeout(30):
            await accounts.ledger.commit(entry())
        assert "does not answer" in accounts.ledger.fault
        assert accounts.ledger.spooled
        async with asyncio.timeout(30):
            await accounts.stop()
    later = Accounts(settings)
    await later.ledger.flush()
    assert await count(later.database) == 2
    await later.stop()


async def test_usage_is_added_up_by_any_groups(either: Database, configure: Configure) -> None:
    ledger = Ledger(configure(), either)
    monday, tuesday = datetime(2026, 11, 23, 23, tzinfo=UTC), datetime(2026, 11, 24, tzinfo=UTC)
    tokens = {"prompt_tokens": 10, "completion_tokens": 5, "cached_tokens": 4}
    for fields in (
        {"at": monday, "version": 1, **tokens},
        {"at": tuesday, "version": 1, **tokens},
        {"at": tuesday, "version": 2, **tokens, "status": 502},
        {"at": tuesday, "version": 2, **tokens, "shadow": True},
        {"at": tuesday, "key": None, "version": 2, **tokens},
    ):
        ledger.note(entry(**fields))
    await ledger.flush()
    assert await used(either, ["day", "version"]) == [
        Used({"day": "2026-11-23", "version": 1}, 1, 0, 10, 5, 4, 0),
        Used({"day": "2026-11-24", "version": 1}, 1, 0, 10, 5, 4, 0),
        Used({"day": "2026-11-24", "version": 2}, 2, 1, 20, 10, 8, 0),
    ]
    since_tuesday = await used(either, ["key"], since=date(2026, 11, 24))
    assert {row.group["key"]: row.requests for row in since_tuesday} == {None: 1, "ann": 2}
    assert [row.requests for row in await used(either, [], until=date(2026, 11, 23))] == [1]
    assert [row.requests for row in await used(either, ["model"], shadow=True)] == [1]


async def test_a_postgresql_server_that_goes_away_loses_no_row_and_doubles_none(
    postgres: Server, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_URL", postgres.make("away"))
    database = Database(configure(database={"url_env": "THE_URL"}))
    await database.migrate()
    ledger = Ledger(configure(ledger={"flush": 0.01}), database)
    ledger.start()
    noted = 0

    async def load(seconds: float) -> None:
        nonlocal noted
        async with asyncio.timeout(seconds + 10):
            for _ in range(int(seconds * 1000)):
                ledger.note(entry())
                noted += 1
                await asyncio.sleep(0.001)

    try:
        await load(0.5)
        await asyncio.gather(load(1), asyncio.to_thread(postgres.stop))
        assert ledger.fault
        await asyncio.gather(load(0.5), asyncio.to_thread(postgres.start))
        async with asyncio.timeout(20):
            while ledger.fault or await count(database) < noted:
                await asyncio.sleep(0.05)
        assert await count(database) == noted
    finally:
        await ledger.stop()
        await database.close()
