"""Requests and tokens are reserved before and settled after, by key and by model."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from gateway_client import settings

from serving.accounts.keys import ApiKey
from serving.contract.chat import ChatRequest
from serving.contract.embeddings import EmbeddingRequest
from serving.contract.errors import ApiError
from serving.gateway.auth import Caller
from serving.gateway.limits import Limiter
from serving.settings import Quota


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Ten seconds into a minute that begins a day, and moved by the tests."""

    class Clock:
        now = 86400.0 * 20000 + 10

    monkeypatch.setattr("serving.gateway.limits.time.time", lambda: Clock.now)
    return Clock


def caller(**quota: int) -> Caller:
    key = ApiKey(
        id="abc",
        name="ann",
        digest=b"",
        scopes=frozenset({"inference"}),
        models=None,
        labels=None,
        quota=Quota(**quota) if quota else None,
        created=datetime.now(UTC),
        expires=None,
        revoked=None,
    )
    return Caller("abc", key)


def request(**fields: Any) -> ChatRequest:
    body = {"model": "chat", "messages": [{"role": "user", "content": "x" * 36}], **fields}
    return ChatRequest.model_validate(body)


def limiter(model: dict[str, int] | None = None, per_key: dict[str, int] | None = None) -> Limiter:
    made = settings()
    section = made.models["chat"].model_copy(update={"limits": Quota(**(model or {}))})
    made.models = {"chat": section}
    made.limits = made.limits.model_copy(update={"per_key": Quota(**(per_key or {}))})
    return Limiter(made)


async def refused(limiter: Limiter, who: Caller, **fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await limiter.reserve(who, request(**fields))
    assert (caught.value.status, caught.value.code) == (429, "rate_limit_exceeded")
    return caught.value


async def test_without_limits_nothing_is_counted() -> None:
    reservation = await limiter().reserve(caller(), request())
    assert (reservation.claim, reservation.headers) == (None, {})


async def test_requests_per_minute_come_back_with_the_next_minute(clock: Any) -> None:
    counters, who = limiter(), caller(requests_per_minute=2)
    for left in (1, 0):
        reservation = await counters.reserve(who, request())
        assert reservation.headers == {
            "x-ratelimit-limit-requests": "2",
            "x-ratelimit-remaining-requests": str(left),
            "x-ratelimit-reset-requests": "50s",
        }
        await counters.settle(reservation, 7)  # a request that was answered stays one
    error = await refused(counters, who)
    assert error.message == "The key abc may take 2 requests per minute; ask again in 50 s."
    assert error.headers["retry-after"] == "50"
    assert error.headers["x-ratelimit-remaining-requests"] == "0"
    clock.now += 50
    assert (await counters.reserve(who, request())).headers


async def test_a_refused_request_takes_nothing() -> None:
    counters = limiter(model={"tokens_per_minute": 100})
    who = caller(requests_per_minute=3, concurrent=1)
    error = await refused(counters, who, max_tokens=100)
    assert "The model chat may take 100 tokens per minute; this request may take 110" in str(error)
    for _ in range(3):
        reservation = await counters.reserve(who, request(max_tokens=20))
        await counters.settle(reservation, 0)
    assert counters.running == {}
    assert counters.refusals == {"tokens": 1}


async def test_tokens_are_reserved_and_settled_by_what_was_used(clock: Any) -> None:
    counters, who = limiter(), caller(tokens_per_minute=100)
    first = await counters.reserve(who, request(max_tokens=80))  # and 10 of the prompt
    await refused(counters, who, max_tokens=1)
    await counters.settle(first, 30)
    second = await counters.reserve(who, request(max_tokens=60))
    assert second.headers["x-ratelimit-remaining-tokens"] == "0"
    await counters.settle(second, 75)  # more than was thought
    await refused(counters, who, max_tokens=1)


async def test_what_is_given_back_late_counts_for_its_own_window(clock: Any) -> None:
    counters, who = limiter(), caller(tokens_per_minute=100)
    late = await counters.reserve(who, request(max_tokens=90))
    clock.now += 60
    await counters.settle(late, 0)
    assert (await counters.reserve(who, request(max_tokens=90))).tokens == 100
    await refused(counters, who, max_tokens=1)


async def test_a_day_has_a_budget_of_its_own(clock: Any) -> None:
    counters, who = limiter(), caller(tokens_per_day=100)
    await counters.settle(await counters.reserve(who, request(max_tokens=90)), 100)
    clock.now += 3600
    error = await refused(counters, who, max_tokens=1)
    assert "100 tokens per day; this request may take 11; ask again in 82790 s" in error.message
    clock.now += 86400
    await counters.reserve(who, request(max_tokens=90))


async def test_so_many_requests_run_at_once() -> None:
    counters, who = limiter(), caller(concurrent=2)
    running = [await counters.reserve(who, request()) for _ in range(2)]
    error = await refused(counters, who)
    assert "The key abc has 2 requests running, its limit" in error.message
    await counters.settle(running[0], 0)
    await counters.settle(running[0], 0)  # once is enough
    running.append(await counters.reserve(who, request()))
    await refused(counters, who)
    assert counters.refusals == {"concurrent": 2}


async def test_a_key_without_limits_of_its_own_has_those_of_every_key() -> None:
    counters = limiter(per_key={"requests_per_minute": 1})
    await counters.reserve(caller(), request())
    await refused(counters, caller())
    await counters.reserve(caller(concurrent=5), request())


async def test_a_models_limit_is_for_all_its_callers_and_all_its_addresses() -> None:
    counters = limiter(model={"requests_per_minute": 3})
    await counters.reserve(caller(), request())
    await counters.reserve(Caller("10.0.0.7"), request(model="chat:3"))
    await counters.reserve(Caller("10.0.0.8"), request(model="chat@canary"))
    await refused(counters, Caller("10.0.0.9"), model="chat/law")
    await counters.reserve(Caller("10.0.0.9"), request(model="code"))


async def test_an_embedding_reserves_its_input_and_no_answer() -> None:
    asked = EmbeddingRequest.model_validate({"model": "chat", "input": "x" * 36})
    reservation = await limiter(model={"tokens_per_minute": 10}).reserve(caller(), asked)
    assert reservation.tokens == 10
