"""Routes, and the one error envelope for everything that is none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from gateway_client import IMPORTED, Gateway, gateway, snapshot
from raw_server import Request

from serving.contract.openapi import document


@pytest.fixture
async def service() -> AsyncIterator[Gateway]:
    async def handler(request: Request) -> None:
        await request.client_left()

    async with gateway(handler) as service:
        yield service


async def test_the_models_served_are_listed_as_openai_lists_them(service: Gateway) -> None:
    reply = await service.get("/v1/models")
    model = {
        "id": "chat",
        "object": "model",
        "created": int(IMPORTED.timestamp()),
        "owned_by": "llm",
    }
    assert reply.json() == {"object": "list", "data": [model]}
    assert reply.headers["x-request-id"]


async def test_a_models_adapters_are_listed_after_it_under_their_own_address(
    service: Gateway,
) -> None:
    service.router.publish(snapshot(service.replica, adapters=["tax", "law"]))
    listed = (await service.get("/v1/models")).json()["data"]
    assert [model["id"] for model in listed] == ["chat", "chat/law", "chat/tax"]
    assert (await service.get("/v1/models/chat/law")).json()["id"] == "chat/law"


@pytest.mark.parametrize("address", ["chat", "chat:3", "chat@production"])
async def test_one_model_is_shown_under_the_address_it_was_asked_by(
    service: Gateway, address: str
) -> None:
    assert (await service.get(f"/v1/models/{address}")).json()["id"] == address


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/models/nobody", 404, "model_not_found"),
        ("GET", "/v1/models/chat:4", 404, "model_not_found"),
        ("GET", "/v1/models/chat:" + "9" * 5000, 404, "model_not_found"),
        ("GET", "/", 404, "not_found"),
        ("GET", "/v1/nothing", 404, "not_found"),
        ("POST", "/v1/chat/completions/", 404, "not_found"),
        ("GET", "/v1/models/a/b", 404, "model_not_found"),
        ("GET", "/v1/models/chat/nobody", 404, "model_not_found"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("DELETE", "/v1/models/chat", 405, "method_not_allowed"),
    ],
)
async def test_what_is_not_there_gets_the_envelope_too(
    service: Gateway, method: str, path: str, status: int, code: str
) -> None:
    async with service.client() as client:
        reply = await client.request(method, path)
    assert reply.status_code == status
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert reply.headers["x-request-id"]
    assert ("allow" in reply.headers) == (status == 405)


async def test_the_contract_is_served_as_openapi(service: Gateway) -> None:
    assert (await service.get("/openapi.json")).json() == document()


async def test_a_defect_of_ours_is_a_500_without_its_traceback(
    service: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(service.router.snapshot.__class__, "find", broken)
    body = {"model": "chat", "messages": [{"role": "user", "content": "Hi"}]}
    for reply in await asyncio.gather(
        service.get("/v1/models/chat"), service.post("/v1/chat/completions", body)
    ):
        assert reply.status_code == 500
        assert reply.json()["error"]["code"] == "internal_error"
        assert "secret detail" not in reply.text
