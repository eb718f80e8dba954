"""API keys: made, listed, revoked, rotated. A key is shown once, and kept as a digest.

A key is `sk-ID-SECRET`: the secret has 256 random bits, which no search can find, so that a plain
SHA-256 keeps it safe; the id is for people, and to look it up.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, get_args

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from serving.accounts.database import Database
from serving.accounts.tables import KeyRow, RevisionRow
from serving.accounts.undisturbed import undisturbed
from serving.settings import Quota

Scope = Literal["inference", "admin", "metrics"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"  # none is taken for another
_FORM = re.compile(r"sk-([a-z0-9]{8})-[A-Za-z0-9_-]{43}")


class KeyRefused(Exception):
    """A key that cannot be made or changed. The message says why."""


@dataclass(frozen=True)
class ApiKey:
    """What is known of a key. `models` and `labels` are those it may use, None meaning all;
    `quota` its own limits, None meaning those of every key."""

    id: str
    name: str
    digest: bytes
    scopes: frozenset[str]
    models: frozenset[str] | None
    labels: frozenset[str] | None
    quota: Quota | None
    created: datetime
    expires: datetime | None
    revoked: datetime | None

    def state(self, now: datetime) -> Literal["valid", "expired", "revoked"]:
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= now else "valid"

    def opens(self, presented: str) -> bool:
        """Whether it is this key, in a time that tells nothing."""
        return hmac.compare_digest(_digest(presented), self.digest)


def id_of(presented: str) -> str | None:
    """The id in what was presented as a key; None when it has not the form of one."""
    form = _FORM.fullmatch(presented)
    return form[1] if form else None


class Keys:
    """The keys in a database. Every method raises `DatabaseError`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @undisturbed
    async def create(
        self,
        name: str,
        *,
        scopes: Collection[str] = ("inference",),
        models: Iterable[str] | None = None,
        labels: Iterable[str] | None = None,
        quota: Quota | None = None,
        lifetime: timedelta | None = None,
    ) -> tuple[ApiKey, str]:
        """The new key, and the text of it that is never to be seen again. Raises `KeyRefused`."""
        unknown = sorted(set(scopes) - set(SCOPES))
        if unknown:
            raise KeyRefused(f"There is no scope {unknown[0]}; there are {', '.join(SCOPES)}.")
        now = datetime.now(UTC)
        row = KeyRow(
            name=name,
            scopes=sorted(scopes),
            models=None if models is None else sorted(models),
            labels=None if labels is None else sorted(labels),
            quota=None if quota is None else quota.model_dump(exclude_none=True),
            created=now,
            expires=None if lifetime is None else now + lifetime,
        )
        text = _issue(row)
        async with self._database.transaction() as session:
            session.add(row)
            await _changed(session)
        return _key(row), text

    @undisturbed
    async def list(self) -> list[ApiKey]:
        async with self._database.transaction() as session:
            rows = await session.scalars(select(KeyRow).order_by(KeyRow.created, KeyRow.id))
            return [_key(row) for row in rows]

    @undisturbed
    async def revoke(self, key_id: str) -> ApiKey:
        """For good, and within a second everywhere. Raises `KeyRefused` for an unknown one."""
        async with self._database.transaction() as session:
            row = await _row(session, key_id)
            row.revoked = row.revoked or datetime.now(UTC)
            await _changed(session)
        return _key(row)

    @undisturbed
    async def rotate(self, key_id: str, *, grace: timedelta) -> tuple[ApiKey, str]:
        """A new key with the rights of a valid one, which itself ends after `grace`. Raises
        `KeyRefused`."""
        now = datetime.now(UTC)
        async with self._database.transaction() as session:
            old = await _row(session, key_id)
            state = _key(old).state(now)
            if state != "valid":
                raise KeyRefused(f"The key {key_id} is {state}; create a new one.")
            new = KeyRow(
                name=old.name,
                scopes=old.scopes,
                models=old.models,
                labels=old.labels,
                quota=old.quota,
                created=now,
                expires=old.expires,
            )
            text = _issue(new)
            session.add(new)
            old.expires = min(now + grace, old.expires or datetime.max.replace(tzinfo=UTC))
            await _changed(session)
        return _key(new), text

    @undisturbed
    async def revision(self) -> int:
        """Another one means that keys have changed."""
        async with self._database.transaction() as session:
            number = await session.scalar(
                select(RevisionRow.number).where(RevisionRow.name == "keys")
            )
            return number or 0


async def _row(session: AsyncSession, key_id: str) -> KeyRow:
    row = await session.get(KeyRow, key_id, with_for_update=True)
    if row is None:
        raise KeyRefused(f"There is no key {key_id}; `serving keys list` shows them.")
    return row


async def _changed(session: AsyncSession) -> None:
    await session.execute(
        update(RevisionRow).where(RevisionRow.name == "keys").values(number=RevisionRow.number + 1)
    )


def _issue(row: KeyRow) -> str:
    """Makes a new key of the row. Returns its text."""
    row.id = "".join(secrets.choice(_ALPHABET) for _ in range(8))
    text = f"sk-{row.id}-{secrets.token_urlsafe(32)}"
    row.digest = _digest(text)
    return text


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _key(row: KeyRow) -> ApiKey:
    return ApiKey(
        id=row.id,
        name=row.name,
        digest=row.digest,
        scopes=frozenset(row.scopes),
        models=None if row.models is None else frozenset(row.models),
        labels=None if row.labels is None else frozenset(row.labels),
        quota=None if row.quota is None else Quota.model_validate(row.quota),
        created=row.created,
        expires=row.expires,
        revoked=row.revoked,
    )
