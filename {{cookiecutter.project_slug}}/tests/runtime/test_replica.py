"""One engine process from its start to its end, for each dialect."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import scripted_engine

from serving.runtime import replica as module
from serving.runtime.replica import Replica, ReplicaDied, State
from serving.runtime.store import ModelStore, Version
from serving.runtime.warmup import WarmupClient
from serving.runtime.wire import Wire
from serving.settings import Settings

ENGINES = ["transformers", "vllm", "sglang"]


@pytest.fixture
def version(store_home: Path, model_folder: Path) -> Version:
    return ModelStore(store_home).add("chat", model_folder, "here")


Make = Callable[..., Replica]


@pytest.fixture
async def make(
    version: Version,
    scripted_home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Make]:
    monkeypatch.setattr(module, "HEALTH_EVERY", 0.02)
    made: list[Replica] = []

    def make(engine: str = "vllm", model: Any = None, **timeouts: float) -> Replica:
        settings = Settings.model_validate(
            {
                "service": {"name": "llm", "state": tmp_path / "state"},
                "engine": {"name": engine, "max_model_len": 256, "home": scripted_home},
                "models": {"chat": model or {}},
                "timeouts": {"start": 20, "warmup": 10, "stop": 5, "health": 5, **timeouts},
            }
        )
        made.append(Replica(settings, version, tmp_path / "warmup_hooks.py"))
        return made[-1]

    yield make
    for replica in made:
        await replica.stop()


async def stats(replica: Replica) -> dict[str, Any]:
    _, body = await replica.wire.get("/stats", timeout=5)
    document: dict[str, Any] = json.loads(body)
    return document


def log_of(replica: Replica) -> str:
    return replica.log_file.read_text("utf-8")


@pytest.mark.parametrize("engine", ENGINES)
async def test_a_replica_is_ready_only_after_its_warm_up_was_answered(
    make: Make, engine: str
) -> None:
    replica = make(engine, {"warmup": {"prompts": ["Hello"], "rounds": 2, "logprobs": False}})
    assert replica.state is not State.READY
    await replica.start()
    assert str(replica.state) == "ready"
    seen = await stats(replica)
    assert (seen["requests"], seen["refused_keys"]) == (2, 0)
    assert replica.pid == seen["pid"]
    client = WarmupClient("chat:1", replica.engine, replica.wire, 5)
    assert await client.chat(scripted_engine.script(text="Paris is it")) == "Paris is it"


@pytest.mark.parametrize("load", ["eager", "lazy"])
async def test_without_prewarm_nobody_asks_it_anything(make: Make, load: str) -> None:
    replica = make(model={"load": load})
    await replica.start()
    assert replica.state == State.READY
    assert (await stats(replica))["requests"] == 0


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
async def test_the_key_is_asked_of_everybody_and_shown_to_nobody(
    make: Make, scripted_home: Path, engine: str
) -> None:
    scripted_engine.behave(scripted_home, secret_echo=True)
    replica = make(engine)
    await replica.start()
    lines = replica.wire._head.decode().split("\r\n")
    key = next(line.rsplit(" ", 1)[1] for line in lines if line.startswith("authorization"))
    assert len(key) >= 32
    commands = [" ".join(psutil.Process(replica.pid).cmdline())]
    commands += [" ".join(psutil.Process(replica.pid).parent().cmdline())]  # type: ignore[union-attr]
    assert not any(key in command for command in commands)
    stranger = Wire(replica.wire._host, replica.wire._port, {})
    reply = await stranger.request("POST", "/v1/completions", b"{}")
    await reply.head(5)
    assert reply.status == 401
    reply.close()
    await replica.stop()
    assert "my key is ***" in log_of(replica)
    assert key not in log_of(replica)


async def test_two_starts_have_two_keys(make: Make) -> None:
    first, second = make(model={"load": "eager"}), make(model={"load": "eager"})
    await asyncio.gather(first.start(), second.start())
    assert first.wire._head.splitlines()[-1] != second.wire._head.splitlines()[-1]


async def test_stop_ends_the_engine_and_leaves_no_folder(make: Make) -> None:
    replica = make("sglang")
    await replica.start()
    folder, pid = replica._folder, replica.pid
    assert folder is not None
    assert (folder / "sglang.yaml").is_file()
    assert pid is not None
    await replica.stop()
    assert replica.state == State.STOPPED
    assert not folder.exists()
    assert not psutil.pid_exists(pid)
    await replica.stop()


async def test_an_engine_that_does_not_start_is_told_with_its_own_words(
    make: Make, scripted_home: Path
) -> None:
    scripted_engine.behave(scripted_home, crash_at_start="CUDA driver is too old")
    with pytest.raises(ReplicaDied, match="did not start: exit status 1") as caught:
        await make().start()
    assert "CUDA driver is too old" in str(caught.value)


async def test_an_engine_that_is_not_installed_is_told_with_the_remedy(
    make: Make, scripted_home: Path
) -> None:
    (scripted_home / "bin" / "vllm").unlink()
    with pytest.raises(ReplicaDied, match=r"vllm is not installed .* run `make install`"):
        await make().start()


async def test_an_engine_that_hangs_at_its_start_is_given_up_in_time(
    make: Make, scripted_home: Path
) -> None:
    scripted_engine.behave(scripted_home, hang_at_start=True)
    replica = make(start=1)
    with pytest.raises(ReplicaDied, match="not healthy after 1 s") as caught:
        await replica.start()
    assert str(replica.log_file) in str(caught.value)


async def test_a_slow_engine_is_waited_for(make: Make, scripted_home: Path) -> None:
    scripted_engine.behave(scripted_home, start_delay=0.5)
    replica = make()
    await replica.start()
    assert replica.state == State.READY


async def test_a_log_folder_that_cannot_be_made_is_a_reason_and_no_traceback(
    make: Make, tmp_path: Path
) -> None:
    (tmp_path / "state").write_text("a file in the way", "utf-8")
    with pytest.raises(ReplicaDied, match="could not be started"):
        await make().start()


@pytest.mark.parametrize("fault", ["status_500", "error_event", "no_end", "crash_before"])
async def test_a_replica_whose_warm_up_fails_does_not_become_ready(make: Make, fault: str) -> None:
    replica = make(model={"warmup": {"prompts": [scripted_engine.script(fault=fault)]}})
    with pytest.raises(ReplicaDied, match="warm-up request failed"):
        await replica.start()
    assert replica.state != State.READY


async def test_a_warm_up_that_takes_too_long_is_given_up(make: Make) -> None:
    prompt = scripted_engine.script(tokens=16, delay_ms=200)
    replica = make(model={"warmup": {"prompts": [prompt]}}, warmup=0.5)
    with pytest.raises(ReplicaDied, match=r"warm-up took over 0\.5 s|warm-up request failed"):
        await replica.start()


async def test_the_projects_hook_may_refuse_the_replica(make: Make, tmp_path: Path) -> None:
    code = "async def warm_up(client):\n    assert 'Paris' in await client.chat('Capital?')"
    (tmp_path / "warmup_hooks.py").write_text(code, "utf-8")
    with pytest.raises(ReplicaDied, match=r"warmup_hooks\.py raised AssertionError"):
        await make().start()


async def test_death_is_noticed_at_once_and_told_with_its_signal(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = make(model={"load": "eager"})
    await replica.start()
    monkeypatch.setattr(module, "HEALTH_EVERY", 600)
    watching = asyncio.ensure_future(replica.until_dead())
    await asyncio.sleep(0)
    assert replica.pid is not None
    os.kill(replica.pid, signal.SIGKILL)
    async with asyncio.timeout(5):
        assert "ended by itself: killed by signal 9" in await watching


async def test_an_engine_that_calls_itself_unwell_is_believed(
    make: Make, scripted_home: Path, tmp_path: Path
) -> None:
    scripted_engine.behave(scripted_home, health_503_after=str(tmp_path / "sick"))
    replica = make(model={"load": "eager"})
    await replica.start()
    (tmp_path / "sick").touch()
    async with asyncio.timeout(10):
        assert await replica.until_dead() == "its health check answers 503"


async def test_an_engine_that_hangs_is_given_up_after_three_silent_checks(make: Make) -> None:
    replica = make(model={"load": "eager"}, health=0.05)
    await replica.start()
    assert replica.pid is not None
    os.kill(replica.pid, signal.SIGSTOP)
    try:
        async with asyncio.timeout(10):
            assert "did not answer 3 health checks" in await replica.until_dead()
    finally:
        os.kill(replica.pid, signal.SIGCONT)
