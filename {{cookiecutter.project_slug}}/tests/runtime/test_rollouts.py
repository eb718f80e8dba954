"""Rollouts lead a version into production, or back, and say why."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import scripted_engine
from reconciling import Add, Configure, Run, engine_pid, served, states, until

from serving.runtime.operations import Operations, Refused
from serving.runtime.outcome import Outcome
from serving.runtime.reconciler import Reconciler
from serving.runtime.replica import State
from serving.runtime.rollouts import Rollouts
from serving.runtime.routing_file import RoutingFile
from serving.runtime.wanted import Change, RolloutPlan, Wanted

Lead = Callable[[Reconciler], Rollouts]


@pytest.fixture
async def reconciler(run: Run, configure: Configure, add: Add) -> Reconciler:
    """With `chat:1` in production and `chat:2` in the store."""
    reconciler = run(configure())
    await until(lambda: reconciler.ready)
    await Operations(reconciler).set_label("chat", "production", 1, by="ann")
    add()
    return reconciler


@pytest.fixture
def operations(reconciler: Reconciler) -> Operations:
    return Operations(reconciler)


@pytest.fixture
async def lead(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Lead]:
    """Starts to lead the rollouts, with open eyes."""
    monkeypatch.setattr("serving.runtime.rollouts.LOOK_EVERY", 0.01)
    started: list[Rollouts] = []

    def lead(reconciler: Reconciler) -> Rollouts:
        rollouts = Rollouts(reconciler, Operations(reconciler))
        rollouts.start()
        started.append(rollouts)
        return rollouts

    yield lead
    for rollouts in started:
        await rollouts.stop()


def plan(**fields: Any) -> RolloutPlan:
    usual = {"steps": [10, 50, 100], "every": 0.1, "max_error_rate": 0.01, "min_answers": 10}
    return RolloutPlan.model_validate({**usual, **fields})


def wanted(reconciler: Reconciler) -> Wanted:
    return reconciler.file.routing.of("chat")


def step(reconciler: Reconciler) -> int | None:
    rollout = wanted(reconciler).rollout
    return None if rollout is None else rollout.step


def last(reconciler: Reconciler) -> Change:
    return reconciler.file.routing.history[-1]


def answered(
    rollouts: Rollouts, number: int, count: int = 10, *, ttft: float = 0.1, **how: Any
) -> None:
    label = how.get("label", "canary" if number == 2 else "production")
    for _ in range(count):
        outcome = Outcome("chat", number, label).end(failed=how.get("failed", False))
        outcome.ttft = ttft
        rollouts.note(outcome)


async def at_step(reconciler: Reconciler, rollouts: Rollouts, number: int) -> None:
    """Until that step has begun."""

    def there() -> bool:
        watch = rollouts.watch("chat")
        return watch is not None and watch.rollout.step == number and watch.elapsed is not None

    await until(there)
    assert step(reconciler) == number


async def test_a_good_version_goes_into_production_step_by_step(
    reconciler: Reconciler, operations: Operations, lead: Lead
) -> None:
    rollouts = lead(reconciler)
    await operations.start_rollout("chat", 2, plan(), by="ann")
    for number, traffic in enumerate(
        [{"production": 90, "canary": 10}, {"production": 50, "canary": 50}, {"canary": 100}]
    ):
        await at_step(reconciler, rollouts, number)
        shares = {label: share for label, share in wanted(reconciler).traffic.items() if share}
        assert shares == traffic
        assert wanted(reconciler).labels == {"production": 1, "canary": 2}
        answered(rollouts, 2)
    await until(lambda: step(reconciler) is None)
    assert wanted(reconciler).labels == {"production": 2}
    assert wanted(reconciler).traffic == {}
    told = [(change.by, change.what) for change in reconciler.file.routing.history[-4:]]
    assert told == [
        ("ann", "rollout to 2 started: 10 % of the traffic"),
        *(
            ("rollout", f"{what}: 0 of 10 answers failed, TTFT p95 100 ms")
            for what in (
                "rollout to 2: 50 % of the traffic",
                "rollout to 2: 100 % of the traffic",
                "promoted canary: production 1 -> 2",
            )
        ),
    ]
    await until(lambda: states(reconciler) == {2: State.READY})


async def test_one_rollback_undoes_the_whole_of_it(
    reconciler: Reconciler, operations: Operations, lead: Lead
) -> None:
    rollouts = lead(reconciler)
    await operations.set_label("chat", "stable", 1, by="ann")
    await operations.start_rollout("chat", 2, plan(steps=[50, 100]), by="ann")
    for number in (0, 1):
        await at_step(reconciler, rollouts, number)
        answered(rollouts, 2)
    await until(lambda: step(reconciler) is None)
    change, _ = await operations.rollback("chat", by="ann")
    assert change.what == "rollout to 2 started: 50 % of the traffic"
    assert wanted(reconciler) == Wanted(labels={"production": 1, "stable": 1})
    change, _ = await operations.rollback("chat", by="ann")
    assert change.what == "label stable: none -> 1"


async def test_it_waits_for_its_time_and_for_enough_answers(
    reconciler: Reconciler, operations: Operations, lead: Lead
) -> None:
    rollouts = lead(reconciler)
    await operations.start_rollout("chat", 2, plan(), by="ann")
    await at_step(reconciler, rollouts, 0)
    answered(rollouts, 2, 9)
    answered(rollouts, 2, 9, label="")  # they named the version: no part of the traffic
    await asyncio.sleep(0.3)
    watch = rollouts.watch("chat")
    assert watch is not None
    assert watch.told.endswith("9 of 10 answers needed")
    assert step(reconciler) == 0
    answered(rollouts, 2, 1)
    await at_step(reconciler, rollouts, 1)


async def test_a_version_whose_answers_fail_goes_back_before_its_time(
    reconciler: Reconciler, operations: Operations, lead: Lead
) -> None:
    rollouts = lead(reconciler)
    await operations.start_rollout("chat", 2, plan(every=600), by="ann")
    await at_step(reconciler, rollouts, 0)
    answered(rollouts, 1, 500)
    answered(rollouts, 2, 4, failed=True)
    await until(lambda: step(reconciler) is None)
    assert wanted(reconciler) == Wanted(labels={"production": 1})
    assert last(reconciler).by == "rollout"
    assert last(reconciler).what == (
        "rolled back: rollout to 2 started: 10 % of the traffic, at 10 %: over 1.00% of its "
        "answers fail (4 of 4 answers failed, TTFT p95 100 ms beside 100 ms)"
    )
    await until(lambda: states(reconciler) == {1: State.READY})


async def test_a_slower_version_goes_back_also_where_production_answers_nothing(
    reconciler: Reconciler, operations: Operations, lead: Lead
) -> None:
    rollouts = lead(reconciler)
    await operations.start_rollout(
        "chat", 2, plan(steps=[50, 100], max_ttft_p95_ratio=1.2), by="ann"
    )
    await at_step(reconciler, rollouts, 0)
    answered(rollouts, 2)
    await asyncio.sleep(0.2)
    assert step(reconciler) == 0  # there is nothing to compare with
    answered(rollouts, 1)
    await at_step(reconciler, rollouts, 1)
    answered(rollouts, 2, ttft=0.2)
    await until(lambda: step(reconciler) is None)
    assert "at 100 %: its TTFT p95 is over 1.2 times production's" in last(reconciler).what
    assert wanted(reconciler) == Wanted(labels={"production": 1})


async def test_a_version_that_crashes_for_good_goes_back(
    reconciler: Reconciler, operations: Operations, lead: Lead, scripted_home: Any
) -> None:
    lead(reconciler)
    await operations.start_rollout("chat", 2, plan(every=600), by="ann")
    scripted_engine.behave(scripted_home, crash_at_start="no memory")
    (replica,) = served(reconciler, number=2).replicas
    assert replica.pid is not None
    os.kill(replica.pid, signal.SIGKILL)
    await until(lambda: step(reconciler) is None)
    assert "at 10 %: chat:2 failed: " in last(reconciler).what
    assert states(reconciler)[1] == State.READY
    assert engine_pid(reconciler)


async def test_a_restart_goes_on_at_the_same_step(
    reconciler: Reconciler, operations: Operations, lead: Lead, run: Run, configure: Configure
) -> None:
    rollouts = lead(reconciler)
    await operations.start_rollout(
        "chat", 2, plan(steps=[50, 100], max_ttft_p95_ratio=1.2), by="ann"
    )
    await at_step(reconciler, rollouts, 0)
    answered(rollouts, 1)
    answered(rollouts, 2)
    await at_step(reconciler, rollouts, 1)
    await rollouts.stop()
    await reconciler.stop()
    again = run(configure())
    rollouts = lead(again)
    await at_step(again, rollouts, 1)
    answered(rollouts, 2, ttft=0.11)  # production's time is remembered
    await until(lambda: step(again) is None)
    assert wanted(again).labels == {"production": 2}
    assert "TTFT p95 110 ms beside 100 ms" in last(again).what


async def refused(work: Any) -> str:
    with pytest.raises(Refused) as caught:
        await work
    return str(caught.value)


async def test_nothing_else_is_changed_during_a_rollout(
    reconciler: Reconciler, operations: Operations
) -> None:
    await operations.start_rollout("chat", 2, plan(every=600), by="ann")
    before = wanted(reconciler)
    for work in (
        operations.set_label("chat", "production", 2, by="bob"),
        operations.set_label("chat", "canary", 1, load=True, by="bob"),
        operations.drop_label("chat", "canary", by="bob"),
        operations.set_traffic("chat", {"production": 1}, by="bob"),
        operations.load("chat", 1, by="bob"),
        operations.start_rollout("chat", 2, plan(), by="bob"),
    ):
        assert "A rollout of chat to 2 is under way; end it first" in await refused(work)
    assert wanted(reconciler) == before


async def test_it_can_be_stopped_where_it_is(
    reconciler: Reconciler, operations: Operations
) -> None:
    await operations.start_rollout("chat", 2, plan(every=600), by="ann")
    await operations.stop_rollout("chat", by="bob")
    assert wanted(reconciler) == Wanted(
        labels={"production": 1, "canary": 2}, traffic={"production": 90, "canary": 10}
    )
    assert last(reconciler).what == "rollout to 2 stopped at 10 %"
    assert "There is no rollout of chat" in await refused(operations.stop_rollout("chat", by="bob"))


@pytest.mark.parametrize("ending", ["promote", "rollback"])
async def test_an_operator_can_end_it_at_once(
    reconciler: Reconciler, operations: Operations, ending: str
) -> None:
    await operations.start_rollout("chat", 2, plan(every=600), by="ann")
    await getattr(operations, ending)("chat", by="bob")
    number = 2 if ending == "promote" else 1
    assert wanted(reconciler) == Wanted(labels={"production": number})


async def test_what_cannot_be_rolled_out_is_refused(
    reconciler: Reconciler, operations: Operations, lead: Lead
) -> None:
    lead(reconciler)

    def start(number: int) -> Any:
        return operations.start_rollout("chat", number, plan(), by="ann")

    assert await refused(start(1)) == "chat:1 is in production already."
    assert "chat:9 is not in the model store" in await refused(start(9))
    await operations.set_label("chat", "canary", 2, load=True, by="ann")
    await operations.set_traffic("chat", {"production": 9, "canary": 1}, by="ann")
    assert "The traffic of chat is split" in await refused(start(2))
    assert wanted(reconciler).rollout is None


async def test_of_two_services_on_one_file_one_moves_it_and_both_follow(
    reconciler: Reconciler, operations: Operations, lead: Lead
) -> None:
    rollouts = lead(reconciler)
    await operations.start_rollout("chat", 2, plan(), by="ann")
    await at_step(reconciler, rollouts, 0)
    other = RoutingFile(reconciler.file.path)
    other.load()
    other.change(lambda routing: routing.model_copy(update={"revision": routing.revision + 1}))
    answered(rollouts, 2)
    await until(lambda: step(reconciler) == 1)
    assert reconciler.file.routing.revision == other.routing.revision + 1
