"""The main job on the real engine: the baked demo, served by BentoML, asked by OpenAI's client."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from baking import ROOT
from openai.types.chat import ChatCompletionMessageParam
from served import Served, eventually, served

DEMO = ROOT / "build/demo/llm-service"
NUMBERS = " ".join(str(n) for n in range(1, 101)) + "."


def user(question: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": question}]


FRANCE = user("What is the capital of France?")
COUNT = user("Count to 100.")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(DEMO, tmp_path_factory.mktemp("served")) as running:
        yield running


@pytest.fixture
def client(service: Served) -> openai.OpenAI:
    service.wait_ready()
    return openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0)


def ask(client: openai.OpenAI, question: str, **options: Any) -> str:
    reply = client.chat.completions.create(model="chat", messages=user(question), **options)
    text: str | None = reply.choices[0].message.content
    return text or ""


def test_the_openai_client_chats(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="chat", messages=FRANCE)
    assert reply.choices[0].message.content == "The capital of France is Paris."
    assert reply.choices[0].finish_reason == "stop"
    assert (reply.model, reply.system_fingerprint) == ("chat", "chat:1")
    assert reply.usage
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_the_openai_client_streams_every_token(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="chat", messages=COUNT, stream=True, stream_options={"include_usage": True}
        )
    )
    texts = [c.choices[0].delta.content for c in chunks if c.choices and c.choices[0].delta.content]
    assert "".join(texts) == NUMBERS
    assert len(texts) > 100
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage
    assert chunks[-1].usage.completion_tokens > 100


def test_the_openai_client_lists_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["chat"]
    assert client.models.retrieve("chat:1").id == "chat:1"


def test_the_openai_client_continues_text(client: openai.OpenAI) -> None:
    reply = client.completions.create(model="chat", prompt="The capital of France is")
    assert "Paris" in reply.choices[0].text


def test_the_async_openai_client_streams(service: Served) -> None:
    async def stream() -> str:
        async with openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key="none") as client:
            chunks = await client.chat.completions.create(
                model="chat", messages=FRANCE, stream=True
            )
            return "".join([c.choices[0].delta.content or "" async for c in chunks])

    assert asyncio.run(stream()) == "The capital of France is Paris."


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What is 7 plus 5?", "7 plus 5 is 12."),
        ("Say hello in Japanese.", "こんにちは!"),
        ("Send me a smile.", "😊"),
    ],
)
def test_the_demo_model_answers_sensibly_streamed_or_not(
    client: openai.OpenAI, question: str, answer: str
) -> None:
    assert ask(client, question) == answer
    streamed = client.chat.completions.create(model="chat", messages=user(question), stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == answer


def test_a_token_limit_ends_the_answer_with_the_reason_length(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="chat", messages=COUNT, max_tokens=5)
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage
    assert reply.usage.completion_tokens == 5


def test_a_stop_text_ends_the_answer_and_is_not_in_it(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="chat", messages=COUNT, stop=[" 7 "])
    assert reply.choices[0].message.content == "1 2 3 4 5 6"
    assert reply.choices[0].finish_reason == "stop"


def test_temperature_is_honoured_for_each_request(client: openai.OpenAI) -> None:
    story = "Tell me a story."
    hot = {ask(client, story, temperature=2.0, seed=seed, max_tokens=40) for seed in range(4)}
    cold = {ask(client, story, temperature=0, seed=seed, max_tokens=40) for seed in range(2)}
    assert len(cold) == 1
    assert len(hot) > 1


def test_a_prompt_over_the_context_length_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, "word " * 600)
    assert refused.value.code == "context_length_exceeded"
    assert refused.value.param == "messages"


def test_the_warm_up_ran_before_the_service_was_ready(service: Served) -> None:
    log = service.log.read_text()
    assert "chat:1 is ready on transformers" in log
    assert "warm-up 0.0 s" not in log


def test_continuous_batching_keeps_16_streams_apart(tmp_path: Path) -> None:
    questions = {
        f"What is {a} plus {b}?": f"{a} plus {b} is {a + b}."
        for a in range(1, 5)
        for b in range(2, 6)
    }

    async def all_at_once(url: str) -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=60) as client:

            async def one(question: str) -> str:
                chunks = await client.chat.completions.create(
                    model="chat", messages=user(question), stream=True
                )
                return "".join([c.choices[0].delta.content or "" async for c in chunks])

            return await asyncio.gather(*map(one, questions))

    with served(DEMO, tmp_path, engine={"continuous_batching": True}) as service:
        assert asyncio.run(all_at_once(service.url)) == list(questions.values())
        with openai.OpenAI(base_url=f"{service.url}/v1", api_key="none") as client:
            with pytest.raises(openai.BadRequestError) as refused:
                ask(client, "Hello!", temperature=0.7)
            assert refused.value.code == "unsupported_by_engine"
            assert ask(client, "Hello!", temperature=0)


def test_a_killed_engine_breaks_the_stream_honestly_and_comes_back(service: Served) -> None:
    service.wait_ready()
    body = {"model": "chat", "messages": COUNT, "stream": True}
    with httpx.stream("POST", f"{service.url}/v1/chat/completions", json=body, timeout=60) as reply:
        lines = reply.iter_lines()
        while '"content":"5' not in next(lines):
            pass
        service.engine().kill()
        killed = time.monotonic()
        eventually(lambda: not service.ready(), "not ready", 2)
        assert time.monotonic() - killed < 2
        rest = [line for line in lines if line]
    assert rest[-2] == "event: error"
    assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "engine_error"
    assert "data: [DONE]" not in rest
    service.wait_ready()
    assert (
        "Paris"
        in httpx.post(
            f"{service.url}/v1/chat/completions",
            json={"model": "chat", "messages": FRANCE},
            timeout=60,
        ).text
    )


@pytest.mark.parametrize("killed", ["bentoml serve", "its worker"])
def test_a_killed_service_leaves_no_process_behind(tmp_path: Path, killed: str) -> None:
    with served(DEMO, tmp_path) as service:
        family = service.family()
        engine = service.engine()
        if killed == "bentoml serve":
            service.process.kill()
            service.process.wait()
            eventually(lambda: not any(map(_alive, family)), "all gone", 30)
        else:
            family[0].kill()
            eventually(lambda: not _alive(engine), "the engine gone", 5)


def test_ctrl_c_lets_a_running_stream_finish_and_exits_with_0(tmp_path: Path) -> None:
    with served(DEMO, tmp_path) as service:
        family = service.family()
        with openai.OpenAI(base_url=f"{service.url}/v1", api_key="none") as client:
            chunks = client.chat.completions.create(model="chat", messages=COUNT, stream=True)
            text = next(chunks).choices[0].delta.content or ""
            # A terminal sends it to the whole foreground group; the engine is in one of its own.
            for process in (psutil.Process(service.process.pid), family[0]):
                process.send_signal(signal.SIGINT)
            text += "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert text == NUMBERS
        assert service.process.wait(60) == 0
        assert not any(map(_alive, family))


def _alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
