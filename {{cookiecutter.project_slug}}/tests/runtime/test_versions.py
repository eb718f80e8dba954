"""Several versions at once: labels that wait for readiness, drains, and what outlives a restart."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
import scripted_engine
from reconciling import Add, Configure, Run, running_children, served, starts, states, until

from serving.runtime.reconciler import Reconciler
from serving.runtime.replica import State
from serving.runtime.routing import Route
from serving.runtime.store import ModelStore
from serving.runtime.wanted import Routing, Wanted


async def routed(reconciler: Reconciler, address: str = "chat") -> Route:
    return await reconciler.router.route(address, "somebody")


def ask(reconciler: Reconciler, **wanted: Any) -> None:
    """As an operator does."""

    def change(routing: Routing) -> Routing:
        return routing.changed("chat", Wanted(**wanted), by="test", what="asked")

    reconciler.file.change(change)
    reconciler.reconcile()


async def test_a_new_version_takes_production_over_when_it_is_ready_and_the_old_one_ends(
    run: Run, configure: Configure, add: Add
) -> None:
    reconciler = run(configure())
    await until(lambda: reconciler.ready)
    old = (await routed(reconciler)).replica
    assert add() == 2
    await until(lambda: reconciler.labels["chat"] == {"production": 2})
    route = await routed(reconciler)
    assert (route.target.tag, route.label) == ("chat:2", "production")
    await until(lambda: states(reconciler) == {2: State.READY})
    assert old.state == State.STOPPED
    assert sum("guard.py" in line for line in running_children()) == 1


async def test_there_is_no_moment_without_an_answer(
    run: Run, configure: Configure, add: Add
) -> None:
    reconciler = run(configure())
    await until(lambda: reconciler.ready)
    answered: list[int] = []
    add()
    async with asyncio.timeout(20):
        while 2 not in answered:
            answered.append((await routed(reconciler)).target.number)
            assert reconciler.ready
            await asyncio.sleep(0)
    assert answered == sorted(answered)


async def test_a_version_that_fails_changes_nothing_for_the_one_that_answers(
    run: Run, configure: Configure, add: Add, scripted_home: Path
) -> None:
    reconciler = run(configure())
    await until(lambda: reconciler.ready)
    pid = (await routed(reconciler)).replica.pid
    scripted_engine.behave(scripted_home, crash_at_start="out of memory")
    add()
    await until(lambda: states(reconciler).get(2) == State.FAILED)
    assert "out of memory" in served(reconciler, number=2).reason
    assert (await routed(reconciler)).replica.pid == pid
    assert (reconciler.ready, states(reconciler)[1]) == (True, State.READY)
    assert sum("guard.py" in line for line in running_children()) == 1


async def test_after_a_restart_the_version_before_a_broken_import_answers(
    run: Run, configure: Configure, add: Add, store: ModelStore
) -> None:
    add()
    (store.get("chat", 2).path / "tokenizer.json").write_text("{}")
    reconciler = run(configure())
    await until(lambda: reconciler.ready)
    assert states(reconciler) == {1: State.READY, 2: State.FAILED}
    assert (await routed(reconciler)).target.tag == "chat:1"


async def test_a_label_means_its_new_version_only_once_that_is_ready(
    run: Run, configure: Configure, add: Add, scripted_home: Path
) -> None:
    reconciler = run(configure())
    await until(lambda: reconciler.ready)
    ask(reconciler, labels={"production": 1})
    add()
    scripted_engine.behave(scripted_home, start_delay=0.5)
    ask(reconciler, labels={"production": 2})
    assert (await routed(reconciler)).target.number == 1
    await until(lambda: reconciler.labels["chat"]["production"] == 2)
    assert (await routed(reconciler)).target.state == State.READY


async def test_labels_keep_versions_loaded_that_the_policy_does_not_ask_for(
    run: Run, configure: Configure, add: Add
) -> None:
    add(), add()
    reconciler = run(configure())
    ask(reconciler, labels={"production": 1, "canary": 3}, traffic={"production": 1, "canary": 1})
    await until(lambda: states(reconciler) == {1: State.READY, 3: State.READY})
    numbers = {reconciler.router.snapshot.find("chat", str(n))[0].number for n in range(100)}
    assert numbers == {1, 3}
    assert (await routed(reconciler, "chat@canary")).target.number == 3
    ask(reconciler, labels={"production": 3})
    await until(lambda: states(reconciler) == {3: State.READY})


async def test_a_draining_version_ends_with_its_last_answer(
    run: Run, configure: Configure, add: Add
) -> None:
    reconciler = run(configure())
    await until(lambda: reconciler.ready)
    route = await routed(reconciler)
    with route:
        add()
        await until(lambda: states(reconciler).get(1) == State.DRAINING)
        await asyncio.sleep(0.2)
        assert route.replica.pid is not None
        assert psutil.pid_exists(route.replica.pid)
        assert (await routed(reconciler)).target.number == 2
    await until(lambda: states(reconciler) == {2: State.READY})
    assert route.replica.state == State.STOPPED


async def test_a_drain_that_takes_too_long_is_cut_and_said_so(
    run: Run, configure: Configure, add: Add, caplog: pytest.LogCaptureFixture
) -> None:
    settings = configure()
    settings = settings.model_copy(
        update={"timeouts": settings.timeouts.model_copy(update={"drain": 0.2})}
    )
    reconciler = run(settings)
    await until(lambda: reconciler.ready)
    route = await routed(reconciler)
    with route:
        add()
        await until(lambda: states(reconciler) == {2: State.READY})
        assert route.replica.state == State.STOPPED
    assert "chat:1: 1 answers are cut: they took over 0.2 s to finish" in caplog.text


async def test_a_version_that_is_wanted_again_while_it_drains_goes_on(
    run: Run, configure: Configure, add: Add, scripted_home: Path
) -> None:
    reconciler = run(configure())
    await until(lambda: reconciler.ready)
    route = await routed(reconciler)
    with route:
        add()
        await until(lambda: states(reconciler).get(1) == State.DRAINING)
        ask(reconciler, labels={"production": 1})
        assert (await routed(reconciler)).replica is route.replica
    await asyncio.sleep(0.2)
    assert states(reconciler)[1] == State.READY
    assert starts(scripted_home) == 2


async def test_a_version_that_is_wanted_again_once_it_stops_is_started_again(
    run: Run, configure: Configure, add: Add, scripted_home: Path
) -> None:
    add()
    reconciler = run(configure({"chat": {"versions": {"policy": "specific", "numbers": [1]}}}))
    ask(reconciler, labels={"canary": 2})
    await until(lambda: states(reconciler) == {1: State.READY, 2: State.READY})
    scripted_engine.behave(scripted_home)
    pid = (await routed(reconciler, "chat@canary")).replica.pid
    ask(reconciler)
    await until(lambda: served(reconciler, number=2)._stopping)
    ask(reconciler, labels={"canary": 2})
    await until(lambda: states(reconciler).get(2) == State.READY)
    assert (await routed(reconciler, "chat@canary")).replica.pid != pid


async def test_a_replica_killed_in_a_swap_is_replaced_and_the_swap_goes_on(
    run: Run, configure: Configure, add: Add, scripted_home: Path
) -> None:
    reconciler = run(configure())
    await until(lambda: reconciler.ready)
    scripted_engine.behave(scripted_home, start_delay=0.3)
    add()
    await until(lambda: states(reconciler).get(2) == State.LOADING)
    await until(lambda: bool(served(reconciler, number=2).started))
    await until(lambda: served(reconciler, number=2).started[0].pid is not None)
    pid = served(reconciler, number=2).started[0].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await until(lambda: states(reconciler) == {2: State.READY})
    assert served(reconciler, number=2).restarts == 1


async def test_several_replicas_share_a_version_and_one_may_die(
    run: Run, configure: Configure
) -> None:
    reconciler = run(configure({"chat": {"replicas": 3}}))
    await until(lambda: states(reconciler) == {1: State.READY})
    first, second, third = served(reconciler).replicas
    assert len({replica.log_file for replica in (first, second, third)}) == 3
    with await routed(reconciler), await routed(reconciler):
        assert sorted(r.in_flight for r in (first, second, third)) == [0, 1, 1]
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    await until(lambda: first.state != State.READY)
    assert reconciler.ready
    assert (await routed(reconciler)).replica in (second, third)
    await until(lambda: len(served(reconciler).replicas) == 3)


async def test_a_version_is_ready_only_with_all_its_replicas(
    run: Run, configure: Configure, scripted_home: Path
) -> None:
    scripted_engine.behave(scripted_home, crash_at_start="not yet", crash_first_n=1)
    reconciler = run(configure({"chat": {"replicas": 2}}))
    await until(lambda: bool(served(reconciler).replicas))
    await until(lambda: states(reconciler) == {1: State.READY})
    await until(lambda: len(served(reconciler).replicas) == 2)


async def test_a_file_edited_by_hand_is_followed_and_nonsense_is_not(
    run: Run, configure: Configure, add: Add
) -> None:
    add()
    reconciler = run(configure())
    path = reconciler.file.path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"models": {"chat": {"labels": {"production": 1}}}}))
    await until(lambda: reconciler.labels["chat"] == {"production": 1})
    await until(lambda: states(reconciler).get(1) == State.READY)
    for nonsense in ("", "{", "[]", '{"models": {"chat": {"labels": {"production": 0}}}}'):
        path.write_text(nonsense)
        await until(lambda: bool(reconciler.file.fault))
        assert str(path) in reconciler.file.fault
        assert (await routed(reconciler)).target.number == 1
        path.write_text(json.dumps({"models": {"chat": {"labels": {"production": 1}}}}))
        await until(lambda: not reconciler.file.fault)


async def test_a_version_that_vanishes_from_the_store_goes_on_answering(
    run: Run, configure: Configure, add: Add, store: ModelStore
) -> None:
    reconciler = run(configure())
    await until(lambda: reconciler.ready)
    ask(reconciler, labels={"production": 1, "canary": 7})
    shutil.rmtree(store.get("chat", 1).path)
    await until(lambda: states(reconciler).get(7) == State.FAILED)
    assert served(reconciler, number=7).reason == "chat:7 is not in the model store."
    assert (await routed(reconciler)).target.number == 1
    assert (await routed(reconciler)).target.state == State.READY


async def test_a_store_that_cannot_be_read_for_a_while_is_followed_again(
    run: Run,
    configure: Configure,
    add: Add,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    reconciler = run(configure())
    await until(lambda: reconciler.ready)

    def broken(_: str) -> list[int]:
        raise OSError("stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr(reconciler.store, "numbers", broken)
        await until(lambda: "could not be looked at" in caplog.text)
        assert (await routed(reconciler)).target.number == 1
    assert add() == 2
    await until(lambda: reconciler.labels["chat"] == {"production": 2})


async def test_every_state_a_version_comes_into_is_counted(
    run: Run, configure: Configure, add: Add
) -> None:
    reconciler = run(configure())
    await until(lambda: reconciler.ready)
    add()
    await until(lambda: states(reconciler) == {2: State.READY})
    for state in (State.LOADING, State.WARMING, State.READY):
        assert reconciler.transitions["chat", 1, state] == 1
        assert reconciler.transitions["chat", 2, state] == 1
    assert reconciler.transitions["chat", 1, State.DRAINING] == 1
    assert reconciler.transitions["chat", 1, State.STOPPED] == 1


async def test_a_stop_in_the_middle_of_a_swap_leaves_no_engine(
    run: Run, configure: Configure, add: Add
) -> None:
    reconciler = run(configure())
    await until(lambda: reconciler.ready)
    with await routed(reconciler):
        add()
        await until(lambda: states(reconciler).get(1) == State.DRAINING)
        await reconciler.stop()
    assert running_children() == []
