"""What an operator can do, and what changes nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import scripted_engine
from reconciling import Add, Configure, Run, running_children, served, states, until

from serving.runtime.operations import Operations, Refused, UnknownModel
from serving.runtime.reconciler import Reconciler
from serving.runtime.replica import State
from serving.runtime.routing_file import RevisionConflict
from serving.runtime.wanted import Wanted


@pytest.fixture
async def reconciler(run: Run, configure: Configure, add: Add) -> Reconciler:
    """With `chat:1` in production and `chat:2` in the store, since it was pinned."""
    reconciler = run(configure())
    await until(lambda: reconciler.ready)
    await Operations(reconciler).set_label("chat", "stable", 1, by="ann")
    add()
    return reconciler


@pytest.fixture
def operations(reconciler: Reconciler) -> Operations:
    return Operations(reconciler)


def wanted(reconciler: Reconciler) -> Wanted:
    return reconciler.file.routing.of("chat")


async def refused(work: Any) -> str:
    with pytest.raises(Refused) as caught:
        await work
    return str(caught.value)


async def test_the_first_change_pins_production_to_what_it_is(reconciler: Reconciler) -> None:
    assert wanted(reconciler).labels == {"production": 1, "stable": 1}
    assert reconciler.file.routing.history[-1].before.labels == {"production": 1}
    await asyncio.sleep(0.1)
    assert states(reconciler) == {1: State.READY}  # the newer import is left alone


async def test_a_label_moves_to_a_version_that_is_ready(
    reconciler: Reconciler, operations: Operations
) -> None:
    await operations.load("chat", 2, by="ann")
    routing = await operations.set_label("chat", "production", 2, by="ann")
    assert reconciler.labels["chat"]["production"] == 2
    change = routing.history[-1]
    assert (change.by, change.what) == ("ann", "label production: 1 -> 2")


async def test_a_label_does_not_move_to_what_is_not_loaded(
    reconciler: Reconciler, operations: Operations
) -> None:
    before = reconciler.file.path.read_bytes()
    told = await refused(operations.set_label("chat", "production", 2, by="ann"))
    assert told == "chat:2 is not loaded; load it first, or ask for that too."
    assert reconciler.file.path.read_bytes() == before


async def test_with_load_it_is_loaded_first(reconciler: Reconciler, operations: Operations) -> None:
    await operations.set_label("chat", "canary", 2, load=True, by="ann")
    assert states(reconciler) == {1: State.READY, 2: State.READY}
    assert reconciler.labels["chat"]["canary"] == 2


@pytest.mark.parametrize("label", ["canary", "production"])
async def test_what_fails_to_load_leaves_no_trace(
    reconciler: Reconciler, operations: Operations, scripted_home: Any, label: str
) -> None:
    before = reconciler.file.path.read_bytes()
    pid = served(reconciler).replicas[0].pid
    scripted_engine.behave(scripted_home, crash_at_start="out of memory")
    told = await refused(operations.set_label("chat", label, 2, load=True, by="ann"))
    assert told.startswith("chat:2 is not ready but failed: ")
    assert "out of memory" in told
    await until(lambda: states(reconciler) == {1: State.READY})
    assert reconciler.file.path.read_bytes() == before
    assert served(reconciler).replicas[0].pid == pid
    assert sum("guard.py" in line for line in running_children()) == 1


async def test_what_failed_may_be_tried_again(
    reconciler: Reconciler, operations: Operations, scripted_home: Any
) -> None:
    scripted_engine.behave(scripted_home, crash_at_start="out of memory")
    await refused(operations.load("chat", 2, by="ann"))
    scripted_engine.behave(scripted_home)
    await operations.load("chat", 2, by="ann")
    assert states(reconciler)[2] == State.READY


async def test_a_version_nobody_imported_is_refused(operations: Operations) -> None:
    told = await refused(operations.set_label("chat", "canary", 7, load=True, by="ann"))
    assert told.endswith("chat:7 is not in the model store.")


async def test_a_label_that_is_no_name_is_refused(operations: Operations) -> None:
    assert "chat: labels" in await refused(operations.set_label("chat", "No Name", 1, by="ann"))


async def test_of_two_moves_from_one_revision_one_is_made(
    reconciler: Reconciler, operations: Operations
) -> None:
    revision = reconciler.file.routing.revision
    done = await asyncio.gather(
        operations.set_label("chat", "canary", 2, load=True, revision=revision, by="ann"),
        operations.set_label("chat", "test", 2, load=True, revision=revision, by="ann"),
        return_exceptions=True,
    )
    assert sorted(isinstance(result, RevisionConflict) for result in done) == [False, True]
    assert reconciler.file.routing.revision == revision + 1


async def test_a_dropped_label_takes_its_traffic_and_its_version_with_it(
    reconciler: Reconciler, operations: Operations
) -> None:
    await operations.set_label("chat", "canary", 2, load=True, by="ann")
    await operations.set_traffic("chat", {"production": 1, "canary": 1}, by="ann")
    await operations.drop_label("chat", "canary", by="ann")
    assert wanted(reconciler).traffic == {"production": 1}
    await until(lambda: states(reconciler) == {1: State.READY})
    assert "no label canary" in await refused(operations.drop_label("chat", "canary", by="ann"))


async def test_traffic_goes_to_labels_whose_versions_are_ready(
    reconciler: Reconciler, operations: Operations
) -> None:
    told = await refused(operations.set_traffic("chat", {"canary": 1}, by="ann"))
    assert told == "chat has no label canary; set it to a version first."
    told = await refused(operations.set_traffic("chat", {"production": 0}, by="ann"))
    assert "weight over 0" in told
    await operations.set_traffic("chat", {"production": 9, "stable": 1}, by="ann")
    assert wanted(reconciler).traffic == {"production": 9, "stable": 1}


async def test_a_promotion_ends_the_canary(reconciler: Reconciler, operations: Operations) -> None:
    await operations.set_label("chat", "canary", 2, load=True, by="ann")
    await operations.set_traffic("chat", {"production": 9, "canary": 1}, by="ann")
    await operations.promote("chat", by="ann")
    assert wanted(reconciler).labels == {"production": 2, "stable": 1}
    assert wanted(reconciler).traffic == {}
    assert "no label canary" in await refused(operations.promote("chat", by="ann"))
    assert "no label production" in await refused(
        operations.promote("chat", "production", by="ann")
    )


async def test_a_rollback_brings_back_what_has_already_stopped(
    reconciler: Reconciler, operations: Operations
) -> None:
    await operations.drop_label("chat", "stable", by="ann")
    await operations.set_label("chat", "production", 2, load=True, by="ann")
    await until(lambda: states(reconciler) == {2: State.READY})
    change, routing = await operations.rollback("chat", by="ann")
    assert change.what == "label production: 1 -> 2"
    assert routing.history[-1].what == "rolled back: label production: 1 -> 2"
    assert reconciler.labels["chat"] == {"production": 1}
    await until(lambda: states(reconciler) == {1: State.READY})
    for label in ("stable", None):
        await operations.rollback("chat", by="ann")
        assert wanted(reconciler).labels == {"production": 1, **({label: 1} if label else {})}
    assert "no change" in await refused(operations.rollback("chat", by="ann"))


async def test_a_rollback_to_what_no_longer_starts_changes_nothing(
    reconciler: Reconciler, operations: Operations, scripted_home: Any
) -> None:
    await operations.drop_label("chat", "stable", by="ann")
    await operations.set_label("chat", "production", 2, load=True, by="ann")
    await until(lambda: states(reconciler) == {2: State.READY})
    scripted_engine.behave(scripted_home, crash_at_start="no more")
    assert "no more" in await refused(operations.rollback("chat", by="ann"))
    assert wanted(reconciler).labels == {"production": 2}
    await until(lambda: states(reconciler) == {2: State.READY})


async def test_what_is_loaded_by_hand_stays_until_it_is_unloaded(
    reconciler: Reconciler, operations: Operations
) -> None:
    await operations.load("chat", 2, by="ann")
    await operations.load("chat", 2, by="ann")
    assert wanted(reconciler).loaded == [2]
    await operations.set_label("chat", "canary", 2, by="ann")
    assert "is what canary means" in await refused(operations.unload("chat", 2, by="ann"))
    await operations.drop_label("chat", "canary", by="ann")
    await operations.unload("chat", 2, by="ann")
    await until(lambda: states(reconciler) == {1: State.READY})
    assert "not loaded by hand" in await refused(operations.unload("chat", 2, by="ann"))


async def test_a_model_that_is_not_served_is_unknown(operations: Operations) -> None:
    for work in (
        operations.set_label("code", "canary", 1, by="ann"),
        operations.set_label("code", "canary", 1, load=True, by="ann"),
        operations.drop_label("code", "canary", by="ann"),
        operations.set_traffic("code", {}, by="ann"),
        operations.set_shadow("code", 1, by="ann"),
        operations.promote("code", by="ann"),
        operations.rollback("code", by="ann"),
        operations.load("code", 1, by="ann"),
        operations.unload("code", 1, by="ann"),
    ):
        with pytest.raises(UnknownModel, match="no model code"):
            await work


async def test_a_stop_ends_a_load_that_is_under_way(
    reconciler: Reconciler, operations: Operations, scripted_home: Any
) -> None:
    scripted_engine.behave(scripted_home, hang_at_start=True)
    loading = asyncio.ensure_future(operations.load("chat", 2, by="ann"))
    await until(lambda: states(reconciler).get(2) == State.LOADING)
    await reconciler.stop()
    assert await refused(loading) == "The service stops."
