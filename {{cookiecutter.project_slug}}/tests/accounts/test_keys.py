"""Keys are made, shown once, found again, revoked and rotated."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from serving.accounts.database import Database
from serving.accounts.keys import KeyRefused, Keys, id_of
from serving.accounts.ring import KeyRing


@pytest.fixture
async def ring(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[KeyRing]:
    monkeypatch.setattr("serving.accounts.ring.LOOK_EVERY", 0.01)
    ring = KeyRing(keys)
    await ring.start()
    yield ring
    await ring.stop()


async def news(ring: KeyRing, text: str, *, known: bool) -> None:
    async with asyncio.timeout(10):
        while (ring.find(text) is not None) != known:
            await asyncio.sleep(0.005)


async def test_a_key_is_a_readable_id_and_256_random_bits_of_which_only_the_digest_stays(
    keys: Keys, tmp_path: Path
) -> None:
    key, text = await keys.create("ann")
    assert re.fullmatch(rf"sk-{key.id}-[A-Za-z0-9_-]{{43}}", text)
    assert id_of(text) == key.id
    assert key.digest == hashlib.sha256(text.encode()).digest()
    assert (await keys.list()) == [key]
    secret = text.rsplit(f"{key.id}-", 1)[1].encode()
    files = await asyncio.to_thread(lambda: list(tmp_path.rglob("*.db*")))
    assert not any(secret in file.read_bytes() for file in files)


async def test_what_it_may_is_remembered(keys: Keys) -> None:
    key, _ = await keys.create(
        "ops",
        scopes=["admin", "inference"],
        models=["chat"],
        labels=["production"],
        lifetime=timedelta(days=30),
    )
    (listed,) = await keys.list()
    assert listed == key
    assert listed.scopes == {"admin", "inference"}
    assert listed.models == frozenset({"chat"})
    assert listed.labels == frozenset({"production"})
    assert listed.expires is not None
    assert listed.expires - listed.created == timedelta(days=30)


async def test_a_key_opens_at_once_and_no_more_once_it_is_revoked(
    keys: Keys, ring: KeyRing
) -> None:
    key, text = await keys.create("ann")
    await news(ring, text, known=True)
    assert ring.find(text) == key
    revoked = await keys.revoke(key.id)
    assert revoked.state(datetime.now(UTC)) == "revoked"
    await news(ring, text, known=False)
    again = await keys.revoke(key.id)
    assert again.revoked == revoked.revoked


async def test_an_expired_key_opens_no_more(keys: Keys, ring: KeyRing) -> None:
    _, text = await keys.create("ann", lifetime=timedelta(seconds=0.3))
    await news(ring, text, known=True)
    await news(ring, text, known=False)


async def test_what_is_nearly_a_key_opens_nothing(keys: Keys, ring: KeyRing) -> None:
    _, text = await keys.create("ann")
    await news(ring, text, known=True)
    wrong = "A" if text[-1] != "A" else "B"
    for nearly in (text[:-1] + wrong, text[:-1], text + "A", text.upper(), "", "sk-", f" {text}"):
        assert ring.find(nearly) is None


async def test_a_rotated_key_lives_on_for_its_grace_time(keys: Keys, ring: KeyRing) -> None:
    key, old = await keys.create("ann", models=["chat"])
    new_key, new = await keys.rotate(key.id, grace=timedelta(seconds=5))
    await news(ring, new, known=True)
    assert ring.find(old) is not None
    assert new_key.name == "ann"
    assert new_key.models == frozenset({"chat"})
    assert new_key.expires is None
    await news(ring, old, known=False)
    assert ring.find(new) == new_key
    with pytest.raises(KeyRefused, match="is expired; create a new one"):
        await keys.rotate(key.id, grace=timedelta(0))


async def test_a_scope_that_does_not_exist_is_refused(keys: Keys) -> None:
    with pytest.raises(KeyRefused, match="no scope root; there are inference, admin, metrics"):
        await keys.create("ann", scopes=["root"])
    assert await keys.list() == []


async def test_a_key_nobody_made_is_refused(keys: Keys) -> None:
    for work in (keys.revoke("nokey234"), keys.rotate("nokey234", grace=timedelta(0))):
        with pytest.raises(KeyRefused, match="There is no key nokey234"):
            await work


async def test_the_last_known_keys_stay_while_the_database_is_away(
    database: Database,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("serving.accounts.ring.LOOK_EVERY", 0.01)
    keys = Keys(database)
    ring = KeyRing(keys)
    await ring.start()
    _, text = await keys.create("ann")
    await news(ring, text, known=True)
    file = tmp_path / "state" / "serving.db"
    file.rename(file.with_suffix(".away"))
    await database.close()  # its connections would keep the file open
    file.mkdir()
    async with asyncio.timeout(10):
        while not ring.fault:
            await asyncio.sleep(0.005)
    assert "cannot be used" in ring.fault
    assert ring.find(text) is not None
    file.rmdir()
    file.with_suffix(".away").rename(file)
    async with asyncio.timeout(10):
        while ring.fault:
            await asyncio.sleep(0.005)
    _, another = await keys.create("bob")
    await news(ring, another, known=True)
    await ring.stop()
    assert sum("stay in force" in record.message for record in caplog.records) == 1
