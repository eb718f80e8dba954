"""Model addresses, and what a request gets when nothing can answer it yet."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest
from gateway_client import settings

from serving.contract.errors import ApiError
from serving.runtime.replica import Replica, State
from serving.runtime.routing import Router, ServedModel, Snapshot, Target


def replica(in_flight: int = 0) -> Replica:
    return cast(Replica, SimpleNamespace(in_flight=in_flight))


REPLICA = replica()


def target(
    state: State = State.READY,
    load: Any = lambda: None,
    *,
    number: int = 3,
    replicas: tuple[Replica, ...] = (REPLICA,),
    awaited: bool = False,
) -> Target:
    replicas = replicas if state == State.READY else ()
    created = datetime(2026, 1, 1, tzinfo=UTC)
    return Target("chat", number, created, state, replicas, load, awaited)


def snapshot(
    *targets: Target, labels: dict[str, int] | None = None, traffic: dict[str, int] | None = None
) -> Snapshot:
    """By default the first of the versions is in production."""
    versions = {target.number: target for target in targets}
    labels = {"production": targets[0].number, **(labels or {})}
    return Snapshot({"chat": ServedModel(versions, labels, traffic or {})})


def router(of: Target, patience: float = 10) -> Router:
    router = Router(settings(lazy=patience))
    router.publish(snapshot(of))
    return router


@pytest.mark.parametrize(
    ("address", "label"),
    [("chat", "production"), ("chat@production", "production"), ("chat:3", "")],
)
async def test_a_model_is_addressed_by_name_by_version_and_by_label(
    address: str, label: str
) -> None:
    route = await router(target()).route(address)
    assert (route.target.tag, route.label) == ("chat:3", label)
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

    lazy = router(target(State.UNAVAILABLE, load, awaited=True))
    waiting = [asyncio.ensure_future(lazy.route("chat")) for _ in range(5)]
    await asyncio.sleep(0)
    assert asked == 5
    lazy.publish(snapshot(target(State.LOADING, awaited=True)))
    await asyncio.sleep(0)
    assert not any(request.done() for request in waiting)
    lazy.publish(snapshot(target()))
    routes = await asyncio.gather(*waiting)
    assert all(route.replica is REPLICA for route in routes)


async def test_a_lazy_model_that_fails_ends_the_waiting_at_once() -> None:
    lazy = router(target(State.UNAVAILABLE, awaited=True))
    waiting = asyncio.ensure_future(lazy.route("chat"))
    await asyncio.sleep(0)
    lazy.publish(snapshot(target(State.FAILED)))
    with pytest.raises(ApiError) as caught:
        await waiting
    assert caught.value.code == "model_failed"


async def test_waiting_for_a_lazy_model_ends_when_the_patience_does() -> None:
    with pytest.raises(ApiError) as caught:
        await router(target(State.UNAVAILABLE, awaited=True), patience=0.02).route("chat")
    assert caught.value.code == "model_loading"


async def test_a_model_that_is_loading_for_everybody_is_not_waited_for() -> None:
    began = asyncio.get_running_loop().time()
    with pytest.raises(ApiError):
        await router(target(State.LOADING)).route("chat")
    assert asyncio.get_running_loop().time() - began < 1


async def test_a_request_holds_the_snapshot_it_began_with() -> None:
    changing = router(target())
    route = await changing.route("chat")
    changing.publish(snapshot(target(State.LOADING)))
    assert route.replica is REPLICA
    assert route.target.state == State.READY


async def test_before_the_first_snapshot_nothing_is_served() -> None:
    with pytest.raises(ApiError) as caught:
        await Router(settings()).route("chat")
    assert caught.value.status == 404


async def test_a_label_leads_to_its_version_and_nowhere_else() -> None:
    routes = Router(settings())
    routes.publish(snapshot(target(number=3), target(number=4), labels={"canary": 4}))
    route = await routes.route("chat@canary")
    assert (route.target.number, route.label) == (4, "canary")
    assert (await routes.route("chat")).target.number == 3
    assert (await routes.route("chat:4")).target.number == 4
    with pytest.raises(ApiError):
        await routes.route("chat@shadow")


def side_of(callers: range, *, weight: int, state: State = State.READY) -> dict[int, str]:
    """The label each caller's requests go to, with `weight` of 100 on the canary."""
    shot = snapshot(
        target(number=3),
        target(state, number=4),
        labels={"canary": 4},
        traffic={"production": 100 - weight, "canary": weight},
    )
    return {caller: shot.find("chat", f"caller-{caller}")[1] for caller in callers}


def test_callers_are_split_by_weight_and_each_stays_on_its_side() -> None:
    sides = side_of(range(10_000), weight=10)
    canary = sum(label == "canary" for label in sides.values())
    # Four standard deviations of a binomial with p = 0.1.
    assert abs(canary - 1000) < 4 * (10_000 * 0.1 * 0.9) ** 0.5
    assert sides == side_of(range(10_000), weight=10)


def test_who_is_in_a_canary_stays_in_it_while_it_grows() -> None:
    before = {c for c, label in side_of(range(1000), weight=10).items() if label == "canary"}
    after = {c for c, label in side_of(range(1000), weight=25).items() if label == "canary"}
    assert before < after


@pytest.mark.parametrize("weight", [0, 100])
def test_a_weight_of_nothing_gets_nothing_and_all_gets_all(weight: int) -> None:
    assert set(side_of(range(100), weight=weight).values()) == {
        "canary" if weight else "production"
    }


def test_a_canary_that_cannot_answer_gets_no_traffic() -> None:
    assert set(side_of(range(100), weight=50, state=State.LOADING).values()) == {"production"}


async def test_the_replica_with_the_least_to_do_is_taken_and_never_the_one_that_failed() -> None:
    busy, idle = replica(5), replica(2)
    routes = router(target(replicas=(busy, idle)))
    route = await routes.route("chat")
    assert route.replica is idle
    with route:
        assert idle.in_flight == 3
    assert idle.in_flight == 2
    assert (await routes.route("chat", but_not=idle)).replica is busy
    with pytest.raises(ApiError):
        await router(target(replicas=(idle,))).route("chat", but_not=idle)
