"""One line of JSON for each request."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from gateway_client import gateway
from gateway_client import settings as make_settings
from raw_server import Request, answer, whole

from serving.accounts.keys import ApiKey
from serving.accounts.ring import KeyRing
from serving.contract.completions import CompletionRequest
from serving.gateway.auth import Gate
from serving.gateway.request_log import LONGEST, RequestLog, log
from serving.settings import Settings

CHAT = "/v1/chat/completions"
SECRET = "what the client wrote"
HELLO = {"model": "chat", "messages": [{"role": "user", "content": SECRET}]}


class Lines(logging.Handler):
    """Those written so far."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())

    @property
    def only(self) -> dict[str, Any]:
        (text,) = self.texts
        line: dict[str, Any] = json.loads(text)
        return line


@pytest.fixture
def lines() -> Iterator[Lines]:
    handler = Lines()
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield handler
    log.removeHandler(handler)
    log.setLevel(logging.NOTSET)


def options(**logs: bool) -> dict[str, Any]:
    settings = Settings.model_validate({**make_settings().model_dump(), "logs": logs})
    return {"request_log": RequestLog(settings)}


async def says_hello(request: Request) -> None:
    await request.send(answer("Hel", "lo"))


async def test_an_answer_is_one_line_with_all_but_what_was_said(lines: Lines) -> None:
    async with gateway(says_hello, options=options()) as service:
        await service.post(CHAT, {**HELLO, "stream": True}, **{"x-request-id": "mine"})
    line = lines.only
    assert 0 < line.pop("ttft") < line.pop("duration") < 10
    assert line.pop("time").endswith("Z")
    assert line == {
        "request_id": "mine",
        "client": "127.0.0.1",
        "method": "POST",
        "path": CHAT,
        "status": 200,
        "model": "chat",
        "version": 3,
        "label": "production",
        "engine": "vllm",
        "stream": True,
        "finish_reason": "stop",
        "prompt_tokens": 1,
        "completion_tokens": 2,
        "cached_tokens": 0,
        "reasoning_tokens": 0,
    }
    assert SECRET not in lines.texts[0]
    assert "\n" not in lines.texts[0]


async def test_an_engine_that_fails_shows_with_the_version_that_did(lines: Lines) -> None:
    async def fails(request: Request) -> None:
        await request.send(whole(b"{}", 500))

    async with gateway(fails, options=options()) as service:
        await service.post(CHAT, HELLO)
    line = lines.only
    assert (line["status"], line["error"], line["version"]) == (502, "engine_error", 3)


@pytest.mark.parametrize(
    ("headers", "body", "status", "code"),
    [
        ({}, {"model": "chat"}, 400, "invalid_request"),
        ({}, {**HELLO, "user": "x" * 9999}, 413, "body_too_large"),
        ({"content-type": "text/plain"}, HELLO, 415, "unsupported_media_type"),
        ({}, {**HELLO, "model": "nobody"}, 404, "model_not_found"),
    ],
)
async def test_what_was_refused_shows_with_what_is_known_of_it(
    lines: Lines, headers: dict[str, str], body: Any, status: int, code: str
) -> None:
    async with gateway(says_hello, options=options()) as service:
        await service.post(CHAT, body, **headers)
    line = lines.only
    assert (line["status"], line["error"]) == (status, code)
    assert line.get("model") == ("nobody" if status == 404 else None)
    assert len(line["request_id"]) == 32


async def test_a_key_shows_as_its_id(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    key = ApiKey(
        id="abcd2345",
        name="ann",
        digest=b"",
        scopes=frozenset({"inference"}),
        models=None,
        labels=None,
        quota=None,
        created=datetime.now(UTC),
        expires=None,
        revoked=None,
    )
    ring = KeyRing.__new__(KeyRing)
    monkeypatch.setattr(KeyRing, "find", lambda _, shown: key if shown == "sk-right" else None)
    gate = Gate(ring, "keys")
    async with gateway(says_hello, options={**options(), "gate": gate}) as service:
        await service.post(CHAT, HELLO, authorization="Bearer sk-right")
        await service.post(CHAT, HELLO, authorization="Bearer sk-wrong")
    right, wrong = (json.loads(text) for text in lines.texts)
    assert (right["key"], right["status"]) == ("abcd2345", 200)
    assert ("key" in wrong, wrong["status"], wrong["error"]) == (False, 401, "invalid_api_key")
    assert "sk-" not in "".join(lines.texts)


async def test_a_client_that_leaves_shows_as_such(lines: Lines) -> None:
    async def never_ends(request: Request) -> None:
        await request.send(answer("Hel", "lo", done=False)[:-5])
        await request.client_left()

    async with gateway(never_ends, options=options()) as service:
        call, task = service.call(CHAT, {**HELLO, "stream": True})
        await call.arrived.wait()
        call.left.set()
        await task
    line = lines.only
    assert (line["status"], line["completion_tokens"]) == (499, 2)
    assert "error" not in line


async def test_prompts_are_in_it_when_switched_on(lines: Lines) -> None:
    async with gateway(says_hello, options=options(prompts=True)) as service:
        await service.post(CHAT, HELLO)
        await service.post("/v1/completions", {"model": "chat", "prompt": "once"})
    chat, completion = (json.loads(text)["prompt"] for text in lines.texts)
    assert json.loads(chat)[0]["content"] == SECRET
    assert completion == "once"


def test_of_a_long_prompt_only_the_beginning_is_in_it() -> None:
    request_log: RequestLog = options(prompts=True)["request_log"]
    prompt = "y" * LONGEST + "z" * LONGEST
    assert request_log.prompt(CompletionRequest(model="chat", prompt=prompt)) == "y" * LONGEST


async def test_a_client_cannot_write_a_line_of_its_own(lines: Lines) -> None:
    name = 'x"}\n{"status": 200, "forged": true}\u2028\x1b[31m'
    async with gateway(says_hello, options=options()) as service:
        await service.post(CHAT, {**HELLO, "model": name})
        await service.get("/v1/%0A%7B%22forged%22%3A1%7D" + "a" * 9999)
    model, path = lines.texts
    assert json.loads(model)["model"] == name
    assert json.loads(path)["path"].startswith('/v1/\n{"forged":1}aaa')
    assert len(json.loads(path)["path"]) == LONGEST
    assert not any(set("\n\r\x1b") & set(text) for text in lines.texts)


async def test_other_paths_have_their_lines_too(lines: Lines) -> None:
    async with gateway(says_hello, options=options()) as service:
        reply = await service.get("/v1/models")
        await service.get("/nowhere")
    models, nowhere = (json.loads(text) for text in lines.texts)
    assert (models["path"], models["status"], models["method"]) == ("/v1/models", 200, "GET")
    assert models["request_id"] == reply.headers["x-request-id"]
    assert (nowhere["status"], nowhere["duration"] > 0) == (404, True)


async def test_switched_off_there_is_no_line(lines: Lines) -> None:
    async with gateway(says_hello, options=options(requests=False)) as service:
        await service.post(CHAT, HELLO)
        await service.get("/v1/models")
    assert lines.texts == []
