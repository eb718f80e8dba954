"""Model addresses, and what a request gets when nothing can answer it yet."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from serving.contract.errors import ApiError
from serving.runtime.replica import Replica, State
from serving.runtime.routing import Router, Snapshot, Target

REPLICA = cast(Replica, object())


def target(state: State = State.READY, load: Any = lambda: None) -> Target:
    replica = REPLICA if state == State.READY else None
    return Target("chat", 3, datetime(2026, 1, 1, tzinfo=UTC), state, replica, load)


def router(of: Target, patience: float = 10) -> Router:
    router = Router(patience)
    router.publish(Snapshot({"chat": of}))
    return router


@pytest.mark.parametrize("address", ["chat", "chat:3", "chat@production"])
async def test_a_model_is_addressed_by_name_by_version_and_by_label(address: str) -> None:
    route = await router(target()).route(address)
    assert (route.target.tag, route.label) == ("chat:3", "production")
    assert route.replica is REPLICA


@pytest.mark.parametrize(
    "address",
    [
        "",
        "Chat",
        "cha",
        "chat2",
        "chat:",
        "chat:0",
        "chat:03",
        "chat:1",
        "chat:30",
        "chat:-3",
        "chat: 3",
        "chat:3 ",
        "chat:3x",
        "chat:latest",
        "chat:" + "9" * 5000,
        "chat@",
        "chat@canary",
        "chat@production@x",
        "chat:3@production",
        "@production",
        ":3",
        "../chat",
        "nobody",
    ],
)
async def test_an_address_that_names_nothing_served_is_not_found(address: str) -> None:
    with pytest.raises(ApiError) as caught:
        await router(target()).route(address)
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")
    assert caught.value.param == "model"


@pytest.mark.parametrize(
    ("state", "code"),
    [
        (State.LOADING, "model_loading"),
        (State.WARMING, "model_loading"),
        (State.FAILED, "model_failed"),
    ],
)
async def test_a_model_that_cannot_answer_now_says_why_and_when_to_ask_again(
    state: State, code: str
) -> None:
    with pytest.raises(ApiError) as caught:
        await router(target(state)).route("chat")
    assert (caught.value.status, caught.value.code) == (503, code)
    assert caught.value.headers["retry-after"].isdigit()


async def test_requests_for_a_lazy_model_ask_for_it_and_wait_until_it_is_there() -> None:
    asked = 0

    def load() -> None:
        nonlocal asked
        asked += 1

    lazy = router(target(State.UNLOADED, load))
    waiting = [asyncio.ensure_future(lazy.route("chat")) for _ in range(5)]
    await asyncio.sleep(0)
    assert asked == 5
    lazy.publish(Snapshot({"chat": target(State.LOADING)}))
    await asyncio.sleep(0)
    assert not any(request.done() for request in waiting)
    lazy.publish(Snapshot({"chat": target()}))
    routes = await asyncio.gather(*waiting)
    assert all(route.replica is REPLICA for route in routes)


async def test_a_lazy_model_that_fails_ends_the_waiting_at_once() -> None:
    lazy = router(target(State.UNLOADED))
    waiting = asyncio.ensure_future(lazy.route("chat"))
    await asyncio.sleep(0)
    lazy.publish(Snapshot({"chat": target(State.FAILED)}))
    with pytest.raises(ApiError) as caught:
        await waiting
    assert caught.value.code == "model_failed"


async def test_waiting_for_a_lazy_model_ends_when_the_patience_does() -> None:
    with pytest.raises(ApiError) as caught:
        await router(target(State.UNLOADED), patience=0.02).route("chat")
    assert caught.value.code == "model_loading"


async def test_a_model_that_is_loading_for_everybody_is_not_waited_for() -> None:
    began = asyncio.get_running_loop().time()
    with pytest.raises(ApiError):
        await router(target(State.LOADING)).route("chat")
    assert asyncio.get_running_loop().time() - began < 1


async def test_a_request_holds_the_snapshot_it_began_with() -> None:
    changing = router(target())
    route = await changing.route("chat")
    changing.publish(Snapshot({"chat": target(State.LOADING)}))
    assert route.replica is REPLICA
    assert route.target.state == State.READY


async def test_before_the_first_snapshot_nothing_is_served() -> None:
    with pytest.raises(ApiError) as caught:
        await Router(1).route("chat")
    assert caught.value.status == 404
