"""Swaps on one device: the old version sleeps in the machine's memory, and wakes to come back."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
import scripted_engine
from pydantic import ValidationError
from reconciling import Add, Configure, Run, running_children, served, starts, states, until

from serving.runtime.operations import Operations, Refused
from serving.runtime.reconciler import Reconciler
from serving.runtime.replica import State

BEHAVIOUR = {"one_device": True}  # who finds it taken does not start


@pytest.fixture(params=["vllm", "sglang"])
async def reconciler(
    request: pytest.FixtureRequest, run: Run, configure: Configure, add: Add, scripted_home: Path
) -> Reconciler:
    """With `chat:1` answering; `chat:2` and `chat:3` imported."""
    engine = {"name": request.param, "home": scripted_home, "max_model_len": 256, "gpus": 1}
    scripted_engine.behave(scripted_home, **BEHAVIOUR)
    reconciler = run(configure({"chat": {"swap": "sleep", "engine": engine}}, request.param))
    await until(lambda: reconciler.ready)
    add()
    add()
    return reconciler


async def move(reconciler: Reconciler, number: int) -> None:
    work = Operations(reconciler).set_label("chat", "production", number, by="ann", load=True)
    await work


def pid(reconciler: Reconciler, number: int) -> int:
    (replica,) = served(reconciler, number=number).started
    assert replica.pid is not None
    return replica.pid


async def test_the_old_version_sleeps_and_a_rollback_wakes_it(
    reconciler: Reconciler, scripted_home: Path
) -> None:
    first = pid(reconciler, 1)
    await move(reconciler, 2)
    assert states(reconciler) == {1: State.ASLEEP, 2: State.READY}
    assert reconciler.labels["chat"] == {"production": 2}
    second = pid(reconciler, 2)
    await Operations(reconciler).rollback("chat", by="ann")
    assert states(reconciler) == {1: State.READY, 2: State.ASLEEP}
    await move(reconciler, 2)
    assert states(reconciler) == {1: State.ASLEEP, 2: State.READY}
    assert (pid(reconciler, 1), pid(reconciler, 2)) == (first, second)
    assert starts(scripted_home) == 2


async def test_requests_wait_for_the_version_that_wakes_up(reconciler: Reconciler) -> None:
    await move(reconciler, 2)
    swap = asyncio.ensure_future(move(reconciler, 1))
    await until(lambda: states(reconciler)[2] != State.READY)
    route = await reconciler.router.route("chat")
    assert route.target.tag == "chat:1"
    await swap


async def test_running_answers_finish_before_it_sleeps(reconciler: Reconciler) -> None:
    route = await reconciler.router.route("chat")
    with route:
        swap = asyncio.ensure_future(move(reconciler, 2))
        await until(lambda: states(reconciler)[1] == State.DRAINING)
        await asyncio.sleep(0.2)
        assert states(reconciler) == {1: State.DRAINING, 2: State.UNAVAILABLE}
    await swap
    assert states(reconciler)[1] == State.ASLEEP


async def test_one_whose_answers_were_cut_is_ended(reconciler: Reconciler) -> None:
    settings = reconciler.settings
    settings.timeouts = settings.timeouts.model_copy(update={"drain": 0.1})
    route = await reconciler.router.route("chat")
    with route:
        await move(reconciler, 2)
    await until(lambda: states(reconciler) == {2: State.READY})
    assert route.replica.state == State.STOPPED


async def test_only_one_version_sleeps_at_a_time(reconciler: Reconciler) -> None:
    await move(reconciler, 2)
    await move(reconciler, 3)
    await until(lambda: states(reconciler) == {2: State.ASLEEP, 3: State.READY})
    await move(reconciler, 1)  # starts anew
    await until(lambda: states(reconciler) == {1: State.READY, 3: State.ASLEEP})


async def test_a_new_version_that_fails_wakes_the_old_one(
    reconciler: Reconciler, scripted_home: Path
) -> None:
    first = pid(reconciler, 1)
    scripted_engine.behave(scripted_home, crash_at_start="no memory", **BEHAVIOUR)
    with pytest.raises(Refused, match="no memory"):
        await move(reconciler, 2)
    await until(lambda: states(reconciler) == {1: State.READY})
    assert pid(reconciler, 1) == first
    assert (await reconciler.router.route("chat")).target.tag == "chat:1"


async def test_one_that_dies_in_its_sleep_starts_anew_when_it_is_wanted(
    reconciler: Reconciler, scripted_home: Path
) -> None:
    first = pid(reconciler, 1)
    await move(reconciler, 2)
    os.kill(first, signal.SIGKILL)
    await until(lambda: states(reconciler) == {2: State.READY})
    await move(reconciler, 1)
    assert states(reconciler) == {1: State.READY, 2: State.ASLEEP}
    assert starts(scripted_home) == 3


async def test_one_that_does_not_wake_up_starts_anew(
    run: Run, configure: Configure, add: Add, scripted_home: Path
) -> None:
    engine = {"name": "vllm", "home": scripted_home, "max_model_len": 256, "gpus": 1}
    scripted_engine.behave(scripted_home, sleeps_deeply=True, **BEHAVIOUR)
    reconciler = run(configure({"chat": {"swap": "sleep", "engine": engine}}))
    await until(lambda: reconciler.ready)
    add()
    await move(reconciler, 2)
    await move(reconciler, 1)
    assert states(reconciler) == {1: State.READY, 2: State.ASLEEP}
    assert starts(scripted_home) == 3


async def test_a_stop_ends_the_sleeper_too(reconciler: Reconciler) -> None:
    await move(reconciler, 2)
    await reconciler.stop()
    assert running_children() == []


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_without_a_device_there_is_no_sleep(configure: Configure, engine: str) -> None:
    with pytest.raises(ValidationError, match=f"{engine} has no device here to give up"):
        configure({"chat": {"swap": "sleep"}}, engine)
