"""A bad request gets the envelope, the right status and the field's name; nobody else notices."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from live_service import TIMEOUTS, Service, chat_body, text_of
from scripted_engine import script

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("deadline")]

CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}


@pytest.fixture
def service(shared: Callable[[str], Service]) -> Service:
    return shared("transformers")


def envelope(reply: httpx.Response) -> dict[str, Any]:
    """The error of a reply, after a look at its shape."""
    document = reply.json()
    assert set(document) == {"error"}, document
    error: dict[str, Any] = document["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["type"] == ("invalid_request_error" if reply.status_code < 500 else "server_error")
    assert reply.headers["x-request-id"]
    assert "Traceback" not in reply.text
    return error


def body(**changes: Any) -> bytes:
    return json.dumps({**chat_body("Hello"), **changes}).encode()


def without(field: str) -> bytes:
    document = chat_body("Hello")
    del document[field]
    return json.dumps(document).encode()


def said(**message: Any) -> bytes:
    return body(messages=[message])


BAD: list[tuple[str, bytes, int, str, str | None]] = [
    ("empty body", b"", 400, "invalid_json", None),
    ("malformed JSON", b'{"model": "chat", ', 400, "invalid_json", None),
    ("not UTF-8", b'{"model": "\xff\xfe"}', 400, "invalid_json", None),
    ("a list", b"[]", 400, "invalid_request", None),
    ("a number", b"7", 400, "invalid_request", None),
    ("null", b"null", 400, "invalid_request", None),
    ("no model", without("model"), 400, "invalid_request", "model"),
    ("no messages", without("messages"), 400, "invalid_request", "messages"),
    ("empty messages", body(messages=[]), 400, "invalid_request", "messages"),
    ("messages of a wrong type", body(messages="hi"), 400, "invalid_request", "messages"),
    ("a message that is none", body(messages=["hi"]), 400, "invalid_request", "messages[0]"),
    ("no role", said(content="hi"), 400, "invalid_request", "messages[0].role"),
    ("an odd role", said(role="king", content="hi"), 400, "invalid_request", "messages[0].role"),
    ("no content", said(role="user"), 400, "invalid_request", "messages[0].content"),
    (
        "null content",
        said(role="user", content=None),
        400,
        "invalid_request",
        "messages[0].content",
    ),
    ("content 5", said(role="user", content=5), 400, "invalid_request", "messages[0].content"),
    ("no parts", said(role="user", content=[]), 400, "invalid_request", "messages[0].content"),
    (
        "a part without text",
        said(role="user", content=[{"type": "text"}]),
        400,
        "invalid_request",
        "messages[0].content[0].text",
    ),
    (
        "an unknown field in a message",
        said(role="user", content="hi", mood="good"),
        400,
        "unknown_field",
        "messages[0].mood",
    ),
    ("a text for a number", body(max_tokens="many"), 400, "invalid_request", "max_tokens"),
    ("a number in a text", body(max_tokens="5"), 400, "invalid_request", "max_tokens"),
    ("no token at all", body(max_tokens=0), 400, "invalid_request", "max_tokens"),
    ("a temperature too high", body(temperature=9), 400, "invalid_request", "temperature"),
    ("not a number", b'{"temperature": NaN, ' + body()[1:], 400, "invalid_request", "temperature"),
    ("a stop text of nothing", body(stop=""), 400, "invalid_request", "stop"),
    ("too many stop texts", body(stop=["a"] * 5), 400, "invalid_request", "stop"),
    ("a wrong stream", body(stream="perhaps"), 400, "invalid_request", "stream"),
    (
        "an unknown stream option",
        body(stream_options={"include_use": True}),
        400,
        "unknown_field",
        "stream_options.include_use",
    ),
    ("an unknown field", body(temprature=0.5), 400, "unknown_field", "temprature"),
    ("a field of another kind", body(prompt="Hello"), 400, "unknown_field", "prompt"),
    ("an unknown model", body(model="other"), 404, "model_not_found", "model"),
    ("an unknown version", body(model="chat:2"), 404, "model_not_found", "model"),
    ("a longer version", body(model="chat:10"), 404, "model_not_found", "model"),
    ("an unknown label", body(model="chat@canary"), 404, "model_not_found", "model"),
    ("no address", body(model="chat:1@production"), 404, "model_not_found", "model"),
    ("a capability", body(presence_penalty=1), 400, "unsupported_by_engine", "presence_penalty"),
    ("two choices", body(n=2), 400, "unsupported_by_engine", "n"),
    (
        "a prompt too long",
        said(role="user", content="w " * 300),
        400,
        "context_length_exceeded",
        "messages",
    ),
    ("an answer too long", body(max_tokens=5000), 400, "context_length_exceeded", "messages"),
]


@pytest.mark.parametrize(
    ("content", "status", "code", "param"), [bad[1:] for bad in BAD], ids=[bad[0] for bad in BAD]
)
def test_a_bad_request_is_refused_with_its_field(
    service: Service, content: bytes, status: int, code: str, param: str | None
) -> None:
    before = service.stats()["requests"]
    reply = service.http.post(CHAT, content=content, headers=JSON)
    error = envelope(reply)
    assert (reply.status_code, error["code"], error["param"]) == (status, code, param)
    assert service.stats()["requests"] == before


def test_an_unknown_field_is_told_the_nearest_one(service: Service) -> None:
    reply = service.http.post(CHAT, content=body(temprature=0.5), headers=JSON)
    assert "temperature" in envelope(reply)["message"]


@pytest.mark.parametrize("field", ["max_tokens", "prompt"])
def test_a_bad_completion_is_refused_with_its_field(service: Service, field: str) -> None:
    document = {"model": "chat", "prompt": "Hello", field: []}
    reply = service.http.post("/v1/completions", json=document)
    assert (reply.status_code, envelope(reply)["param"]) == (400, field)


def test_a_value_that_asks_for_nothing_needs_no_capability(service: Service) -> None:
    neutral = {"presence_penalty": 0, "frequency_penalty": 0, "n": 1, "repetition_penalty": 1.0}
    assert service.chat("Hello", **neutral).status_code == 200


@pytest.mark.parametrize("engine", ["transformers", "vllm", "sglang"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_context_too_long_is_the_same_error_from_every_engine(
    engine: str, stream: bool, shared: Callable[[str], Service]
) -> None:
    service = shared(engine)
    for prompt, tokens in (("w " * 300, 5), ("Hello", 5000)):
        reply = service.chat(prompt, max_tokens=tokens, stream=stream)
        error = envelope(reply)
        assert (reply.status_code, error["code"]) == (400, "context_length_exceeded")
        assert error["param"] == "messages"
        assert "256" in error["message"]
        text = service.http.post(
            "/v1/completions", json={"model": "chat", "prompt": prompt, "max_tokens": tokens}
        )
        assert (text.status_code, envelope(text)["param"]) == (400, "prompt")


def test_a_conversation_the_template_refuses_is_the_clients_error(service: Service) -> None:
    content = said(role="assistant", content="I begin.")
    error = envelope(service.http.post(CHAT, content=content, headers=JSON))
    assert error["param"] == "messages"
    assert "the first message is the assistant's" in error["message"]


def test_a_body_over_the_limit_is_refused_before_it_is_read(service: Service) -> None:
    """Only the head is sent: the answer must come without the body."""
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as connection:
        connection.sendall(head.encode() + b"content-length: 1000000000\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


def test_a_body_over_the_limit_is_refused_while_it_comes_in_chunks(service: Service) -> None:
    def endless() -> Iterator[bytes]:
        yield b'{"model": "'
        for _ in range(100):
            yield b"x" * 1000

    reply = service.http.post(CHAT, content=endless(), headers=JSON)
    assert (reply.status_code, envelope(reply)["code"]) == (413, "body_too_large")


def test_a_body_just_under_the_limit_is_read(service: Service) -> None:
    content = body(user="x" * (65536 - len(body(user=""))))
    assert len(content) == 65536
    reply = service.http.post(CHAT, content=content, headers=JSON)
    assert (reply.status_code, envelope(reply)["param"]) == (400, "user")


def test_a_chunked_body_is_as_good_as_any(service: Service) -> None:
    reply = service.http.post(CHAT, content=iter([body()[:10], body()[10:]]), headers=JSON)
    assert reply.status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", CHAT, "POST"), ("DELETE", "/v1/completions", "POST"), ("POST", "/v1/models", "GET")],
)
def test_a_wrong_method_is_told_the_right_one(
    service: Service, method: str, path: str, allowed: str
) -> None:
    reply = service.http.request(method, path)
    assert (reply.status_code, envelope(reply)["code"]) == (405, "method_not_allowed")
    assert allowed in reply.headers["allow"].split(", ")


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/nothing", "/v1/chat/completions/"])
def test_an_unknown_path_is_not_found(service: Service, path: str) -> None:
    reply = service.http.post(path, content=body(), headers=JSON)
    assert (reply.status_code, envelope(reply)["code"]) == (404, "not_found")


def test_an_unknown_model_cannot_be_retrieved(service: Service) -> None:
    reply = service.http.get("/v1/models/other")
    assert (reply.status_code, envelope(reply)["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", None])
def test_another_content_type_is_refused(service: Service, content_type: str | None) -> None:
    headers = {"content-type": content_type} if content_type else {}
    reply = service.http.post(CHAT, content=body(), headers=headers)
    assert (reply.status_code, envelope(reply)["code"]) == (415, "unsupported_media_type")


def test_a_content_type_may_have_a_charset(service: Service) -> None:
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    assert service.http.post(CHAT, content=body(), headers=headers).status_code == 200


def test_a_good_request_is_not_disturbed_by_bad_ones(service: Service) -> None:
    """One stream runs while every bad request of the table is sent twice over."""
    answers: list[str] = []

    def good() -> None:
        with service.stream(script(tokens=60, delay_ms=20), max_tokens=60) as stream:
            answers.append(text_of(stream.rest()))

    caller = threading.Thread(target=good)
    caller.start()
    sent = 0
    while caller.is_alive() or sent < 2 * len(BAD):
        service.http.post(CHAT, content=BAD[sent % len(BAD)][1], headers=JSON)
        sent += 1
    caller.join(TIMEOUTS["stall"] * 5)
    assert answers == [" ".join(f"w{i}" for i in range(60))]
