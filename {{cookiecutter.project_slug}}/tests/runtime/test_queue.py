"""Requests that wait for a place on a replica: in turn, within bounds, and only as long as they
may."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import cast

import pytest
from gateway_client import settings

from serving.contract.errors import ApiError
from serving.runtime.queue import Line
from serving.runtime.replica import Replica, State
from serving.runtime.routing import Route, Router, ServedModel, Snapshot, Target


def replica() -> Replica:
    return cast(Replica, SimpleNamespace(in_flight=0))


def snapshot(line: Line[Route], *replicas: Replica, number: int = 3) -> Snapshot:
    target = Target(
        "chat", number, datetime.now(UTC), State.READY, replicas, lambda: None, line=line
    )
    return Snapshot({"chat": ServedModel({number: target}, {"production": number})})


class Served:
    """A router with one version of replicas that take `in_flight` requests each."""

    def __init__(self, in_flight: int = 1, queue: int = 10, patience: float = 10) -> None:
        made = settings(queue=patience)
        made.limits = made.limits.model_copy(update={"in_flight": in_flight, "queue": queue})
        self.router = Router(made)
        self.line: Line[Route] = Line()
        self.replica = replica()
        self.router.publish(snapshot(self.line, self.replica))
        self.answered: list[str] = []
        self.go_on = asyncio.Event()
        self.most = 0

    async def ask(self, caller: str) -> None:
        route = await self.router.route("chat", caller)
        with route:
            self.most = max(self.most, self.replica.in_flight)
            self.answered.append(caller)
            await self.go_on.wait()

    async def asked(self, *callers: str) -> list[asyncio.Task[None]]:
        tasks = []
        for caller in callers:
            tasks.append(asyncio.ensure_future(self.ask(caller)))
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        return tasks

    async def all_of(self, tasks: list[asyncio.Task[None]]) -> list[BaseException | None]:
        self.go_on.set()
        async with asyncio.timeout(10):
            return await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_replica_never_has_more_requests_than_it_may() -> None:
    served = Served(in_flight=3, queue=100)
    tasks = await served.asked(*(f"caller {n}" for n in range(50)))
    assert (served.replica.in_flight, served.line.length) == (3, 47)
    assert await served.all_of(tasks) == [None] * 50
    assert (served.most, served.replica.in_flight, served.line.length) == (3, 0, 0)


async def test_callers_take_turns_however_many_requests_one_of_them_has() -> None:
    served = Served()
    tasks = await served.asked("ann", "ann", "ann", "ann", "bob", "eve", "bob")
    await served.all_of(tasks)
    assert served.answered == ["ann", "ann", "bob", "eve", "ann", "bob", "ann"]


async def test_a_new_request_does_not_overtake_those_that_wait() -> None:
    served = Served()
    first = await served.router.route("chat", "ann")
    with first:
        tasks = await served.asked("bob")
    assert served.replica.in_flight == 1  # the place is bob's already
    tasks += await served.asked("eve")
    await served.all_of(tasks)
    assert served.answered == ["bob", "eve"]


async def test_a_full_line_refuses_and_says_when_to_come_back() -> None:
    served = Served(queue=2)
    tasks = await served.asked("ann", "ann", "ann")
    with pytest.raises(ApiError) as caught:
        await served.router.route("chat", "ann")
    assert (caught.value.status, caught.value.code) == (503, "overloaded")
    assert caught.value.headers["retry-after"] == "1"
    assert await served.all_of(tasks) == [None] * 3


async def test_no_line_at_all_refuses_what_finds_no_place() -> None:
    served = Served(queue=0)
    tasks = await served.asked("ann")
    with pytest.raises(ApiError, match="wait for the model already"):
        await served.router.route("chat", "bob")
    assert await served.all_of(tasks) == [None]


async def test_whoever_has_most_in_a_full_line_makes_room_for_others() -> None:
    served = Served(queue=3)
    tasks = await served.asked("ann", "ann", "ann", "ann", "bob")
    *others, displaced, bob = await served.all_of(tasks)
    assert (others, bob) == ([None] * 3, None)
    assert isinstance(displaced, ApiError)
    assert displaced.code == "overloaded"
    assert served.answered == ["ann", "ann", "bob", "ann"]


async def test_a_wait_ends_after_its_time() -> None:
    served = Served(patience=0.05)
    tasks = await served.asked("ann")
    with pytest.raises(ApiError, match="No place came free") as caught:
        await served.router.route("chat", "bob")
    assert caught.value.status == 503
    assert served.line.length == 0
    await served.all_of(tasks)
    assert served.replica.in_flight == 0


async def test_a_client_that_leaves_the_line_leaves_its_place_to_others() -> None:
    served = Served()
    ann, bob, eve = await served.asked("ann", "bob", "eve")
    bob.cancel()
    await served.all_of([ann, bob, eve])
    assert served.answered == ["ann", "eve"]
    assert (served.replica.in_flight, served.line.length) == (0, 0)


async def test_a_place_given_to_a_client_that_just_left_goes_to_the_next() -> None:
    served = Served()
    route = await served.router.route("chat", "ann")
    with route:
        bob, eve = await served.asked("bob", "eve")
    bob.cancel()  # in the same turn of the loop as the place came to it
    await served.all_of([bob, eve])
    assert served.answered == ["eve"]
    assert (served.replica.in_flight, served.line.length) == (0, 0)


async def test_a_new_replica_gets_those_who_wait() -> None:
    served = Served()
    tasks = await served.asked("ann", "bob")
    more = replica()
    served.router.publish(snapshot(served.line, served.replica, more))
    assert more.in_flight == 1  # bob's task has not run yet, but his place is taken
    await asyncio.sleep(0)
    assert served.answered == ["ann", "bob"]
    await served.all_of(tasks)
    assert more.in_flight == 0


async def test_those_who_wait_for_a_version_that_ends_go_to_the_one_after_it() -> None:
    served = Served()
    (ann,) = await served.asked("ann")
    waiting = asyncio.ensure_future(served.router.route("chat", "bob"))
    await asyncio.sleep(0)
    after = replica()
    served.router.publish(snapshot(Line(), after, number=4))
    route = await waiting
    assert (route.target.tag, route.label) == ("chat:4", "production")
    await served.all_of([ann])
    assert served.replica.in_flight == 0


async def test_a_second_try_does_not_wait_again() -> None:
    served = Served()
    broken, other = replica(), served.replica
    other.in_flight = 1
    served.router.publish(snapshot(served.line, broken, other))
    route = await served.router.route("chat", "ann", but_not=broken)
    assert route.replica is other


async def test_how_long_it_waited_is_known() -> None:
    served = Served()
    first = await served.router.route("chat", "ann")
    assert first.queued == 0
    with first:
        waiting = asyncio.ensure_future(served.router.route("chat", "bob"))
        await asyncio.sleep(0.02)
    assert 0.01 < (await waiting).queued < 5
