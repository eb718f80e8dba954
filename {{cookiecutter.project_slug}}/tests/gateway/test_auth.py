"""Who is let in, and for what."""

from __future__ import annotations

import socket
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from gateway_client import settings

from serving.accounts.database import Database
from serving.accounts.keys import Keys
from serving.accounts.ring import KeyRing
from serving.contract.errors import ApiError
from serving.gateway.auth import Gate, on_loopback


@pytest.fixture
async def keys(tmp_path: Path) -> AsyncIterator[Keys]:
    made = settings()
    made.service = made.service.model_copy(update={"state": tmp_path})
    database = Database(made)
    await database.migrate()
    yield Keys(database)
    await database.close()


async def gate(keys: Keys) -> Gate:
    """With the keys there are by now."""
    ring = KeyRing(keys)
    await ring.start()
    await ring.stop()
    return Gate(ring, "keys")


def request(key: str | None = None, kind: str = "Bearer") -> dict[str, Any]:
    headers = [(b"host", b"x")]
    if key is not None:
        headers.append((b"authorization", f"{kind} {key}".encode()))
    return {"type": "http", "headers": headers, "client": ("10.0.0.7", 1)}


def refused(work: Any) -> tuple[int, str]:
    with pytest.raises(ApiError) as caught:
        work()
    return caught.value.status, caught.value.code


async def test_with_a_valid_key_one_is_known_by_it(keys: Keys) -> None:
    key, text = await keys.create("ann")
    gate_ = await gate(keys)
    for kind in ("Bearer", "bearer"):
        caller = gate_.enter(request(text, kind), "inference")
        assert (caller.id, caller.key) == (key.id, key)


async def test_without_one_nobody_gets_in(keys: Keys) -> None:
    _, text = await keys.create("ann")
    _, late = await keys.create("bob", lifetime=timedelta(0))
    gate_ = await gate(keys)
    for asked in (
        request(),
        request(""),
        request(text, "Basic"),
        request(text[:-1]),
        request(late),
        request("\xff" * 100),
    ):
        assert refused(lambda a=asked: gate_.enter(a, "inference")) == (401, "invalid_api_key")


async def test_a_key_is_good_for_its_scopes_only(keys: Keys) -> None:
    _, text = await keys.create("ann")
    _, admin = await keys.create("ops", scopes=["admin"])
    gate_ = await gate(keys)
    assert refused(lambda: gate_.enter(request(text), "admin")) == (403, "not_allowed")
    assert refused(lambda: gate_.enter(request(admin), "inference")) == (403, "not_allowed")
    assert gate_.enter(request(admin), "admin").key is not None


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("chat", True),
        ("chat@production", True),
        ("chat/law@production", True),
        ("chat@canary", False),
        ("chat:3", False),
        ("chat/law:3", False),
        ("code", False),
        ("code@production", False),
        ("", False),
    ],
)
async def test_a_key_opens_its_models_and_labels(keys: Keys, address: str, allowed: bool) -> None:
    _, text = await keys.create("ann", models=["chat"], labels=["production"])
    caller = (await gate(keys)).enter(request(text), "inference")
    if allowed:
        caller.check(address)
    else:
        assert refused(lambda: caller.check(address)) == (403, "not_allowed")


async def test_where_no_keys_are_wanted_a_caller_is_an_address(keys: Keys) -> None:
    ring = KeyRing(keys)
    for gate_ in (Gate(), Gate(ring, "open_to_everybody")):
        caller = gate_.enter(request(), "inference")
        assert (caller.id, caller.key) == ("10.0.0.7", None)
        caller.check("chat:3")


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """What BentoML's worker is told of a socket."""
    made: list[socket.socket] = []

    def worker(host: str, family: int = socket.AF_INET) -> None:
        listening = socket.socket(family)
        listening.bind((host, 0))
        made.append(listening)
        monkeypatch.setattr(sys, "argv", ["worker", "--fd", str(listening.fileno()), "--x"])

    yield worker
    for listening in made:
        listening.close()


def test_keys_are_wanted_unless_only_this_machine_can_reach_it(worker: Any, keys: Keys) -> None:
    ring = KeyRing(keys)
    worker("127.0.0.1")
    assert on_loopback()
    assert not Gate(ring, "auto").wanted
    assert Gate(ring, "keys").wanted
    worker("0.0.0.0")
    assert not on_loopback()
    assert Gate(ring, "auto").wanted
    assert not Gate(ring, "open_to_everybody").wanted


def test_what_does_not_show_counts_as_reachable(
    keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["anything"])
    assert Gate(KeyRing(keys), "auto").wanted
