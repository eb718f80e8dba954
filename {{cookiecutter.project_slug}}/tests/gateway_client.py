"""The gateway's application over an engine that a test plays itself."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
from raw_server import Handler, RawServer, serving

from serving.engines.base import Engine
from serving.engines.vllm import Vllm
from serving.gateway.app import create_app
from serving.runtime.replica import Replica, State
from serving.runtime.routing import Router, ServedModel, Snapshot, Target
from serving.runtime.shutdown import Shutdown
from serving.runtime.wire import Wire
from serving.settings import Settings, VllmEngine

IMPORTED = datetime(2026, 1, 2, tzinfo=UTC)


def settings(**timeouts: float) -> Settings:
    return Settings.model_validate(
        {
            "service": {"name": "llm"},
            "engine": {"name": "vllm", "max_model_len": 512},
            "models": {"chat": {}},
            "timeouts": {"lazy": 1, **timeouts},
            "limits": {"max_body_bytes": 4096, "waiting": 10},
        }
    )


def replica_at(port: int, engine: Engine | None = None) -> Replica:
    """What the gateway needs of a replica."""
    adapter = engine or Vllm(VllmEngine(name="vllm", max_model_len=512), Path())
    wire = Wire("127.0.0.1", port, {})
    return cast(Replica, SimpleNamespace(engine=adapter, wire=wire, in_flight=0, state=State.READY))


def snapshot(
    replica: Replica | None, state: State = State.READY, adapters: Iterable[str] = ()
) -> Snapshot:
    replicas = (replica,) if replica else ()
    target = Target(
        "chat", 3, IMPORTED, state, replicas, lambda: None, adapters=frozenset(adapters)
    )
    return Snapshot({"chat": ServedModel({3: target}, {"production": 3})})


@dataclass
class Call:
    """One request made directly of the ASGI application, with a client that can leave."""

    path: str
    body: Any
    sent: list[dict[str, Any]] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    asked: bool = False

    async def receive(self) -> dict[str, Any]:
        if not self.asked:
            self.asked = True
            return {"type": "http.request", "body": json.dumps(self.body).encode()}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)
        if message["type"] == "http.response.body":
            self.arrived.set()

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def bytes(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


@dataclass
class Gateway:
    app: Any
    router: Router
    shutdown: Shutdown
    engine: RawServer
    replica: Replica

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            yield client

    async def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        async with self.client() as client, asyncio.timeout(20):
            return await client.post(path, json=body, headers=headers)

    async def get(self, path: str) -> httpx.Response:
        async with self.client() as client, asyncio.timeout(20):
            return await client.get(path)

    def call(self, path: str, body: Any) -> tuple[Call, asyncio.Task[None]]:
        call = Call(path, body)
        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "http_version": "1.1",
            "scheme": "http",
            "headers": [(b"content-type", b"application/json")],
        }
        return call, asyncio.ensure_future(self.app(scope, call.receive, call.send))


@contextlib.asynccontextmanager
async def gateway(
    handler: Handler,
    engine: Engine | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    **timeouts: float,
) -> AsyncIterator[Gateway]:
    """`options` are those of `create_app`."""
    async with serving(handler) as server:
        replica = replica_at(server.port, engine)
        made = settings(drain=60, **timeouts)
        router, shutdown = Router(made), Shutdown(made)
        router.publish(snapshot(replica))
        app = create_app(made, router, shutdown, **(options or {}))
        yield Gateway(app, router, shutdown, server, replica)
