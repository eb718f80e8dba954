"""The ledger: one row for each request, written off the requests' way.

Rows wait in memory for the next batch. While the database is away they wait in a file, the spool,
which a restart finds again. Each has an id of its own, so that none is ever written twice. What a
hard kill loses are the rows in memory: those of the time between two batches, and of the time that
the database takes to answer or to fail.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
from collections import deque
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from sqlalchemy.dialects import postgresql, sqlite

from serving.accounts.database import Database, DatabaseError
from serving.accounts.tables import UsageRow
from serving.accounts.undisturbed import undisturbed
from serving.settings import Settings

log = logging.getLogger("bentoml.serving")

#: Rows in one transaction.
BATCH = 500
#: Rows of a batch that may be refused one by one before the database itself counts as away.
PATIENT = 3


class Entry(msgspec.Struct):
    """One row; see `tables.UsageRow`."""

    request: str
    key: str | None
    model: str
    status: int
    version: int | None = None
    label: str | None = None
    engine: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    finish_reason: str | None = None
    ttft: float | None = None
    duration: float = 0.0
    shadow: bool = False
    at: datetime = msgspec.field(default_factory=lambda: datetime.now(UTC))
    id: str = msgspec.field(default_factory=lambda: secrets.token_hex(16))


class Bookkeeper:
    """Keeps no books: for an application without a database, and what `Ledger` is to requests."""

    def note(self, entry: Entry) -> None:
        """To be written with the next batch."""

    async def commit(self, entry: Entry) -> None:
        """Returns once it is on a disk."""


class Ledger(Bookkeeper):
    """`fault` says why rows wait, if they do longer than they should; `lost` counts those for which
    there was no room."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self.fault = ""
        self.lost = 0
        self._settings = settings
        self._database = database
        self._waiting: deque[Entry] = deque()
        self._spool = settings.service.state / "ledger.spool"
        self._writing = asyncio.Lock()
        self._writer: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Rows in memory that are not written yet."""
        return len(self._waiting)

    @property
    def spooled(self) -> int:
        """Bytes of rows in the spool."""
        try:
            return self._spool.stat().st_size
        except OSError:
            return 0

    def start(self) -> None:
        self._writer = asyncio.ensure_future(self._write_on())

    async def stop(self) -> None:
        """Everything is in the database afterwards, or in the spool."""
        if self._writer is not None:
            self._writer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._writer
        await self.flush()
        await self._put_aside()

    def note(self, entry: Entry) -> None:
        """To be written with the next batch."""
        self._waiting.append(entry)

    async def commit(self, entry: Entry) -> None:
        """Returns once it is on a disk: the database's, or the spool's."""
        self._waiting.append(entry)
        async with self._writing:
            if not self.fault:
                await self._write_all()
            if self.fault:  # it is the writer that looks whether the database is back
                await asyncio.to_thread(self._spool_rows)

    async def flush(self) -> None:
        """Writes all that waits, unless the database is away."""
        async with self._writing:
            await self._write_all()

    async def _write_all(self) -> None:
        try:
            if self.fault:
                await self._database.check()  # before a spool is read that may be large
            if self._spool.exists():
                await self._write_spool()
            while self._waiting:
                batch = [self._waiting[i] for i in range(min(BATCH, len(self._waiting)))]
                await self._write(batch)
                for _ in batch:
                    self._waiting.popleft()
        except DatabaseError as error:
            if not self.fault:
                log.error("%s The ledger's rows wait for it.", error)
            self.fault = str(error)
        else:
            if self.fault:
                log.info("the ledger is written again")
            self.fault = ""

    async def _write_on(self) -> None:
        while True:
            await asyncio.sleep(self._settings.ledger.flush)
            try:
                await self.flush()
            except Exception:  # a defect of ours: the rows wait
                log.exception("the ledger could not be written; trying on")
            if self.fault:
                await self._put_aside()

    async def _write(self, entries: list[Entry]) -> None:
        """All of them, or all but those that no database takes: one row must not hold up the rest.
        When none is taken, it is the database that is at fault."""
        try:
            await self._insert(entries)
        except DatabaseError:
            await self._database.check()  # away: no use to try the rows one by one
            refused = 0
            for entry in entries:
                if await self._is_refused(entry):
                    refused += 1
                    if refused == len(entries) or refused > PATIENT:
                        raise
            if refused:
                self._lose(refused, "the database does not take them")

    async def _is_refused(self, entry: Entry) -> bool:
        """Whether the database takes all but this one. Raises `DatabaseError` while it is away:
        what it refused just before it came back says nothing of the row."""
        for _ in range(2):
            try:
                await self._insert([entry])
                return False
            except DatabaseError:
                await self._database.check()
        return True

    @undisturbed
    async def _insert(self, entries: list[Entry]) -> None:
        dialect = postgresql if self._database.postgresql else sqlite
        rows = [{**msgspec.structs.asdict(e), "day": e.at.date().isoformat()} for e in entries]
        statement = dialect.insert(UsageRow.__table__).on_conflict_do_nothing()
        async with self._database.transaction() as session:
            await session.execute(statement, rows)

    # The spool.

    async def _put_aside(self) -> None:
        """Moves the rows from memory into the spool. Not while a batch is written: it is of the
        oldest rows, and so is the spool."""
        async with self._writing:
            await asyncio.to_thread(self._spool_rows)

    def _spool_rows(self) -> None:
        lines = []
        while self._waiting:
            lines.append(msgspec.json.encode(self._waiting.popleft()) + b"\n")
        if not lines:
            return
        try:
            self._spool.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._spool, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            with os.fdopen(descriptor, "ab") as spool:
                room = self._settings.ledger.spool_bytes - spool.tell()
                for position, line in enumerate(lines):
                    room -= len(line)
                    if room < 0:
                        self._lose(len(lines) - position, "the spool is full")
                        break
                    spool.write(line)
                spool.flush()
                os.fsync(spool.fileno())
        except OSError as error:
            self._lose(len(lines), f"{self._spool} cannot be written ({error.strerror})")

    def _lose(self, count: int, why: str) -> None:
        self.lost += count
        log.error("the ledger lost %d rows: %s", count, why)

    async def _write_spool(self) -> None:
        """Into the database, and away with it. What a kill left half of is skipped."""
        data = await asyncio.to_thread(self._spool.read_bytes)
        entries = []
        for line in data.splitlines():
            with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
                entries.append(msgspec.json.decode(line, type=Entry))
        for first in range(0, len(entries), BATCH):
            await self._write(entries[first : first + BATCH])
        await asyncio.to_thread(_remove_beginning, self._spool, len(data))


def _remove_beginning(path: Path, size: int) -> None:
    """Of a file that may have grown meanwhile. A kill before it ends leaves rows that are written
    already, which does no harm."""
    rest = path.read_bytes()[size:]
    if rest:
        path.write_bytes(rest)
    else:
        path.unlink()
