"""The protocol itself, in this process, where its tasks and its writers can be seen."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import uvicorn
from gateway_client import settings
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState

from serving.gateway.connection import ClientConnection
from serving.gateway.patient import PatientProtocol
from serving.gateway.shortcut import Find

HEAD = {"type": "http.response.start", "status": 200, "headers": []}
END = {"type": "http.response.body", "body": b"", "more_body": False}
GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
PIECE = b"x" * 10_000


@contextlib.asynccontextmanager
async def served(app: ASGIApp, find: Find | None = None, **timeouts: float) -> AsyncIterator[int]:
    """The port of a server that speaks the protocol."""
    loop = asyncio.get_running_loop()
    state = ServerState()
    # Any: uvicorn has a type of its own for ASGI applications.
    whole: Any = app
    config = uvicorn.Config(whole, log_config=None, ws="none", access_log=False)
    limits = settings(**timeouts)

    def connection() -> PatientProtocol:
        return PatientProtocol(
            limits,
            lambda _: None,
            find,
            config=config,
            server_state=state,
            app_state={},
            _loop=loop,
        )

    server = await loop.create_server(connection, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for client in list(state.connections):
            client.transport.abort()
        for task in list(state.tasks):
            task.cancel()
        await asyncio.sleep(0)


async def no_app(_: Scope, __: Receive, ___: Send) -> None:
    raise AssertionError("no request is complete")


async def test_slow_connections_hold_no_task() -> None:
    async with served(no_app, head=60) as port:
        before = len(asyncio.all_tasks())
        clients = [await asyncio.open_connection("127.0.0.1", port) for _ in range(500)]
        for _, writer in clients:
            writer.write(GET[:-2])
            await writer.drain()
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == before
        for _, writer in clients:
            writer.close()


async def test_the_middle_of_a_reply_may_be_written_straight_to_the_client() -> None:
    async def app(scope: Scope, _: Receive, send: Send) -> None:
        client = ClientConnection.of(scope)
        assert client is not None
        await send(HEAD)
        client.write(b"one, ")
        client.write(b"two")
        await send({"type": "http.response.body", "body": b", three", "more_body": True})
        await send(END)

    async with served(app) as port, httpx.AsyncClient() as client:
        for _ in range(3):  # on one connection, so each reply ends where it should
            assert (await client.get(f"http://127.0.0.1:{port}/")).text == "one, two, three"


async def test_a_server_that_is_not_ours_has_no_such_connection() -> None:
    assert ClientConnection.of({"type": "http"}) is None
    assert ClientConnection.of({"type": "http", "extensions": {"tls": {}}}) is None


async def test_the_short_way_leads_past_the_application_and_behind_the_proxies() -> None:
    clients: dict[str, str] = {}

    def of(name: str) -> ASGIApp:
        async def app(scope: Scope, _: Receive, send: Send) -> None:
            clients[name] = scope["client"][0]
            await send(HEAD)
            await send(END)

        return app

    endpoint = of("short way")

    def find(scope: Scope) -> ASGIApp | None:
        return endpoint if scope["path"] == "/v1/chat/completions" else None

    forwarded = {"x-forwarded-for": "203.0.113.7"}
    async with served(of("application"), find) as port, httpx.AsyncClient() as client:
        for path in ("/v1/chat/completions", "/v1/models"):
            await client.get(f"http://127.0.0.1:{port}{path}", headers=forwarded)
    assert clients == {"short way": "203.0.113.7", "application": "203.0.113.7"}


async def test_a_client_is_watched_until_the_next_request_is_answered() -> None:
    left: list[str] = []
    over = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        client = ClientConnection.of(scope)
        assert client is not None
        path: str = scope["path"]

        def leave() -> None:
            left.append(path)

        client.watch(leave)
        await send(HEAD)
        await send(END)
        if path == "/first":
            await second.wait()  # something of it is still to be done
            client.unwatch(leave)
            over.set()
        else:
            second.set()

    second = asyncio.Event()
    async with served(app) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        for path in (b"/first", b"/second"):
            writer.write(b"GET %b HTTP/1.1\r\nhost: x\r\n\r\n" % path)
        await over.wait()
        writer.close()
        while not left:
            await asyncio.sleep(0.01)
    assert left == ["/second"]


async def test_a_client_is_seen_to_leave_after_a_long_body() -> None:
    over = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        client = ClientConnection.of(scope)
        assert client is not None
        while (await receive())["more_body"]:
            pass
        client.watch(over.set)
        await over.wait()

    body = b"x" * 1_000_000
    async with served(app) as port, asyncio.timeout(20):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        length = b"content-length: %d" % len(body)
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\n%b\r\n\r\n%b" % (length, body))
        await writer.drain()
        await asyncio.sleep(0.2)  # until it is being answered
        writer.close()
        await over.wait()


async def test_whoever_has_left_before_is_seen_at_once() -> None:
    gone: list[bool] = []
    left: list[bool] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        client = ClientConnection.of(scope)
        assert client is not None
        while not client.gone:
            await asyncio.sleep(0.01)
        client.watch(lambda: left.append(True))
        gone.append(True)

    async with served(app) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(GET)
        writer.close()
        while not gone:
            await asyncio.sleep(0.01)
    assert left == [True]


class Flood:
    """An application that writes straight to its client until that is gone."""

    def __init__(self) -> None:
        self.written = 0
        self.waited = 0
        self.over = asyncio.Event()

    async def __call__(self, scope: Scope, _: Receive, send: Send) -> None:
        client = ClientConnection.of(scope)
        assert client is not None
        await send(HEAD)
        while not client.gone:
            if client.full:
                self.waited += 1
                await client.drain()
            client.write(PIECE)
            self.written += len(PIECE)
            await asyncio.sleep(0)
        client.write(b"dropped, and no error")
        self.over.set()


async def test_who_writes_straight_to_a_client_that_reads_nothing_waits_and_is_let_go() -> None:
    flood = Flood()
    async with served(flood, write=1) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        began = asyncio.get_running_loop().time()
        writer.write(GET)
        async with asyncio.timeout(20):
            await flood.over.wait()
        assert asyncio.get_running_loop().time() - began > 0.9
        assert flood.waited == 1
        assert flood.written < 20e6
        writer.close()


async def test_who_writes_straight_to_a_slow_client_goes_on() -> None:
    """The client pauses for less than the limit, over and over."""
    flood = Flood()
    async with served(flood, write=2) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(GET)
        for _ in range(8):
            await asyncio.sleep(0.5)
            await reader.readexactly(100_000)
        assert not flood.over.is_set()
        writer.close()
        async with asyncio.timeout(20):
            await flood.over.wait()


async def test_a_client_that_leaves_shows_to_who_writes_straight_to_it() -> None:
    flood = Flood()
    async with served(flood) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(GET)
        await reader.readexactly(100)
        writer.transport.abort()
        async with asyncio.timeout(20):
            await flood.over.wait()
