"""What holds for counters wherever they are: in memory, and in Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from counting import TEN, shared, shared_settings, window
from redis_server import Server

from serving.gateway import counters as module
from serving.gateway.counters import Claim, Counters, LocalCounters, Slot, Window

pytestmark = pytest.mark.usefixtures("deadline")


@pytest.fixture(params=["memory", "redis"])
async def counters(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Counters]:
    if request.param == "redis":
        server: Server = request.getfixturevalue("redis")
        async with shared(shared_settings(server, monkeypatch)) as made:
            yield made
    else:
        local = LocalCounters()
        await local.start()
        yield local
        await local.stop()


async def test_many_at_once_never_take_more_slots_than_there_are(counters: Counters) -> None:
    running = most = done = 0

    async def ask() -> None:
        nonlocal running, most, done
        claim = await counters.claim(TEN, [])
        if not claim.taken:
            assert claim.full == TEN[0]
            return
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        done += 1
        await counters.settle(claim, [])

    for _ in range(5):
        await asyncio.gather(*(ask() for _ in range(200)))
    assert most == 10
    assert done >= 50
    assert counters.running == {}
    assert (await counters.claim(TEN, [])).taken


async def test_many_at_once_never_take_more_of_a_window_than_it_holds(counters: Counters) -> None:
    claims = await asyncio.gather(*(counters.claim([], [(window(), 3)]) for _ in range(200)))
    assert sum(claim.taken for claim in claims) == 33
    assert {claim.totals[0] for claim in claims if not claim.taken} == {99}
    assert (await counters.claim([], [(window(), 1)])).totals == [100]


async def test_all_is_taken_or_nothing(counters: Counters) -> None:
    key, model = Slot("key ann", 1), Slot("model chat", 1)
    first = await counters.claim([model], [(window(whose="model chat"), 100)])
    refused = [
        await counters.claim([key, model], [(window(), 5)]),
        await counters.claim([key], [(window(), 5), (window(whose="model chat"), 5)]),
    ]
    assert [(claim.taken, claim.full) for claim in refused] == [(False, model), (False, None)]
    await counters.settle(first, [0])
    claim = await counters.claim([key, model], [(window(), 100)])
    assert (claim.taken, claim.totals) == (True, [100])


async def test_a_window_is_settled_up_and_down_in_its_own_time(counters: Counters) -> None:
    this, next_one = window(), window(ends=window().ends + 86400)

    async def take(*windows: tuple[Window, int]) -> Claim:
        return await counters.claim([], windows)

    await counters.settle(await take((this, 60)), [-50])
    assert (await take((this, 1), (next_one, 100))).totals == [11, 100]
    late = await take((this, 80))
    await counters.settle(late, [30])
    refused = await take((this, 1))
    assert (refused.taken, refused.totals) == (False, [121])


async def test_windows_that_are_over_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SWEEP_EVERY", 0.01)
    counters = LocalCounters()
    await counters.start()
    short = Window("key ann", "requests", 10, 1, 1.0)
    await counters.claim([], [(short, 1), (window(), 1)])
    kept = counters._storage.expirations
    assert kept.keys() == {short.name, window().name}
    async with asyncio.timeout(20):
        while short.name in kept:
            await asyncio.sleep(0.01)
    assert kept.keys() == {window().name}
    await counters.stop()
