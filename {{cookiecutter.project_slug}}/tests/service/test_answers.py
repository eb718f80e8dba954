"""The same answers from every engine, for the official client and for whoever reads the bytes."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from live_service import Service, chat_body, text_of
from scripted_engine import script

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("deadline")]

EIGHT = "w0 w1 w2 w3 w4 w5 w6 w7"


@pytest.fixture(params=["transformers", "vllm", "sglang"], scope="module")
def service(request: pytest.FixtureRequest, shared: Callable[[str], Service]) -> Service:
    return shared(request.param)


def test_the_openai_client_chats(service: Service) -> None:
    reply = service.openai().chat.completions.create(
        model="chat", messages=[{"role": "user", "content": "Hello world"}]
    )
    assert reply.choices[0].message.content == EIGHT
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 8
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + 8


def test_the_openai_client_streams(service: Service) -> None:
    chunks = list(
        service.openai().chat.completions.create(
            model="chat",
            messages=[{"role": "user", "content": "Hello"}],
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == EIGHT
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 8


def test_the_openai_client_completes_text(service: Service) -> None:
    client = service.openai()
    whole = client.completions.create(model="chat", prompt="Hello")
    assert (whole.choices[0].text, whole.choices[0].finish_reason) == (EIGHT, "stop")
    stream = client.completions.create(model="chat", prompt="Hello", stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == EIGHT


def test_the_openai_client_lists_models(service: Service) -> None:
    client = service.openai()
    assert [model.id for model in client.models.list()] == ["chat"]
    assert client.models.retrieve("chat:1").id == "chat:1"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_a_chat_reply_has_exactly_the_keys_of_the_contract(service: Service) -> None:
    reply = service.chat(script(tokens=2)).json()
    assert reply.pop("id").startswith("chatcmpl-")
    assert isinstance(reply.pop("created"), int)
    usage = reply.pop("usage")
    assert usage.pop("prompt_tokens_details") == {"cached_tokens": 0}
    assert usage.pop("completion_tokens_details") == {"reasoning_tokens": 0}
    assert sorted(usage) == ["completion_tokens", "prompt_tokens", "total_tokens"]
    assert reply == {
        "object": "chat.completion",
        "model": "chat",
        "system_fingerprint": "chat:1",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "w0 w1", "refusal": None},
                "finish_reason": "stop",
                "logprobs": None,
            }
        ],
    }


def test_a_completion_has_exactly_the_keys_of_the_contract(service: Service) -> None:
    body = {"model": "chat", "prompt": script(tokens=2)}
    reply = service.http.post("/v1/completions", json=body).json()
    assert reply.pop("id").startswith("cmpl-")
    assert isinstance(reply.pop("created"), int)
    assert reply.pop("usage")["completion_tokens"] == 2
    assert reply == {
        "object": "text_completion",
        "model": "chat",
        "system_fingerprint": "chat:1",
        "choices": [{"index": 0, "text": "w0 w1", "finish_reason": "stop", "logprobs": None}],
    }


def chunk(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
    return {
        "object": "chat.completion.chunk",
        "model": "chat",
        "system_fingerprint": "chat:1",
        "choices": [choice],
    }


def test_a_chat_stream_is_role_content_finish_usage_done_and_nothing_else(service: Service) -> None:
    with service.stream(script(tokens=2), stream_options={"include_usage": True}) as stream:
        *events, done = stream.rest()
    assert (done.name, done.data) == ("message", "[DONE]")
    documents = [event.json for event in events]
    assert len({(d.pop("id"), d.pop("created")) for d in documents}) == 1
    usage = documents[-1].pop("usage")
    assert usage["completion_tokens"] == 2
    expected = [
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "w0"}),
        chunk({"content": " w1"}),
        chunk({}, "stop"),
    ]
    assert documents[:-1] == [{**event, "usage": None} for event in expected]
    assert documents[-1] == {**chunk({}), "choices": []}


def test_a_stream_carries_no_usage_unless_asked(service: Service) -> None:
    with service.stream(script(tokens=2)) as stream:
        *events, done = stream.rest()
    assert done.data == "[DONE]"
    assert all("usage" not in event.json for event in events)
    assert events[-1].json["choices"][0]["finish_reason"] == "stop"


def test_a_completion_stream_has_one_finish_reason_and_ends_with_done(service: Service) -> None:
    body = {"model": "chat", "prompt": script(tokens=3), "stream": True}
    lines = [
        line.removeprefix("data: ")
        for line in service.http.post("/v1/completions", json=body).text.split("\n")
        if line and not line.startswith(":")
    ]
    assert lines.pop() == "[DONE]"
    choices = [httpx.Response(200, text=line).json()["choices"][0] for line in lines]
    assert "".join(choice["text"] for choice in choices) == "w0 w1 w2"
    assert [choice["finish_reason"] for choice in choices] == [None, None, None, "stop"]


@pytest.mark.parametrize("address", ["chat", "chat:1", "chat@production"])
def test_the_reply_names_the_model_as_the_client_did(service: Service, address: str) -> None:
    reply = service.chat("Hello", model=address)
    assert reply.json()["model"] == address
    assert reply.json()["system_fingerprint"] == "chat:1"
    assert reply.headers["x-served-version"] == "chat:1"
    label = None if address == "chat:1" else "production"
    assert reply.headers.get("x-served-label") == label
    with service.stream("Hello", model=address) as stream:
        assert stream.response.headers["x-served-version"] == "chat:1"
        assert {e.json["model"] for e in stream.rest() if e.data != "[DONE]"} == {address}


def test_a_request_id_is_echoed_and_made_where_there_is_none(service: Service) -> None:
    body = chat_body("Hello")
    given = service.http.post(
        "/v1/chat/completions", json=body, headers={"x-request-id": "my-id.1"}
    )
    assert given.headers["x-request-id"] == "my-id.1"
    refused = service.http.post(
        "/v1/chat/completions", json={}, headers={"x-request-id": "my-id.2"}
    )
    assert (refused.status_code, refused.headers["x-request-id"]) == (400, "my-id.2")
    odd = service.http.post("/v1/chat/completions", json=body, headers={"x-request-id": "a b<c>"})
    assert re.fullmatch("[0-9a-f]{32}", odd.headers["x-request-id"])


def test_a_token_limit_ends_with_the_reason_length(service: Service) -> None:
    for field in ("max_tokens", "max_completion_tokens"):
        reply = service.chat(script(tokens=9), **{field: 3}).json()
        assert reply["choices"][0]["message"]["content"] == "w0 w1 w2"
        assert reply["choices"][0]["finish_reason"] == "length"
        assert reply["usage"]["completion_tokens"] == 3


def test_an_answer_stops_before_a_stop_text(service: Service) -> None:
    for stop in ("w3", ["nowhere", "2 w3"]):
        reply = service.chat(script(tokens=9), stop=stop).json()["choices"][0]
        expected = "w0 w1 w2 " if stop == "w3" else "w0 w1 w"
        assert (reply["message"]["content"], reply["finish_reason"]) == (expected, "stop")
        with service.stream(script(tokens=9), stop=stop) as stream:
            assert text_of(stream.rest()) == expected


def test_an_empty_answer_is_an_answer(service: Service) -> None:
    reply = service.chat(script(text="")).json()["choices"][0]
    assert (reply["message"]["content"], reply["finish_reason"]) == ("", "stop")


def test_sampling_fields_every_engine_has_are_taken(service: Service) -> None:
    reply = service.chat(
        "Hello",
        **{"temperature": 0.5, "top_p": 0.9, "top_k": 20, "min_p": 0.1},
        repetition_penalty=1.1,
        user="somebody",
    )
    assert reply.status_code == 200, reply.text


def test_the_engine_hears_that_no_token_ends_an_answer(service: Service) -> None:
    def heard(ignore: bool) -> tuple[Any, Any]:
        fields = {"max_tokens": 3, "ignore_eos": ignore}
        text = {"model": "chat", "prompt": "Hello", **fields}
        for reply in (
            service.chat("Hello", **fields),
            service.http.post("/v1/completions", json=text),
        ):
            assert reply.json()["usage"]["completion_tokens"] == 3
        chat, completion = service.stats()["bodies"][-2:]
        return _ignores_eos(chat), _ignores_eos(completion)

    assert (heard(True), heard(False)) == ((True, True), (False, False))


def _ignores_eos(body: dict[str, Any]) -> bool:
    """Whether the engine was told to, in its dialect."""
    if "generation_config" in body:
        return bool(json.loads(body["generation_config"])["eos_token_id"] == -1)
    return bool(body.get("ignore_eos", False))


def test_an_earlier_reply_can_be_sent_back_as_it_came(service: Service) -> None:
    client = service.openai()
    first = client.chat.completions.create(
        model="chat", messages=[{"role": "user", "content": "Hello"}]
    )
    reply = client.chat.completions.create(
        model="chat",
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
            first.choices[0].message.model_dump(exclude_none=True),  # type: ignore[list-item]
            {"role": "user", "content": "Hello"},
        ],
    )
    assert reply.choices[0].message.content == EIGHT
    seen = service.stats()["bodies"][-1]["messages"]
    assert [message["role"] for message in seen] == ["system", "user", "assistant", "user"]


UNICODE = 'Größe → 東京 🗼👩‍👩‍👧 e\u0301 \u2028 "quoted" \\ \t end'


@pytest.mark.parametrize("cut", [1, 3, 64])
def test_text_survives_being_cut_anywhere(service: Service, cut: int) -> None:
    prompt = script(text=UNICODE, piece=1, cut=cut)
    with service.stream(prompt, max_tokens=100) as stream:
        assert text_of(stream.rest()) == UNICODE
    whole = service.chat(prompt, max_tokens=100).json()["choices"][0]
    assert whole["message"]["content"] == UNICODE


def test_many_events_in_one_write_are_all_relayed_in_order(service: Service) -> None:
    with service.stream(script(tokens=200, per_write=0), max_tokens=200) as stream:
        events = stream.rest()
    assert text_of(events) == " ".join(f"w{i}" for i in range(200))
    assert events[-1].data == "[DONE]"


def test_a_long_prefill_sends_comments_and_then_the_answer(service: Service) -> None:
    with service.stream(script(tokens=2, first_delay_ms=900)) as stream:
        events = list(stream)
    names = [event.name for event in events]
    assert names[:2] == ["comment", "comment"]
    assert text_of(events) == "w0 w1"
    client = service.openai().chat.completions.create(
        model="chat",
        messages=[{"role": "user", "content": script(tokens=2, first_delay_ms=600)}],
        stream=True,
    )
    assert "".join(c.choices[0].delta.content or "" for c in client) == "w0 w1"


def test_64_streams_at_once_stay_apart(service: Service) -> None:
    async def ask(client: openai.AsyncOpenAI, caller: int) -> tuple[int, str]:
        text = " ".join(f"{caller}-{i}" for i in range(30))
        stream = await client.chat.completions.create(
            model="chat",
            messages=[{"role": "user", "content": script(text=text, delay_ms=10)}],
            stream=True,
            max_tokens=100,
        )
        return caller, "".join([c.choices[0].delta.content or "" async for c in stream])

    async def ask_all() -> list[tuple[int, str]]:
        async with openai.AsyncOpenAI(
            base_url=f"{service.url}/v1", api_key="none", max_retries=0, timeout=30
        ) as client:
            return await asyncio.gather(*(ask(client, caller) for caller in range(64)))

    for caller, text in asyncio.run(ask_all()):
        assert text == " ".join(f"{caller}-{i}" for i in range(30))
    stats = service.stats()
    assert stats["max_in_flight"] >= 32
    assert stats["in_flight"] == 0


def test_the_engine_was_asked_with_its_key_only(service: Service) -> None:
    service.chat("Hello")
    stats = service.stats()
    assert stats["refused_keys"] == 0
    if service.engine == "transformers":
        return
    direct = httpx.post(
        f"http://127.0.0.1:{service.engine_port}/v1/chat/completions", json=chat_body("Hello")
    )
    assert direct.status_code == 401


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_several_choices_stay_apart(engine: str, shared: Callable[[str], Service]) -> None:
    service = shared(engine)
    reply = service.chat(script(tokens=3), n=2).json()
    assert [choice["index"] for choice in reply["choices"]] == [0, 1]
    assert [choice["message"]["content"] for choice in reply["choices"]] == ["w0 w1 w2"] * 2
    with service.stream(script(tokens=3), n=2) as stream:
        *events, done = stream.rest()
    assert done.data == "[DONE]"
    for index in (0, 1):
        own = [e for e in events if e.json["choices"][0]["index"] == index]
        assert own[0].json["choices"][0]["delta"]["role"] == "assistant"
        assert text_of(own) == "w0 w1 w2"
        reasons = [event.json["choices"][0]["finish_reason"] for event in own]
        assert reasons == [None] * (len(own) - 1) + ["stop"]
