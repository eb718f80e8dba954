"""What runs follows what serving.yaml asks for, through every way an engine can fail."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import scripted_engine
from reconciling import Configure, Run, engine_pid, running_children, served, starts, until

from serving.contract.errors import ApiError
from serving.runtime.plan import check_plan, policy_numbers
from serving.runtime.replica import State
from serving.runtime.store import ModelStore, StoreError
from serving.runtime.warmup import WarmupClient
from serving.settings import SettingsError


def test_a_policy_is_the_newest_versions_the_named_ones_or_all(configure: Configure) -> None:
    def numbers(**versions: Any) -> list[int]:
        settings = configure({"chat": {"versions": versions}})
        return policy_numbers(settings, "chat", [1, 2, 10])

    assert numbers() == [10]
    assert numbers(policy="latest", count=2) == [10, 2]
    assert numbers(policy="specific", numbers=[1, 2]) == [2, 1]
    assert numbers(policy="all") == [10, 2, 1]


@pytest.mark.parametrize(
    ("models", "told"),
    [
        ({"talk": {}}, "models.talk: the model 'talk' has no version in the store; run `serving"),
        (
            {"chat": {"versions": {"policy": "specific", "numbers": [7]}}},
            "models.chat: chat:7 is not in the model store",
        ),
    ],
)
def test_a_model_the_store_lacks_stops_the_start_with_the_key_and_the_remedy(
    store: ModelStore, configure: Configure, models: Any, told: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        check_plan(configure(models), store)
    assert str(caught.value).startswith(f"serving.yaml: {told}")


def test_an_engine_that_is_not_installed_stops_the_start(
    store: ModelStore, configure: Configure, scripted_home: Path
) -> None:
    (scripted_home / "bin" / "vllm").unlink()
    with pytest.raises(SettingsError, match=r"vllm is not installed .* run `make install`"):
        check_plan(configure(), store)


async def test_the_service_is_ready_when_every_required_model_is(
    run: Run, configure: Configure, store: ModelStore, model_folder: Path
) -> None:
    store.add("extra", model_folder, "here")
    warmup = {"prompts": [scripted_engine.script(fault="status_500")]}
    reconciler = run(configure({"chat": {}, "extra": {"required": False, "warmup": warmup}}))
    assert not reconciler.ready
    with pytest.raises(ApiError) as caught:
        await reconciler.router.route("chat")
    assert caught.value.code == "model_loading"
    await until(lambda: reconciler.ready)
    assert (await reconciler.router.route("chat")).target.tag == "chat:1"


async def test_a_required_model_that_fails_keeps_the_service_from_being_ready(
    run: Run, configure: Configure, store: ModelStore, model_folder: Path
) -> None:
    store.add("extra", model_folder, "here")
    warmup = {"prompts": [scripted_engine.script(fault="status_500")]}
    reconciler = run(configure({"chat": {}, "extra": {"warmup": warmup}}))
    await until(lambda: served(reconciler, "extra").state == State.FAILED)
    await until(lambda: served(reconciler).state == State.READY)
    assert not reconciler.ready
    assert (await reconciler.router.route("chat")).target.tag == "chat:1"


async def test_models_of_higher_priority_load_first(
    run: Run, configure: Configure, store: ModelStore, model_folder: Path, scripted_home: Path
) -> None:
    store.add("urgent", model_folder, "here")
    scripted_engine.behave(scripted_home, start_delay=0.1)
    reconciler = run(configure({"chat": {}, "urgent": {"priority": 5}}))
    await until(lambda: served(reconciler, "urgent").state == State.LOADING)
    while served(reconciler, "urgent").state != State.READY:
        assert not served(reconciler).replicas
        assert starts(scripted_home) <= 1
        await asyncio.sleep(0.005)
    await until(lambda: reconciler.ready)


async def test_a_model_that_fails_does_not_hold_back_those_after_it(
    run: Run, configure: Configure, store: ModelStore, model_folder: Path
) -> None:
    store.add("urgent", model_folder, "here")
    os.truncate(store.get("urgent", 1).path / "config.json", 1)
    reconciler = run(configure({"chat": {}, "urgent": {"priority": 5, "required": False}}))
    await until(lambda: reconciler.ready)
    assert served(reconciler, "urgent").state == State.FAILED


async def test_a_killed_engine_is_unready_at_once_and_replaced_by_itself(
    run: Run, configure: Configure
) -> None:
    reconciler = run(configure())
    await until(lambda: reconciler.ready)
    first = engine_pid(reconciler)
    os.kill(first, signal.SIGKILL)
    await until(lambda: not reconciler.ready)
    with pytest.raises(ApiError) as caught:
        await reconciler.router.route("chat")
    assert caught.value.code == "model_loading"
    assert "killed by signal 9" in served(reconciler).reason
    await until(lambda: reconciler.ready)
    assert engine_pid(reconciler) != first


async def test_an_engine_that_fails_at_first_is_tried_again(
    run: Run, configure: Configure, scripted_home: Path
) -> None:
    scripted_engine.behave(scripted_home, crash_at_start="not yet", crash_first_n=2)
    reconciler = run(configure())
    await until(lambda: reconciler.ready)
    assert starts(scripted_home) == 3


async def test_a_crash_loop_ends_as_failed_with_the_engines_words(
    run: Run, configure: Configure, scripted_home: Path
) -> None:
    scripted_engine.behave(scripted_home, crash_at_start="CUDA driver is too old")
    reconciler = run(configure())
    await until(lambda: served(reconciler).state == State.FAILED)
    assert starts(scripted_home) == 3
    assert "CUDA driver is too old" in served(reconciler).reason
    assert "3 starts in a row" in served(reconciler).reason
    with pytest.raises(ApiError) as caught:
        await reconciler.router.route("chat")
    assert caught.value.code == "model_failed"


async def test_deaths_after_good_service_do_not_add_up_to_a_crash_loop(
    run: Run, configure: Configure
) -> None:
    reconciler = run(configure(healthy_after=0.001, attempts=2))
    for _ in range(3):
        await until(lambda: reconciler.ready)
        await asyncio.sleep(0.01)  # good service, for longer than healthy_after
        os.kill(engine_pid(reconciler), signal.SIGKILL)
        await until(lambda: not reconciler.ready)
    await until(lambda: reconciler.ready)


async def test_a_file_changed_after_the_import_is_never_loaded(
    run: Run, configure: Configure, store: ModelStore, scripted_home: Path
) -> None:
    (store.get("chat", 1).path / "tokenizer.json").write_text("{}", "utf-8")
    reconciler = run(configure())
    await until(lambda: served(reconciler).state == State.FAILED)
    assert "tokenizer.json was changed after its import" in served(reconciler).reason
    assert starts(scripted_home) == 0


async def test_a_file_changed_while_serving_is_not_loaded_at_the_next_start(
    run: Run, configure: Configure, store: ModelStore, scripted_home: Path
) -> None:
    reconciler = run(configure())
    await until(lambda: reconciler.ready)
    (store.get("chat", 1).path / "config.json").write_text("{ }", "utf-8")
    await asyncio.sleep(0.05)  # what serves goes on serving
    assert reconciler.ready
    os.kill(engine_pid(reconciler), signal.SIGKILL)
    await until(lambda: served(reconciler).state == State.FAILED)
    assert starts(scripted_home) == 1


async def test_a_defect_of_ours_ends_as_failed_and_leaves_no_engine_running(
    run: Run, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    async def broken(client: WarmupClient, *_: Any, **__: Any) -> None:
        seen.extend(running_children())
        raise RuntimeError("a defect")

    monkeypatch.setattr(WarmupClient, "chat", broken)
    reconciler = run(configure())
    await until(lambda: served(reconciler).state == State.FAILED)
    assert served(reconciler).reason == "internal error: a defect"
    assert any("scripted_engine.py" in command for command in seen)
    await until(lambda: running_children() == [])


async def test_a_lazy_model_counts_as_ready_and_loads_with_its_first_request(
    run: Run, configure: Configure, scripted_home: Path
) -> None:
    reconciler = run(configure({"chat": {"load": "lazy"}}))
    await until(lambda: reconciler.ready)
    assert starts(scripted_home) == 0
    routes = await asyncio.gather(*(reconciler.router.route("chat") for _ in range(3)))
    assert {route.target.tag for route in routes} == {"chat:1"}
    assert starts(scripted_home) == 1


async def test_a_lazy_model_that_cannot_start_answers_with_its_failure(
    run: Run, configure: Configure, scripted_home: Path
) -> None:
    scripted_engine.behave(scripted_home, crash_at_start="no")
    reconciler = run(configure({"chat": {"load": "lazy"}}))
    with pytest.raises(ApiError) as caught:
        await reconciler.router.route("chat")
    assert caught.value.code == "model_failed"
    assert not reconciler.ready


async def test_a_version_that_is_served_cannot_be_deleted_until_the_service_stops(
    run: Run, configure: Configure, store: ModelStore
) -> None:
    reconciler = run(configure())
    await until(lambda: reconciler.ready)
    version = store.get("chat", 1)
    with pytest.raises(StoreError, match="in use by a running service"):
        store.delete(version)
    await reconciler.stop()
    store.delete(version)


@pytest.mark.parametrize("moment", ["at once", "while loading", "when ready"])
async def test_stop_leaves_no_engine_whenever_it_comes(
    run: Run, configure: Configure, scripted_home: Path, moment: str
) -> None:
    scripted_engine.behave(scripted_home, spawn_child=True)
    reconciler = run(configure())
    if moment == "while loading":
        await until(lambda: starts(scripted_home) == 1)
    elif moment == "when ready":
        await until(lambda: reconciler.ready)
    async with asyncio.timeout(20):
        await reconciler.stop()
    assert running_children() == []
