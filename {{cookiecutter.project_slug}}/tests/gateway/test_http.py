"""Reading a body within bounds, and writing a reply whole or as a stream."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serving.contract.errors import ApiError, model_loading
from serving.gateway.http import Responder, read_body, request_id
from serving.runtime.wire import ClientGone

JSON = {"content-type": "application/json"}


def scope(**headers: str) -> dict[str, Any]:
    raw = [(k.replace("_", "-").encode(), v.encode("latin-1")) for k, v in headers.items()]
    return {"type": "http", "headers": raw}


class Client:
    """Sends a body in parts, and remembers what comes back."""

    def __init__(self, *parts: bytes, leaves: bool = False) -> None:
        self.parts = list(parts)
        self.leaves = leaves
        self.sent: list[dict[str, Any]] = []

    async def receive(self) -> dict[str, Any]:
        if not self.parts:
            return {"type": "http.disconnect"}
        part = self.parts.pop(0)
        more = bool(self.parts) or self.leaves
        return {"type": "http.request", "body": part, "more_body": more}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    @property
    def headers(self) -> dict[str, str]:
        return {k.decode(): v.decode() for k, v in self.sent[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


async def body_of(client: Client, limit: int = 10, **headers: str) -> bytes:
    headers = headers or {"content_type": "application/json"}
    return await read_body(scope(**headers), client.receive, limit)


@pytest.mark.parametrize(
    "kind", ["application/json", "application/json; charset=utf-8", "Application/JSON ;x=y"]
)
async def test_a_json_body_is_read_in_as_many_parts_as_it_comes(kind: str) -> None:
    assert await body_of(Client(b"{", b"", b"}"), content_type=kind) == b"{}"


@pytest.mark.parametrize("kind", ["text/plain", "application/jsonx", "", "multipart/form-data"])
async def test_another_content_type_is_415(kind: str) -> None:
    with pytest.raises(ApiError, match="application/json") as caught:
        await body_of(Client(b"{}"), content_type=kind)
    assert caught.value.status == 415


async def test_no_content_type_at_all_is_415() -> None:
    with pytest.raises(ApiError) as caught:
        await body_of(Client(b"{}"), accept="*/*")
    assert caught.value.status == 415


async def test_the_limit_itself_is_allowed_and_one_byte_more_is_413() -> None:
    assert await body_of(Client(b"12345", b"67890"), limit=10) == b"1234567890"
    with pytest.raises(ApiError, match="10 bytes") as caught:
        await body_of(Client(b"12345", b"67890", b"1"), limit=10)
    assert caught.value.status == 413


async def test_a_declared_length_over_the_limit_is_refused_before_anything_is_read() -> None:
    client = Client(b"12345678901")
    with pytest.raises(ApiError) as caught:
        await body_of(client, content_type="application/json", content_length="11")
    assert caught.value.status == 413
    assert client.parts


async def test_a_length_that_lies_does_not_get_past_the_limit() -> None:
    with pytest.raises(ApiError) as caught:
        await body_of(Client(b"x" * 11), content_type="application/json", content_length="2")
    assert caught.value.status == 413


async def test_an_empty_body_is_invalid_json() -> None:
    with pytest.raises(ApiError) as caught:
        await body_of(Client(b""))
    assert (caught.value.status, caught.value.code) == (400, "invalid_json")


async def test_a_client_that_leaves_within_its_body_is_gone() -> None:
    with pytest.raises(ClientGone):
        await body_of(Client(b"{", leaves=True))


def test_the_clients_request_id_is_kept() -> None:
    assert request_id(scope(x_request_id="trace-1:a.b_C")) == "trace-1:a.b_C"


@pytest.mark.parametrize("given", ["", "a b", "é", "x" * 129, "a\nb", "a\n", "<script>"])
def test_a_request_id_that_could_harm_a_log_is_replaced(given: str) -> None:
    made = request_id(scope(x_request_id=given))
    assert made != given
    assert made.isalnum()


def test_two_requests_without_id_have_two_ids() -> None:
    assert request_id(scope()) != request_id(scope())


async def test_a_whole_reply_names_its_length_and_who_served_it() -> None:
    client = Client()
    responder = Responder(scope(x_request_id="mine"), client.send)
    responder.served_by("chat:2", "canary")
    responder.served_by("chat:3", "production")  # the one that answered in the end
    await responder.json(b'{"a": 1}')
    assert client.sent[0]["status"] == 200
    assert client.headers == {
        "x-request-id": "mine",
        "x-served-version": "chat:3",
        "x-served-label": "production",
        "content-type": "application/json",
        "content-length": "8",
    }
    assert client.body == b'{"a": 1}'


async def test_a_stream_has_its_head_once_and_ends_with_its_last_part() -> None:
    client = Client()
    responder = Responder(scope(), client.send)
    assert not responder.started
    await responder.stream(b"a")
    assert responder.started
    await responder.stream(b"b", last=True)
    assert [message["type"] for message in client.sent] == [
        "http.response.start",
        "http.response.body",
        "http.response.body",
    ]
    assert [message["more_body"] for message in client.sent[1:]] == [True, False]
    assert client.headers["content-type"].startswith("text/event-stream")
    assert "content-length" not in client.headers


async def test_an_error_before_the_first_byte_is_a_reply_with_its_status() -> None:
    client = Client()
    await Responder(scope(), client.send).error(model_loading("chat"))
    assert client.sent[0]["status"] == 503
    assert client.headers["retry-after"] == "2"
    assert json.loads(client.body)["error"]["code"] == "model_loading"


async def test_an_error_after_the_first_byte_is_the_last_event_of_the_stream() -> None:
    client = Client()
    responder = Responder(scope(), client.send)
    await responder.stream(b"data: 1\n\n")
    await responder.error(model_loading("chat"))
    assert len([m for m in client.sent if m["type"] == "http.response.start"]) == 1
    assert client.body.startswith(b"data: 1\n\nevent: error\ndata: {")
    assert client.sent[-1]["more_body"] is False


@pytest.mark.parametrize("coding", ["gzip", "br", "identity, gzip", ""])
async def test_a_body_that_is_packed_is_refused_unread(coding: str) -> None:
    client = Client(b"\x1f\x8b")
    with pytest.raises(ApiError, match="without content-encoding") as refusal:
        await body_of(client, content_type="application/json", content_encoding=coding)
    assert refusal.value.status == 415
    assert client.parts
