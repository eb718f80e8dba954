"""The tables, as SQLAlchemy sees them. A change here needs a migration beside it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, DateTime, LargeBinary, String
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator


class Moment(TypeDecorator[datetime]):
    """A time in UTC. SQLite forgets time zones."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        moment: datetime | None = value
        return moment if moment is None or moment.tzinfo else moment.replace(tzinfo=UTC)


class Base(DeclarativeBase):
    pass


class KeyRow(Base):
    """One API key. `digest` is the SHA-256 of the whole key, which nobody keeps; a null list allows
    everything."""

    __tablename__ = "keys"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    digest: Mapped[bytes] = mapped_column(LargeBinary(32))
    scopes: Mapped[list[str]] = mapped_column(JSON)
    models: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    labels: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    quota: Mapped[dict[str, int] | None] = mapped_column(JSON(none_as_null=True))
    created: Mapped[datetime] = mapped_column(Moment)
    expires: Mapped[datetime | None] = mapped_column(Moment)
    revoked: Mapped[datetime | None] = mapped_column(Moment)


class UsageRow(Base):
    """One request and what it took; times in seconds. `model` is what was asked for; version, label
    and engine are null for one that reached none, key for a caller without one. `day` is that of
    `at`, in UTC."""

    __tablename__ = "usage"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    at: Mapped[datetime] = mapped_column(Moment, index=True)
    day: Mapped[str] = mapped_column(String(10))
    request: Mapped[str] = mapped_column(String(128))
    key: Mapped[str | None] = mapped_column(String(16), index=True)
    model: Mapped[str] = mapped_column(String(200))
    version: Mapped[int | None]
    label: Mapped[str | None] = mapped_column(String(63))
    engine: Mapped[str | None] = mapped_column(String(32))
    prompt_tokens: Mapped[int]
    completion_tokens: Mapped[int]
    cached_tokens: Mapped[int]
    reasoning_tokens: Mapped[int]
    status: Mapped[int]
    finish_reason: Mapped[str | None] = mapped_column(String(16))
    ttft: Mapped[float | None]
    duration: Mapped[float]
    shadow: Mapped[bool]


class RevisionRow(Base):
    """Grows with every change of what is called `name`, so that a look at it tells of news."""

    __tablename__ = "revisions"

    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    number: Mapped[int]
