"""Counters in Redis: shared by processes, and what becomes of them when one of those is away."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable
from typing import Any

import pytest
from counting import TEN, shared, shared_settings, window
from redis_server import PASSWORD, Server

from serving.contract.errors import ApiError
from serving.gateway import redis_line
from serving.gateway.counters import Claim
from serving.gateway.shared_counters import SharedCounters
from serving.gateway.shared_scripts import RENEW
from serving.settings import Settings

pytestmark = pytest.mark.usefixtures("deadline")

RUNNING = "{serving/llm}/key ann/running"


@pytest.fixture
def configured(redis: Server, monkeypatch: pytest.MonkeyPatch) -> Settings:
    return shared_settings(redis, monkeypatch)


def taken(server: Server) -> int:
    """Slots in Redis, whose lease may be over."""
    with server.client() as client:
        return int(client.zcard(RUNNING))


async def until(ask: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + 20
    while not ask():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.02)


async def ask(counters: SharedCounters, tokens: int = 1) -> Claim:
    """As a request of ann does. Takes no longer than a client may wait."""
    began = time.monotonic()
    async with asyncio.timeout(20):
        claim = await counters.claim(TEN, [(window(), tokens)])
    assert time.monotonic() - began < 2.5
    return claim


async def test_two_processes_count_together(configured: Settings, redis: Server) -> None:
    async with shared(configured) as one, shared(configured) as other:
        claims = await asyncio.gather(*(ask(counters) for counters in [one, other] * 10))
        assert sum(claim.taken for claim in claims) == 10
        assert (one.running + other.running).total() == 10
        for counters, claim in zip([one, other] * 10, claims, strict=True):
            if claim.taken:
                await counters.settle(claim, [4])
        await until(lambda: taken(redis) == 0, "all slots are free")
        assert (await ask(other, 50)).totals == [100]
        assert (await ask(one)).taken is False


async def test_services_of_other_names_count_apart(configured: Settings) -> None:
    other = configured.model_copy(
        update={"service": configured.service.model_copy(update={"name": "other"})}
    )
    async with shared(configured) as one, shared(other) as two:
        assert (await ask(one, 100)).totals == (await ask(two, 100)).totals == [100]


async def test_slots_of_a_killed_service_come_back(configured: Settings, redis: Server) -> None:
    async with shared(configured, lease=0.3) as killed, shared(configured) as other:
        assert all([(await ask(killed)).taken for _ in range(10)])
        end = time.monotonic() + 1  # which is more than a lease
        while time.monotonic() < end:
            assert (await ask(other)).taken is False
        killed._renewer.cancel()  # type: ignore[union-attr]
        async with asyncio.timeout(20):
            while not (claim := await ask(other)).taken:
                await asyncio.sleep(0.02)
        assert claim.taken


async def test_a_slot_freed_while_it_is_renewed_stays_free(
    configured: Settings, redis: Server
) -> None:
    async with shared(configured, lease=0.003) as counters:  # renewed every millisecond
        for _ in range(300):
            claim = await ask(counters, 0)
            await asyncio.sleep(random.random() / 500)
            await counters.settle(claim, [0])
    # As fast as that, leases end by themselves too. And slower, by hand: the renewal is sent by a
    # connection that another one overtakes.
    async with shared(configured) as counters:
        claim = await ask(counters)
        (renewal,) = counters._renewal("XX")
        assert taken(redis) == 1
        await counters.settle(claim, [0])
        await until(lambda: taken(redis) == 0, "it is free")
        with redis.client() as late:
            late.eval(RENEW, len(renewal.keys), *renewal.keys, *renewal.args)
        assert taken(redis) == 0


async def test_a_slot_freed_while_redis_hangs_with_its_renewal_stays_free(
    configured: Settings, redis: Server
) -> None:
    async with shared(configured) as counters:
        claim = await ask(counters)
        with redis.hanging():
            for call in counters._renewal("XX"):
                counters._line.send(call)
            await asyncio.sleep(0)
            await counters.settle(claim, [0])
            await until(lambda: counters._line.away, "that Redis hangs is known")
        await until(lambda: not counters._line.away and taken(redis) == 0, "it is free")
        assert (await ask(counters)).taken
        assert taken(redis) == 1


async def test_a_request_that_leaves_while_it_waits_takes_nothing(
    configured: Settings, redis: Server
) -> None:
    async with shared(configured) as counters:
        for number in range(100):
            request = asyncio.ensure_future(ask(counters, 10))
            for _ in range(number % 10):
                await asyncio.sleep(0)
            if number % 3:
                await asyncio.sleep(random.random() / 2000)
            request.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                claim = await request
                await counters.settle(claim, [-10])
        await until(lambda: taken(redis) == 0, "all slots are free")
        assert counters.running == {}
        assert (await ask(counters, 100)).totals == [100]


# Redis away.


async def test_without_redis_each_counts_by_itself_and_says_so_once(
    configured: Settings, redis: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with shared(configured) as one, shared(configured) as other:
        before = await ask(one)
        redis.stop()
        claims = [await ask(one) for _ in range(12)]
        assert sum(claim.taken for claim in claims) == 9  # and the one from before
        assert (await ask(other)).taken
        redis.start()
        await until(lambda: taken(redis) == 11, "all that run are in Redis again")
        assert (await ask(other)).taken is False
        for claim in [before, *claims]:
            if claim.taken:
                await one.settle(claim, [0])
        await until(lambda: taken(redis) == 1, "what was taken here or there is free")
    told = [record.getMessage() for record in caplog.records if "Redis" in record.getMessage()]
    assert sum("Until it is back, this service counts" in line for line in told) == 2
    assert sum("is back: limits are shared again" in line for line in told) == 2
    assert len(told) == 4
    assert PASSWORD not in caplog.text


async def test_closed_lets_nobody_in_who_has_limits(
    redis: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = shared_settings(redis, monkeypatch, on_failure="closed")
    async with shared(settings) as counters:
        claim = await ask(counters)
        redis.stop()
        for _ in range(20):
            with pytest.raises(ApiError, match="The limits cannot be checked") as caught:
                await ask(counters)
        assert (caught.value.status, caught.value.headers["retry-after"]) == (503, "2")
        await counters.settle(claim, [0])
        assert counters.running == {}
        redis.start()
        await until(lambda: not counters._line.away, "Redis is back")
        assert (await ask(counters)).taken
    assert "Requests that have limits get a 503 until it is back." in caplog.text


@pytest.mark.parametrize("policy", ["open", "closed"])
async def test_nobody_waits_long_for_a_redis_that_hangs(
    redis: Server, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    settings = shared_settings(redis, monkeypatch, on_failure=policy)
    async with shared(settings) as counters:
        with redis.hanging():
            for _ in range(2):
                met = await asyncio.gather(
                    *(ask(counters, 0) for _ in range(100)), return_exceptions=True
                )
                let_in = [claim for claim in met if isinstance(claim, Claim) and claim.taken]
                refused = [error for error in met if isinstance(error, ApiError)]
                assert (len(let_in), len(refused)) == ((10, 0) if policy == "open" else (0, 100))
                for claim in let_in:
                    await counters.settle(claim, [0])
        await until(lambda: not counters._line.away, "Redis is back")
        # What it was asked as it hung is undone: no slot waits for its lease to end.
        await until(lambda: taken(redis) == 0, "all slots are free")


async def test_what_is_settled_meanwhile_is_told_redis_when_it_is_back(
    configured: Settings, redis: Server
) -> None:
    async with shared(configured) as counters, shared(configured) as other:
        claims = [await ask(counters, 20) for _ in range(5)]
        with redis.hanging():
            await until(lambda: _poked(counters), "that Redis hangs is known")
            for claim in claims:
                await counters.settle(claim, [-15])
            assert taken_nothing(counters)
        await until(lambda: taken(redis) == 0, "all slots are free")
        assert (await ask(other, 75)).totals == [100]
        assert counters.settle_errors == 0


async def test_a_long_absence_does_not_fill_the_memory(
    configured: Settings, redis: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_line, "HELD", 3)
    async with shared(configured) as counters:
        claims = [await ask(counters) for _ in range(5)]
        redis.stop()
        await until(lambda: _poked(counters), "that Redis is away is known")
        waiting = len(counters._line._queue)
        for claim in claims:
            await counters.settle(claim, [-1])
        assert counters.settle_errors == waiting + 5 - 3
        assert len(counters._line._queue) == 3


async def test_a_redis_without_a_place_to_write_is_as_good_as_away(
    configured: Settings, redis: Server, caplog: pytest.LogCaptureFixture
) -> None:
    async with shared(configured) as counters:
        with redis.client() as client:
            client.config_set("maxmemory", "1")
            await until(lambda: _poked(counters), "it is known")
            assert (await ask(counters)).taken
            client.config_set("maxmemory", "0")
        await until(lambda: not counters._line.away, "Redis is back")
    assert (
        "cannot be used: it says command not allowed when used memory > 'maxmemory'." in caplog.text
    )
    assert caplog.text.count("cannot be used") == 1


async def test_the_password_is_not_told(
    redis: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = shared_settings(redis, monkeypatch)
    monkeypatch.setenv("THE_REDIS", redis.url.replace(PASSWORD, "another-secret"))
    async with shared(settings) as counters:
        assert (await ask(counters)).taken
    assert "cannot be used: it does not take the user and password." in caplog.text
    assert "another-secret" not in caplog.text


def _poked(counters: SharedCounters) -> bool:
    """Whether it knows that Redis is away; asks it for something that changes nothing."""
    for call in counters._renewal("XX") or [_nothing()]:
        counters._line.send(call)
    return counters._line.away


def _nothing() -> redis_line.Call:
    return redis_line.Call(RENEW, [RUNNING], [1, "XX", "nobody"])


def taken_nothing(counters: SharedCounters) -> bool:
    return counters.running == {} and counters._held == {}
