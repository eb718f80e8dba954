"""A server that somebody else runs: one service made from this template in front of another."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from engines.harness import DEMO, Engine
from served import Served

CAPABILITIES = ["temperature", "top_p", "seed", "stop", "tools", "logprobs", "response_format"]


@pytest.fixture(scope="session")
def front(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A second service whose engine is the first one's API."""
    section = {
        "name": "openai_compatible",
        "url": f"{engine.url}/v1",
        "model": "chat",
        "max_model_len": 512,
        "capabilities": CAPABILITIES,
    }
    folder = tmp_path_factory.mktemp("front")
    front = Served(DEMO, folder, engine=section, models={"assistant": []}).start()
    try:
        yield front.wait_ready(60)
    finally:
        front.stop()


@pytest.fixture
def client(front: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{front.url}/v1", api_key="none", max_retries=0, timeout=120)


def chat(url: str, model: str, **fields: Any) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "Count to 20."}], **fields}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120)


def test_it_says_what_the_server_behind_it_says(engine: Engine, front: Served) -> None:
    direct, behind = chat(engine.url, "chat").json(), chat(front.url, "assistant").json()
    assert behind["choices"] == direct["choices"]
    assert behind["usage"]["total_tokens"] == direct["usage"]["total_tokens"]
    assert (behind["model"], behind["system_fingerprint"]) == ("assistant", "assistant:1")


def test_it_streams_and_no_process_of_ours_is_behind_it(
    client: openai.OpenAI, front: Served
) -> None:
    chunks = client.chat.completions.create(
        model="assistant", messages=[{"role": "user", "content": "Count to 20."}], stream=True
    )
    assert len([c for c in chunks if c.choices and c.choices[0].delta.content]) > 20
    names = [Path(process.cmdline()[1]).name for process in front.family()]
    assert "guard.py" not in names


def test_what_its_section_does_not_name_is_refused(front: Served) -> None:
    refused = chat(front.url, "assistant", n=2)
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "unsupported_by_engine"


def test_a_refusal_behind_it_is_the_same_refusal(front: Served) -> None:
    for streamed in (False, True):
        reply = chat(front.url, "assistant", max_tokens=510, stream=streamed)
        error = reply.json()["error"]
        assert (reply.status_code, error["code"]) == (400, "context_length_exceeded")


def test_structure_passes_through(engine: Engine, client: openai.OpenAI) -> None:
    if engine.name == "transformers":  # it has none, and says so through both services
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(
                model="assistant",
                messages=[{"role": "user", "content": "Give me a JSON object."}],
                response_format={"type": "json_object"},
            )
        return
    reply = client.chat.completions.create(
        model="assistant",
        messages=[{"role": "user", "content": "Give me a JSON object."}],
        response_format={"type": "json_object"},
        logprobs=True,
        temperature=0,
    )
    assert isinstance(json.loads(reply.choices[0].message.content or ""), dict)
    assert reply.choices[0].logprobs
