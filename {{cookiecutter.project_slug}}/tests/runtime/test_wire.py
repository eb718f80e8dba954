"""The connection to an engine, against a real server that does the worst."""

from __future__ import annotations

import asyncio
import socket

import pytest
from raw_server import LAST_CHUNK, OK, STREAM, Request, chunk, serving, whole

from serving.runtime.wire import HIGH_WATER, ClientGone, EngineGone, EngineReply, Wire


def wire_to(port: int, **headers: str) -> Wire:
    return Wire("127.0.0.1", port, headers)


async def ask(wire: Wire, body: bytes = b"{}", *, fresh: bool = False) -> EngineReply:
    return await wire.request("POST", "/v1/chat/completions", body, fresh=fresh)


async def read_whole(reply: EngineReply) -> bytes:
    async with asyncio.timeout(10):
        await reply.head()
        body = await reply.body()
        reply.close()
        return body


async def test_a_request_is_sent_with_its_length_and_headers_and_the_reply_read() -> None:
    async def handler(request: Request) -> None:
        await request.send(whole(b"echo " + request.body))

    async with serving(handler) as server:
        wire = wire_to(server.port, authorization="Bearer key")
        reply = await ask(wire, "Grüße".encode())
        assert await read_whole(reply) == "echo Grüße".encode()
        assert reply.status == 200
        (request,) = server.requests
        assert request.head.startswith("POST /v1/chat/completions HTTP/1.1\r\n")
        assert "authorization: Bearer key\r\n" in request.head
        assert f"host: 127.0.0.1:{server.port}\r\n" in request.head
        assert "content-length: 7\r\n" in request.head


async def test_an_ipv6_address_is_in_brackets_where_a_port_follows() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(whole(await reader.readuntil(b"\r\n\r\n")))
        writer.close()

    try:
        server = await asyncio.start_server(answer, "::1", 0)
    except OSError:
        pytest.skip("this machine has no IPv6")
    async with server:
        port = server.sockets[0].getsockname()[1]
        _, head = await Wire("::1", port, {}).get("/health", timeout=10)
        assert f"\r\nhost: [::1]:{port}\r\n".encode() in head


async def test_a_connection_is_used_again_after_a_reply_that_was_read_whole() -> None:
    async def handler(request: Request) -> None:
        await request.send(STREAM + chunk(b"a") + chunk(b"b") + LAST_CHUNK)

    async with serving(handler) as server:
        wire = wire_to(server.port)
        for _ in range(3):
            assert await read_whole(await ask(wire)) == b"ab"
        assert (server.connections, len(server.requests)) == (1, 3)


async def test_requests_at_the_same_time_have_connections_of_their_own() -> None:
    both = asyncio.Event()

    async def handler(request: Request) -> None:
        if request.body == b"2":
            both.set()
        await both.wait()
        await request.send(whole(request.body))

    async with serving(handler) as server:
        wire = wire_to(server.port)
        first, second = await ask(wire, b"1"), await ask(wire, b"2")
        assert await read_whole(first) == b"1"
        assert await read_whole(second) == b"2"
        assert server.connections == 2


async def test_a_kept_connection_that_the_engine_closed_is_replaced_by_a_new_one() -> None:
    async def handler(request: Request) -> None:
        await request.send(whole(b"ok"))
        request.close()  # without saying so: keep-alive was promised

    async with serving(handler) as server:
        wire = wire_to(server.port)
        for _ in range(3):
            reply = await ask(wire)
            try:
                assert await read_whole(reply) == b"ok"
            except EngineGone:
                assert reply.stale
                assert await read_whole(await ask(wire, fresh=True)) == b"ok"


async def test_a_connection_that_dies_under_its_second_request_is_stale() -> None:
    async def handler(request: Request) -> None:
        if len(server.requests) == 2:
            request.writer.transport.abort()
            return
        await request.send(whole(b"ok"))

    async with serving(handler) as server:
        wire = wire_to(server.port)
        assert await read_whole(await ask(wire)) == b"ok"
        second = await ask(wire)
        with pytest.raises(EngineGone):
            await second.head()
        assert second.stale
        assert await read_whole(await ask(wire, fresh=True)) == b"ok"


async def test_a_new_connection_that_dies_is_no_stale_one() -> None:
    async def handler(request: Request) -> None:
        request.writer.transport.abort()

    async with serving(handler) as server:
        reply = await ask(wire_to(server.port))
        with pytest.raises(EngineGone):
            await reply.head()
        assert not reply.stale


async def test_a_used_connection_that_dies_within_its_reply_is_not_stale() -> None:
    async def handler(request: Request) -> None:
        if len(server.requests) == 1:
            await request.send(whole(b"ok"))
            return
        await request.send(STREAM + chunk(b"half"))
        request.close()

    async with serving(handler) as server:
        wire = wire_to(server.port)
        await read_whole(await ask(wire))
        second = await ask(wire)
        with pytest.raises(EngineGone):
            await read_whole(second)
        assert not second.stale  # the engine has worked on it: asking again would do it twice


@pytest.mark.parametrize(
    "sent",
    [STREAM + chunk(b"half"), STREAM + b"5\r\nha", OK + b"content-length: 10\r\n\r\nhalf", OK],
    ids=["between chunks", "in a chunk", "in the length", "in the head"],
)
async def test_a_connection_that_breaks_before_the_end_is_never_a_complete_reply(
    sent: bytes,
) -> None:
    async def handler(request: Request) -> None:
        await request.send(sent)
        request.close()

    async with serving(handler) as server:
        reply = await ask(wire_to(server.port))
        with pytest.raises(EngineGone):
            await read_whole(reply)
        assert not reply.complete


@pytest.mark.parametrize(
    "sent", [b"SSH-2.0-OpenSSH_9.6\r\n", STREAM + b"zz\r\nnot a chunk\r\n", b"\x16\x03\x01\0"]
)
async def test_what_is_not_http_counts_as_an_engine_that_is_gone(sent: bytes) -> None:
    async def handler(request: Request) -> None:
        await request.send(sent)
        await request.client_left()

    async with serving(handler) as server:
        reply = await ask(wire_to(server.port))
        with pytest.raises(EngineGone, match="not HTTP"):
            await read_whole(reply)


async def test_bytes_after_a_reply_spoil_the_connection_and_not_the_reply() -> None:
    async def handler(request: Request) -> None:
        await request.send(whole(b"ok") + whole(b"nobody asked"))

    async with serving(handler) as server:
        wire = wire_to(server.port)
        for _ in range(2):
            assert await read_whole(await ask(wire, fresh=False)) == b"ok"
        assert server.connections == 2


async def test_an_engine_that_does_not_listen_is_gone() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but not listening
        with pytest.raises(EngineGone):
            await ask(wire_to(taken.getsockname()[1]))


async def test_patience_without_a_byte_gives_none_and_the_reply_goes_on() -> None:
    release = asyncio.Event()

    async def handler(request: Request) -> None:
        await release.wait()
        await request.send(STREAM + chunk(b"a"))
        await request.client_left()

    async with serving(handler) as server:
        reply = await ask(wire_to(server.port))
        assert await reply.head(0.02) is False
        assert await reply.head(0.02) is False
        release.set()
        assert await reply.head(10) is True
        assert await reply.read(10) == b"a"
        assert await reply.read(0.02) is None
        reply.close()


async def test_patience_starts_anew_with_each_read() -> None:
    go = asyncio.Queue[None]()

    async def handler(request: Request) -> None:
        await request.send(STREAM)
        for _ in range(5):
            await go.get()
            await asyncio.sleep(0.1)  # the delay under test, shorter than the patience
            await request.send(chunk(b"a"))
        await request.client_left()

    async with serving(handler) as server:
        reply = await ask(wire_to(server.port))
        await reply.head()
        for _ in range(5):  # 0.5 seconds in all, more than the patience
            go.put_nowait(None)
            assert await reply.read(0.3) == b"a"
        began = asyncio.get_running_loop().time()
        assert await reply.read(0.1) is None  # a shorter one than before is kept, too
        assert asyncio.get_running_loop().time() - began < 0.29
        reply.close()


async def test_what_came_together_is_read_together_and_then_comes_the_end() -> None:
    async def handler(request: Request) -> None:
        await request.send(STREAM + chunk(b"a") + chunk(b"b") + LAST_CHUNK)

    async with serving(handler) as server:
        wire = wire_to(server.port)
        reply = await ask(wire)
        await reply.head()
        got = []
        while data := await reply.read(10):
            got.append(data)
        assert b"".join(got) == b"ab"
        assert await reply.read(10) == b""
        assert reply.complete


async def test_a_reply_cut_into_single_bytes_is_the_same_reply() -> None:
    async def handler(request: Request) -> None:
        request.writer.transport.get_extra_info("socket").setsockopt(
            socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
        )
        for byte in STREAM + chunk(b"Hello") + LAST_CHUNK:
            request.writer.write(bytes([byte]))
            await asyncio.sleep(0)

    async with serving(handler) as server:
        assert await read_whole(await ask(wire_to(server.port))) == b"Hello"


async def test_abort_wakes_the_reader_and_tells_the_engine_that_its_client_left() -> None:
    left = asyncio.Event()

    async def handler(request: Request) -> None:
        await request.send(STREAM + chunk(b"a"))
        await request.client_left()
        left.set()

    async with serving(handler) as server:
        reply = await ask(wire_to(server.port))
        await reply.head()
        assert await reply.read() == b"a"
        reading = asyncio.ensure_future(reply.read())
        await asyncio.sleep(0)
        reply.abort()
        with pytest.raises(ClientGone):
            await reading
        async with asyncio.timeout(10):
            await left.wait()


async def test_closing_half_a_reply_leaves_the_engine_and_keeps_no_connection() -> None:
    left = asyncio.Event()

    async def handler(request: Request) -> None:
        await request.send(STREAM + chunk(b"a"))
        await request.client_left()
        left.set()

    async with serving(handler) as server:
        wire = wire_to(server.port)
        reply = await ask(wire)
        await reply.head()
        reply.close()
        async with asyncio.timeout(10):
            await left.wait()
        again = await ask(wire)
        await again.head()
        assert server.connections == 2
        again.close()


async def test_aborting_a_complete_reply_spares_the_connections_next_request() -> None:
    release = asyncio.Event()

    async def handler(request: Request) -> None:
        if len(server.requests) == 2:
            await release.wait()
        await request.send(whole(b"ok"))

    async with serving(handler) as server:
        wire = wire_to(server.port)
        first = await ask(wire)
        assert await read_whole(first) == b"ok"
        second = await ask(wire)
        first.abort()
        release.set()
        assert await read_whole(second) == b"ok"
        assert server.connections == 1


async def test_an_unread_reply_holds_the_engine_back_and_is_whole_in_the_end() -> None:
    piece = b"x" * 65536
    sent = 0
    finished = asyncio.Event()

    async def handler(request: Request) -> None:
        nonlocal sent
        request.writer.transport.set_write_buffer_limits(high=65536)
        await request.send(STREAM)
        for _ in range(512):  # 32 MiB, more than all buffers on the way
            await request.send(chunk(piece))
            sent += len(piece)
        await request.send(LAST_CHUNK)
        finished.set()

    async with serving(handler) as server:
        reply = await ask(wire_to(server.port))
        await reply.head()
        stalled = -1
        async with asyncio.timeout(20):
            while stalled != sent:  # until the engine gets no further
                stalled = sent
                await asyncio.sleep(0.1)
        assert not finished.is_set()
        assert reply._size <= HIGH_WATER + 1024 * 1024
        total = 0
        async with asyncio.timeout(20):
            while data := await reply.read():
                total += len(data)
        assert total == 512 * len(piece)
        assert finished.is_set()


async def test_a_reply_that_says_close_is_not_asked_again() -> None:
    async def handler(request: Request) -> None:
        await request.send(OK + b"connection: close\r\ncontent-length: 2\r\n\r\nok")
        await request.client_left()

    async with serving(handler) as server:
        wire = wire_to(server.port)
        for _ in range(2):
            assert await read_whole(await ask(wire)) == b"ok"
        assert server.connections == 2


async def test_a_body_is_cut_off_at_its_limit() -> None:
    async def handler(request: Request) -> None:
        await request.send(whole(b"x" * 1000, 500))

    async with serving(handler) as server:
        reply = await ask(wire_to(server.port))
        await reply.head()
        assert reply.status == 500
        assert await reply.body(limit=10) == b"x" * 10
        reply.close()


async def test_get_returns_status_and_body_and_gives_up_in_time() -> None:
    async def handler(request: Request) -> None:
        if "/health" in request.head:
            await request.send(whole(b"fine", 503))
        else:
            await request.client_left()

    async with serving(handler) as server:
        wire = wire_to(server.port)
        assert await wire.get("/health", timeout=10) == (503, b"fine")
        with pytest.raises(TimeoutError):
            await wire.get("/hang", timeout=0.05)


async def test_a_health_check_never_uses_a_kept_connection() -> None:
    async def handler(request: Request) -> None:
        await request.send(whole(b"ok"))

    async with serving(handler) as server:
        wire = wire_to(server.port)
        await read_whole(await ask(wire))
        await wire.get("/health", timeout=10)
        assert server.connections == 2


async def test_close_ends_idle_connections_and_lets_replies_go_on() -> None:
    release, idle_left = asyncio.Event(), asyncio.Event()

    async def handler(request: Request) -> None:
        if request.body == b"slow":
            await release.wait()
        await request.send(whole(request.body))
        if request.body == b"quick":
            await request.client_left()
            idle_left.set()

    async with serving(handler) as server:
        wire = wire_to(server.port)
        slow = await ask(wire, b"slow")
        await read_whole(await ask(wire, b"quick"))
        wire.close()
        async with asyncio.timeout(10):
            await idle_left.wait()
        release.set()
        assert await read_whole(slow) == b"slow"
