"""Swaps where memory holds only one version: the old one ends, the new one starts, or the old one
comes back."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest
import scripted_engine
from pydantic import ValidationError
from reconciling import Add, Configure, Run, guards, running_children, starts, states, until

from serving.contract.errors import ApiError
from serving.runtime.operations import Operations, Refused
from serving.runtime.reconciler import Reconciler
from serving.runtime.replica import State

IN_PLACE = {"chat": {"swap": "in_place"}}


@pytest.fixture
async def reconciler(run: Run, configure: Configure, add: Add) -> Reconciler:
    """With `chat:1` answering and `chat:2` imported."""
    reconciler = run(configure(IN_PLACE))
    await until(lambda: reconciler.ready)
    add()
    return reconciler


async def most_engines(during: asyncio.Task[object]) -> int:
    """The most that ran at once until the task was done."""
    most = 0
    while not during.done():
        most = max(most, len(guards()))
        await asyncio.sleep(0.005)
    return most


async def test_an_import_is_not_followed_by_itself(reconciler: Reconciler) -> None:
    await asyncio.sleep(0.2)
    assert states(reconciler) == {1: State.READY}
    assert reconciler.labels["chat"] == {"production": 1}


async def test_the_new_version_starts_when_the_old_one_is_gone_and_requests_wait(
    reconciler: Reconciler, scripted_home: Path
) -> None:
    scripted_engine.behave(scripted_home, start_delay=0.3)
    work = Operations(reconciler).set_label("chat", "production", 2, by="ann", load=True)
    swap = asyncio.ensure_future(work)
    watched = asyncio.ensure_future(most_engines(swap))
    await until(lambda: states(reconciler).get(1) != State.READY)
    assert not reconciler.ready
    waiting = [asyncio.ensure_future(reconciler.router.route("chat")) for _ in range(5)]
    routes = await asyncio.gather(*waiting)
    assert {route.target.tag for route in routes} == {"chat:2"}
    await swap
    assert await watched == 1
    await until(lambda: states(reconciler) == {2: State.READY})
    assert reconciler.ready


async def test_running_answers_finish_first(reconciler: Reconciler) -> None:
    route = await reconciler.router.route("chat")
    with route:
        work = Operations(reconciler).set_label("chat", "production", 2, by="ann", load=True)
        swap = asyncio.ensure_future(work)
        await until(lambda: states(reconciler).get(1) == State.DRAINING)
        await asyncio.sleep(0.2)
        assert len(guards()) == 1
        assert states(reconciler)[2] == State.UNAVAILABLE
    await swap
    assert route.replica.state == State.STOPPED


async def test_what_is_known_to_be_wrong_with_a_version_costs_no_pause(
    reconciler: Reconciler, scripted_home: Path
) -> None:
    os.truncate(reconciler.store.get("chat", 2).path / "config.json", 3)
    operations = Operations(reconciler)
    with pytest.raises(Refused, match=r"config\.json"):
        await operations.set_label("chat", "production", 2, by="ann", load=True)
    with pytest.raises(Refused, match="not in the model store"):
        await operations.set_label("chat", "production", 9, by="ann", load=True)
    assert starts(scripted_home) == 1
    assert reconciler.transitions["chat", 1, State.DRAINING] == 0


async def test_a_new_version_that_fails_brings_the_old_one_back(
    reconciler: Reconciler, scripted_home: Path
) -> None:
    scripted_engine.behave(scripted_home, crash_at_start="no memory", crash_first_n=2)
    with pytest.raises(Refused, match="no memory"):
        await Operations(reconciler).set_label("chat", "production", 2, by="ann", load=True)
    await until(lambda: states(reconciler) == {1: State.READY})
    assert (await reconciler.router.route("chat")).target.tag == "chat:1"
    assert reconciler.file.routing.revision == 0


async def test_when_neither_starts_both_stay_failed_until_somebody_tries_again(
    reconciler: Reconciler, scripted_home: Path
) -> None:
    scripted_engine.behave(scripted_home, crash_at_start="out of memory")
    operations = Operations(reconciler)
    with pytest.raises(Refused, match="out of memory"):
        await operations.set_label("chat", "production", 2, by="ann", load=True)
    tried = 1 + 1 + 3  # the one that answered, the new one once, the old one as often as allowed
    await until(lambda: starts(scripted_home) == tried)
    await asyncio.sleep(0.5)
    assert starts(scripted_home) == tried
    assert states(reconciler)[1] == State.FAILED
    (scripted_home.parent / "behaviour.json").unlink()
    await operations.set_label("chat", "production", 1, by="ann", load=True)
    await until(lambda: reconciler.ready)


async def test_a_rollback_goes_the_same_way(reconciler: Reconciler) -> None:
    operations = Operations(reconciler)
    await operations.set_label("chat", "production", 2, by="ann", load=True)
    rollback = asyncio.ensure_future(operations.rollback("chat", by="ann"))
    assert await most_engines(rollback) <= 1
    await rollback
    await until(lambda: states(reconciler) == {1: State.READY})


async def test_other_labels_stay_off_versions_that_are_not_in_memory(
    reconciler: Reconciler,
) -> None:
    operations = Operations(reconciler)
    for work in (
        operations.set_label("chat", "canary", 2, by="ann", load=True),
        operations.load("chat", 2, by="ann"),
    ):
        with pytest.raises(Refused, match="2 is not the version in memory"):
            await work
    await operations.set_label("chat", "stable", 1, by="ann")
    assert states(reconciler) == {1: State.READY}


async def test_somebody_elses_file_is_followed_in_place(reconciler: Reconciler) -> None:
    path = reconciler.file.path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"models": {"chat": {"labels": {"production": 2}}}}))
    await until(lambda: states(reconciler) == {2: State.READY})
    assert reconciler.labels["chat"] == {"production": 2}


async def test_somebody_elses_bad_file_leaves_the_old_version_answering(
    reconciler: Reconciler,
) -> None:
    path = reconciler.file.path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"models": {"chat": {"labels": {"production": 7}}}}))
    await until(lambda: 7 in states(reconciler))
    assert states(reconciler) == {1: State.READY, 7: State.FAILED}
    assert reconciler.labels["chat"] == {"production": 1}
    await asyncio.sleep(0.2)
    assert states(reconciler) == {1: State.READY, 7: State.FAILED}


async def test_no_more_than_so_many_requests_wait(
    run: Run, configure: Configure, add: Add, scripted_home: Path
) -> None:
    settings = configure(IN_PLACE)
    limits = settings.limits.model_copy(update={"waiting": 2})
    reconciler = run(settings.model_copy(update={"limits": limits}))
    await until(lambda: reconciler.ready)
    add()
    scripted_engine.behave(scripted_home, start_delay=0.3)
    work = Operations(reconciler).set_label("chat", "production", 2, by="ann", load=True)
    swap = asyncio.ensure_future(work)
    await until(lambda: states(reconciler).get(1) != State.READY)
    asked = [asyncio.ensure_future(reconciler.router.route("chat")) for _ in range(4)]
    done = await asyncio.gather(*asked, return_exceptions=True)
    refused = [error for error in done if isinstance(error, ApiError)]
    assert [(error.status, error.code) for error in refused] == [(503, "overloaded")] * 2
    await swap


async def test_a_stop_in_the_middle_leaves_nothing(
    reconciler: Reconciler, scripted_home: Path
) -> None:
    scripted_engine.behave(scripted_home, hang_at_start=True)
    work = Operations(reconciler).set_label("chat", "production", 2, by="ann", load=True)
    swap = asyncio.ensure_future(work)
    await until(lambda: states(reconciler).get(2) == State.LOADING)
    await reconciler.stop()
    with pytest.raises(Refused, match="The service stops"):
        await swap
    assert running_children() == []


def test_only_one_version_can_be_asked_for(configure: Configure) -> None:
    with pytest.raises(ValidationError, match="has one version at a time"):
        configure({"chat": {"swap": "in_place", "versions": {"policy": "all"}}})
