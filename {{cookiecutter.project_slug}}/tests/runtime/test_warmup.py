"""What a replica is asked before its first client, and what keeps it from serving."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from raw_server import Request, answer, serving, whole

from serving.engines.vllm import Vllm
from serving.runtime.warmup import WarmupClient, WarmupFailed, load_hook, warm_up
from serving.runtime.wire import Wire
from serving.settings import VllmEngine, Warmup


class Engine:
    """Answers every request with "warm", after `release`, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.running = 0
        self.most = 0
        self.together = 1
        self.arrived = asyncio.Condition()
        self.status = 200

    async def handle(self, request: Request) -> None:
        self.asked.append(json.loads(request.body))
        self.running += 1
        self.most = max(self.most, self.running)
        async with self.arrived:
            self.arrived.notify_all()
            await self.arrived.wait_for(lambda: self.most >= self.together)
        reply = answer("wa", "rm") if self.status == 200 else whole(b"secret words", self.status)
        self.running -= 1
        await request.send(reply)


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    engine = Engine()
    async with serving(engine.handle) as server:
        engine.port = server.port  # type: ignore[attr-defined]
        yield engine


@pytest.fixture
def client(engine: Engine) -> WarmupClient:
    adapter = Vllm(VllmEngine(name="vllm", max_model_len=512), Path())
    wire = Wire("127.0.0.1", engine.port, {})  # type: ignore[attr-defined]
    return WarmupClient("chat:3", adapter, wire, patience=5)


async def test_every_round_asks_every_prompt_as_often_as_they_run_together(
    engine: Engine, client: WarmupClient
) -> None:
    engine.together = 3  # nobody is answered before three have asked
    settings = Warmup(prompts=["a", "b"], concurrency=3, rounds=2, max_tokens=5, logprobs=False)
    async with asyncio.timeout(10):
        await warm_up(client, settings, None)
    prompts = [body["messages"][-1]["content"] for body in engine.asked]
    assert (prompts.count("a"), prompts.count("b")) == (6, 6)
    assert engine.most == 3
    assert {body["max_tokens"] for body in engine.asked} == {5}


async def test_prefixes_come_first_as_system_prompts(engine: Engine, client: WarmupClient) -> None:
    settings = Warmup(prefixes=["You are a pirate.", "Be brief."], logprobs=False)
    await warm_up(client, settings, None)
    first, second, third = (body["messages"] for body in engine.asked)
    assert first[0] == {"role": "system", "content": "You are a pirate."}
    assert second[0] == {"role": "system", "content": "Be brief."}
    assert [message["role"] for message in third] == ["user"]


async def test_prefixes_are_placed_without_any_prompt(engine: Engine, client: WarmupClient) -> None:
    await warm_up(client, Warmup(prompts=[], prefixes=["You are a pirate."]), None)
    assert len(engine.asked) == 1


async def test_log_probabilities_are_asked_for_once_where_there_are_any(
    engine: Engine, client: WarmupClient
) -> None:
    await warm_up(client, Warmup(rounds=2), None)
    assert [body.get("top_logprobs") for body in engine.asked] == [None, None, 1]


async def test_an_engine_that_compiles_nothing_for_them_is_not_asked(
    engine: Engine, client: WarmupClient
) -> None:
    client.engine.compiles_logprobs = False  # type: ignore[misc]
    await warm_up(client, Warmup(), None)
    assert len(engine.asked) == 1


@pytest.mark.parametrize("status", [400, 500, 503])
async def test_a_refused_warm_up_request_keeps_the_replica_from_serving(
    engine: Engine, client: WarmupClient, status: int
) -> None:
    engine.status = status
    with pytest.raises(WarmupFailed, match="a warm-up request failed") as caught:
        await warm_up(client, Warmup(), None)
    assert "secret words" not in str(caught.value)


async def test_an_engine_that_is_not_there_fails_the_warm_up(client: WarmupClient) -> None:
    gone = WarmupClient(client.version, client.engine, Wire("127.0.0.1", 1, {}), 1)
    with pytest.raises(WarmupFailed):
        await warm_up(gone, Warmup(), None)


async def test_a_silent_engine_fails_the_warm_up_when_its_patience_ends(
    engine: Engine, client: WarmupClient
) -> None:
    engine.together = 2
    impatient = WarmupClient(client.version, client.engine, client.wire, 0.05)
    with pytest.raises(WarmupFailed, match="silent"):
        await warm_up(impatient, Warmup(), None)


async def embeds(request: Request) -> None:
    asked = json.loads(request.body)["input"]
    data = [{"index": at, "embedding": [0.5] * 8} for at, _ in enumerate(asked)]
    body = {"data": data, "usage": {"prompt_tokens": 1, "total_tokens": 1}}
    await request.send(whole(json.dumps(body).encode()))


async def test_an_embedding_model_is_warmed_up_with_embeddings() -> None:
    adapter = Vllm(VllmEngine(name="vllm", max_model_len=512), Path(), "embed")
    async with serving(embeds) as server:
        client = WarmupClient("embed:3", adapter, Wire("127.0.0.1", server.port, {}), patience=5)
        await warm_up(client, Warmup(prompts=["a", "b"], concurrency=2), None)
        assert [json.loads(request.body)["input"] for request in server.requests].count(["a"]) == 2
        assert {request.head.split()[1] for request in server.requests} == {"/v1/embeddings"}
        assert await client.embed("Paris") == 8


def hook_file(folder: Path, code: str) -> Path:
    path = folder / "warmup_hooks.py"
    path.write_text(code, "utf-8")
    return path


async def test_the_projects_own_hook_runs_last_and_sees_the_answers(
    engine: Engine, client: WarmupClient, tmp_path: Path
) -> None:
    hook = load_hook(
        hook_file(
            tmp_path,
            "async def warm_up(client):\n"
            "    assert await client.chat('mine', system='s', max_tokens=3) == 'warm'\n"
            "    assert await client.complete('text') == 'warm'\n"
            "    assert client.version == 'chat:3'\n",
        )
    )
    await warm_up(client, Warmup(logprobs=False), hook)
    assert engine.asked[1]["messages"][-1]["content"] == "mine"
    assert engine.asked[2]["prompt"] == "text"


async def test_whatever_the_hook_raises_is_the_reason_the_replica_may_not_serve(
    client: WarmupClient, tmp_path: Path
) -> None:
    hook = load_hook(
        hook_file(tmp_path, "async def warm_up(client):\n    raise ValueError('bad answer')")
    )
    with pytest.raises(WarmupFailed, match="raised ValueError: bad answer"):
        await warm_up(client, Warmup(), hook)


def test_no_file_and_a_file_without_the_function_mean_no_hook(tmp_path: Path) -> None:
    assert load_hook(tmp_path / "warmup_hooks.py") is None
    assert load_hook(hook_file(tmp_path, "x = 1")) is None


@pytest.mark.parametrize("code", ["this is not python", "import no_such_module", "1 / 0"])
def test_a_file_that_cannot_be_imported_is_told_by_name(tmp_path: Path, code: str) -> None:
    with pytest.raises(WarmupFailed, match=r"warmup_hooks\.py cannot be imported"):
        load_hook(hook_file(tmp_path, code))


def test_a_function_that_is_not_async_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(WarmupFailed, match="must be `async def"):
        load_hook(hook_file(tmp_path, "def warm_up(client): ..."))


def test_the_hook_file_this_project_ships_can_be_loaded() -> None:
    assert load_hook(Path(__file__).parents[2] / "warmup_hooks.py") is not None
