"""Limits that hold for streams, under load, whatever becomes of them."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from commands import new_key
from live_service import Service, chat_body, eventually
from scripted_engine import script
from versions import stats_of

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("deadline")]


@pytest.fixture(scope="module")
def service(serve: Callable[..., Service]) -> Service:
    settings = {"auth": {"mode": "keys"}, "timeouts": {"answer": 3}}
    return serve(settings=settings).start().wait_ready()


def make(service: Service, *options: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SERVING_CONFIG", str(service.config))
    return new_key(service, *options)


async def ask(client: httpx.AsyncClient, met: Counter[str], **fields: Any) -> None:
    """A stream, read to its end, or left in the middle when `leaves` says so."""
    leaves = fields.pop("leaves", False)
    body = chat_body(script(**fields), stream=True)
    async with client.stream("POST", "/v1/chat/completions", json=body) as reply:
        if reply.status_code != 200:
            met[str(reply.status_code)] += 1
            return
        if leaves:
            await anext(reply.aiter_raw())
            met["left"] += 1
            return
        text = (await reply.aread()).decode()
    met["done" if text.endswith("data: [DONE]\n\n") else "broken"] += 1


async def crowd(service: Service, key: str, requests: list[dict[str, Any]]) -> Counter[str]:
    met: Counter[str] = Counter()
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=service.url, headers={"authorization": f"Bearer {key}"}, limits=limits, timeout=30
    ) as client:
        await asyncio.gather(*(ask(client, met, **fields) for fields in requests))
    return met


def test_200_streams_of_a_key_limited_to_10_never_are_more_in_the_engine(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = make(service, "--concurrent", "10", monkeypatch=monkeypatch)
    met = asyncio.run(crowd(service, key, [{"tokens": 20, "delay_ms": 50}] * 200))
    assert stats_of(service, 1)["max_in_flight"] <= 10
    assert met == {"done": met["done"], "429": 200 - met["done"]}
    assert met["done"] >= 10


def test_who_asks_again_at_once_finds_the_place_free(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = make(service, "--concurrent", "1", monkeypatch=monkeypatch)
    headers = {"authorization": f"Bearer {key}"}
    for number in range(100):
        body = chat_body(script(tokens=2), stream=number % 2 == 0)
        reply = service.http.post("/v1/chat/completions", headers=headers, json=body)
        assert (reply.status_code, number) == (200, number)


@pytest.mark.parametrize(
    "fields",
    [
        {"tokens": 1000, "delay_ms": 20, "leaves": True},
        {"fault": "status_500"},
        {"fault": "garbage"},
        {"fault": "stall"},
        {"fault": "reset"},
    ],
    ids=lambda fields: str(fields.get("fault", "leaves")),
)
def test_every_slot_is_free_again_however_a_request_ends(
    service: Service, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    key = make(service, "--concurrent", "10", monkeypatch=monkeypatch)
    for _ in range(2):
        met = asyncio.run(crowd(service, key, [fields] * 10))
        eventually(lambda: stats_of(service, 1)["in_flight"] == 0, "the engine has nothing to do")
        assert met["429"] == 0
    assert asyncio.run(crowd(service, key, [{"tokens": 2}] * 10)) == {"done": 10}


def test_tokens_are_settled_by_what_the_engine_counted(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = make(service, "--tokens-per-day", "1000", monkeypatch=monkeypatch)
    client = openai.OpenAI(base_url=f"{service.url}/v1", api_key=key, max_retries=0)
    prompt = script(tokens=20)
    messages: Any = [{"role": "user", "content": prompt}]
    reserved = len(prompt) // 4 + 1 + 100
    used = each = 0

    def ask() -> int:
        reply = client.chat.completions.create(model="chat", messages=messages, max_tokens=100)
        assert reply.usage is not None
        return reply.usage.total_tokens

    while used + reserved <= 1000:
        each = ask()
        used += each
    assert 0 < each < reserved
    with pytest.raises(openai.RateLimitError, match="may take 1000 tokens per day") as caught:
        ask()
    assert int(caught.value.response.headers["retry-after"]) > 0


def test_every_reply_tells_what_is_left(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--requests-per-minute", "100", "--tokens-per-minute", "100000")
    key = make(service, *options, monkeypatch=monkeypatch)
    headers = {"authorization": f"Bearer {key}"}
    for fields, status in (
        ({}, 200),
        ({"stream": True}, 200),
        ({"model": "chat:9"}, 404),
        ({"top_k": 5, "max_tokens": 9999}, 400),
    ):
        body = {**chat_body("Hello"), **fields}
        reply = service.http.post("/v1/chat/completions", headers=headers, json=body)
        assert reply.status_code == status
        assert reply.headers["x-ratelimit-limit-requests"] == "100"
        assert int(reply.headers["x-ratelimit-remaining-tokens"]) < 100000
        assert reply.headers["x-ratelimit-reset-tokens"].endswith("s")
    assert json.loads(reply.text)["error"]["code"] == "context_length_exceeded"


def test_metrics_name_what_is_served_and_nothing_a_client_makes_up(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = make(service, "--scope", "inference", "--scope", "metrics", monkeypatch=monkeypatch)
    headers = {"authorization": f"Bearer {key}"}

    def series() -> set[str]:
        lines = service.http.get("/metrics", headers=headers).text.splitlines()
        return {line.rpartition(" ")[0] for line in lines if line.startswith("serving_")}

    def ask(model: str) -> int:
        body = chat_body("Hello", model=model, user=model)
        return service.http.post("/v1/chat/completions", headers=headers, json=body).status_code

    assert ask("chat") == 200
    assert ask("nobody") == 404
    service.http.get("/v1/nobody", headers=headers)
    before = series()
    wanted = (
        'serving_time_to_first_token_seconds_count{label="production",model="chat",version="1"}'
    )
    assert wanted in before
    for number in range(300):
        assert ask(f"nobody-{number}") == 404
        service.http.get(f"/v1/path-{number}", headers=headers)
    assert series() == before
    assert key not in "".join(before)
    assert key.split("-")[1] not in "".join(before)


def test_what_an_engine_has_no_place_for_waits_in_turn_or_is_told_to_come_back(
    serve: Callable[..., Service],
) -> None:
    limits = {"in_flight": 4, "queue": 40, "max_body_bytes": 65536}
    busy = serve(settings={"limits": limits}).start().wait_ready()
    met = asyncio.run(crowd(busy, "none", [{"tokens": 5, "delay_ms": 50}] * 100))
    assert met == {"done": met["done"], "503": 100 - met["done"]}
    assert 44 <= met["done"] < 100
    assert stats_of(busy, 1)["max_in_flight"] == 4
    metrics = busy.http.get("/metrics").text
    assert f'serving_errors_total{{code="overloaded"}} {met["503"]}.0' in metrics
