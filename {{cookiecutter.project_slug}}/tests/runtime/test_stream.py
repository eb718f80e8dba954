"""One generation on one engine, read as events no engine owns."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path

import pytest
from raw_server import LAST_CHUNK, STREAM, Request, answer, chunk, event, serving, whole

from serving.contract.chat import ChatRequest
from serving.contract.completions import CompletionRequest
from serving.contract.embeddings import EmbeddingRequest
from serving.contract.errors import ApiError
from serving.contract.events import EngineEvent, Usage
from serving.contract.sampling import Request as AnyRequest
from serving.engines.base import Engine, EngineCall
from serving.engines.transformers import Transformers
from serving.engines.vllm import Vllm
from serving.runtime.stream import EngineStream, read_all
from serving.runtime.wire import EngineGone, Wire
from serving.settings import TransformersEngine, VllmEngine

CALL = EngineCall("/v1/chat/completions", b"{}")
CHAT = ChatRequest.model_validate(
    {"model": "chat", "messages": [{"role": "user", "content": "Hi"}]}
)
VLLM = Vllm(VllmEngine(name="vllm", max_model_len=512), Path())
TRANSFORMERS = Transformers(TransformersEngine(name="transformers", max_model_len=512), Path())


def open_stream(port: int, engine: Engine = VLLM, wire: Wire | None = None) -> EngineStream:
    return EngineStream(engine, wire or Wire("127.0.0.1", port, {}), CHAT, CALL)


async def text_of(stream: EngineStream) -> str:
    async with asyncio.timeout(10):
        events = await read_all(stream, 5)
    return "".join(delta.text for event in events for delta in event.deltas)


@pytest.mark.parametrize(("engine", "done"), [(VLLM, True), (TRANSFORMERS, False)])
async def test_an_answer_is_read_to_its_end_in_either_dialect(engine: Engine, done: bool) -> None:
    async def handler(request: Request) -> None:
        await request.send(answer("Hel", "lo", done=done))

    async with serving(handler) as server:
        stream = open_stream(server.port, engine)
        assert await text_of(stream) == "Hello"
        assert stream.complete


async def test_a_complete_answers_connection_serves_the_next_one() -> None:
    async def handler(request: Request) -> None:
        await request.send(answer("a").removesuffix(LAST_CHUNK))
        await asyncio.sleep(0.05)  # the end of the body lags behind the end mark
        await request.send(LAST_CHUNK)

    async with serving(handler) as server:
        wire = Wire("127.0.0.1", server.port, {})
        for _ in range(3):
            assert await text_of(open_stream(server.port, wire=wire)) == "a"
        assert server.connections == 1


async def test_a_stale_connection_is_replaced_without_the_caller_noticing() -> None:
    async def handler(request: Request) -> None:
        if len(server.requests) == 2:
            request.writer.transport.abort()
            return
        await request.send(answer("a"))

    async with serving(handler) as server:
        wire = Wire("127.0.0.1", server.port, {})
        assert await text_of(open_stream(server.port, wire=wire)) == "a"
        assert await text_of(open_stream(server.port, wire=wire)) == "a"
        assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("engine", "body"),
    [
        (VLLM, answer("a", done=False)),
        (VLLM, STREAM + LAST_CHUNK),
        (TRANSFORMERS, STREAM + chunk(b'data: {"choices"') + LAST_CHUNK),
    ],
    ids=["no end mark", "nothing", "inside an event"],
)
async def test_a_body_that_ends_cleanly_before_the_answer_does_is_a_broken_stream(
    engine: Engine, body: bytes
) -> None:
    async def handler(request: Request) -> None:
        await request.send(body)

    async with serving(handler) as server:
        stream = open_stream(server.port, engine)
        with pytest.raises(EngineGone, match="too early"):
            await text_of(stream)
        assert not stream.complete


async def test_a_crash_within_the_answer_is_an_engine_that_is_gone() -> None:
    async def handler(request: Request) -> None:
        await request.send(STREAM + chunk(event({"choices": [{"delta": {"content": "a"}}]})))
        request.writer.transport.abort()

    async with serving(handler) as server:
        with pytest.raises(EngineGone):
            await text_of(open_stream(server.port))


async def test_an_event_without_end_is_refused_and_the_connection_given_up() -> None:
    left = asyncio.Event()

    async def handler(request: Request) -> None:
        await request.send(STREAM)
        try:
            while True:
                await request.send(chunk(b"data: " + b"x" * 1024 * 1024))
        except ConnectionError:
            left.set()
            raise

    async with serving(handler) as server:
        with pytest.raises(ApiError) as caught:
            await text_of(open_stream(server.port))
        assert caught.value.status == 502
        async with asyncio.timeout(10):
            await left.wait()


async def test_leaving_early_tells_the_engine_to_stop_generating() -> None:
    left = asyncio.Event()

    async def handler(request: Request) -> None:
        await request.send(STREAM + chunk(event({"choices": [{"delta": {"content": "a"}}]})))
        await request.client_left()
        left.set()

    async with serving(handler) as server:
        stream = open_stream(server.port)
        assert await stream.more(print, 10)
        await stream.close()
        async with asyncio.timeout(10):
            await left.wait()


async def test_a_pause_at_the_end_of_an_answer_does_not_outlast_it() -> None:
    async def handler(request: Request) -> None:
        await request.send(answer("a"))

    async with serving(handler) as server:
        wire = Wire("127.0.0.1", server.port, {})
        for _ in range(2):
            stream = open_stream(server.port, wire=wire)

            def take(_: list[EngineEvent], stream: EngineStream = stream) -> None:
                stream.pause()

            async with asyncio.timeout(10):
                while not stream.complete:
                    assert await stream.more(take, 5)
                await stream.close()
        assert server.connections == 1


async def test_a_paused_stream_is_not_silent() -> None:
    told = asyncio.Event()

    async def handler(request: Request) -> None:
        text = event({"choices": [{"delta": {"content": "a"}}]})
        await request.send(STREAM + chunk(text))
        await told.wait()
        await request.send(chunk(text) + chunk(b"data: [DONE]\n\n") + LAST_CHUNK)

    async with serving(handler) as server:
        stream = open_stream(server.port)
        heard = []

        def take(events: list[EngineEvent]) -> None:
            heard.append(events)
            stream.pause()
            asyncio.get_running_loop().call_later(0.3, stream.resume)
            told.set()

        async with asyncio.timeout(10):
            while not stream.complete:
                assert await stream.more(take, 0.15)
        await stream.close()
    assert len(heard) >= 2


async def test_silence_before_and_within_the_answer_is_told_each_time() -> None:
    release = asyncio.Event()

    async def handler(request: Request) -> None:
        await release.wait()
        await request.send(STREAM)
        await request.client_left()

    async with serving(handler) as server:
        stream = open_stream(server.port)
        assert not await stream.more(print, 0.02)
        assert not await stream.more(print, 0.02)
        release.set()
        assert await stream.more(print, 10)  # the head
        assert not await stream.more(print, 0.1)
        await stream.close()


async def test_read_all_does_not_wait_for_a_silent_engine_for_ever() -> None:
    async def handler(request: Request) -> None:
        await request.client_left()

    async with serving(handler) as server:
        with pytest.raises(ApiError) as caught:
            await read_all(open_stream(server.port), 0.02)
        assert caught.value.status == 504


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (400, b'{"message": "maximum context length is 512"}', "context_length_exceeded"),
        (422, b"[]", "invalid_request"),
        (500, b"Traceback /root/x.py", "engine_error"),
        (503, b"", "overloaded"),
    ],
)
async def test_a_refusal_is_the_contracts_error_and_its_connection_is_not_lost(
    status: int, body: bytes, code: str
) -> None:
    async def handler(request: Request) -> None:
        await request.send(whole(body, status))

    async with serving(handler) as server:
        wire = Wire("127.0.0.1", server.port, {})
        for _ in range(2):
            with pytest.raises(ApiError) as caught:
                await text_of(open_stream(server.port, wire=wire))
            assert caught.value.code == code
            assert "/root" not in caught.value.message
        assert server.connections == 1


async def test_closing_a_stream_that_never_began_does_nothing() -> None:
    await open_stream(1).close()


REFUSED = b'data: {"error": {"message": "%b", "type": "BadRequestError", "code": %d}}\n\n'
TOO_LONG = b"This model's maximum context length is 512 tokens."


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (REFUSED % (b"bad value at /root/x.py", 400), 400, "invalid_request"),
        (REFUSED % (TOO_LONG, 400), 400, "context_length_exceeded"),
        (REFUSED % (b"CUDA error at /root/x.py", 500), 502, "engine_error"),
        (REFUSED % (b"busy", 503), 503, "overloaded"),
        (b'data: {"error": "Unauthorized"}\n\n', 502, "engine_error"),
    ],
)
@pytest.mark.parametrize("begun", [True, False])
async def test_a_refusal_within_the_stream_is_told_like_one_by_status(
    body: bytes, status: int, code: str, begun: bool
) -> None:
    first = chunk(event({"choices": [{"delta": {"content": "a"}}]})) if begun else b""

    async def handler(request: Request) -> None:
        await request.send(STREAM + first + chunk(body + b"data: [DONE]\n\n") + LAST_CHUNK)

    async with serving(handler) as server:
        stream = open_stream(server.port)
        with pytest.raises(ApiError) as caught:
            await text_of(stream)
        assert (caught.value.status, caught.value.code) == (status, code)
        assert caught.value.param == ("messages" if status == 400 else None)
        assert "/root" not in caught.value.message
        assert not stream.complete


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (CHAT, "messages"),
        (CompletionRequest(model="chat", prompt="Hi"), "prompt"),
        (EmbeddingRequest(model="chat", input="Hi"), "input"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_refusal_names_the_field_of_the_request_it_is_about(
    request_: AnyRequest, param: str
) -> None:
    async def handler(request: Request) -> None:
        await request.send(whole(TOO_LONG, 400))

    async with serving(handler) as server:
        wire = Wire("127.0.0.1", server.port, {})
        with pytest.raises(ApiError) as caught:
            await read_all(EngineStream(VLLM, wire, request_, CALL), 5)
        assert caught.value.param == param


EMBED = EmbeddingRequest(model="embed", input=["a", "b"])
VECTORS = (
    b'{"data": [{"index": 1, "embedding": [2]}, {"index": 0, "embedding": [1]}],'
    b' "usage": {"prompt_tokens": 2, "total_tokens": 2}}'
)


@pytest.mark.parametrize("chunked", [True, False])
async def test_an_answer_that_is_one_body_is_one_event(chunked: bool) -> None:
    async def handler(request: Request) -> None:
        if not chunked:
            await request.send(whole(VECTORS))
            return
        await request.send(STREAM)
        for at in range(0, len(VECTORS), 40):
            await request.send(chunk(VECTORS[at : at + 40]))
            await asyncio.sleep(0)
        await request.send(LAST_CHUNK)

    async with serving(handler) as server:
        wire = Wire("127.0.0.1", server.port, {})
        for _ in range(2):
            call = EngineCall("/v1/embeddings", b"{}", streamed=False)
            stream = EngineStream(VLLM, wire, EMBED, call)
            async with asyncio.timeout(10):
                (got,) = await read_all(stream, 5)
            assert stream.complete
            assert got.vectors == [struct.pack("<f", 1), struct.pack("<f", 2)]
            assert got.usage == Usage(2, 0, 2)
        assert server.connections == 1


@pytest.mark.parametrize("body", [b"", b"{}", b"<html>", VECTORS[:50]])
async def test_a_body_that_is_no_answer_is_an_engine_error(body: bytes) -> None:
    async def handler(request: Request) -> None:
        await request.send(whole(body))

    async with serving(handler) as server:
        wire = Wire("127.0.0.1", server.port, {})
        call = EngineCall("/v1/embeddings", b"{}", streamed=False)
        with pytest.raises(ApiError) as caught:
            await read_all(EngineStream(VLLM, wire, EMBED, call), 5)
        assert (caught.value.status, caught.value.code) == (502, "engine_error")


async def test_a_body_that_breaks_off_is_an_engine_that_is_gone() -> None:
    async def handler(request: Request) -> None:
        await request.send(whole(VECTORS)[:-5])
        request.writer.transport.abort()

    async with serving(handler) as server:
        call = EngineCall("/v1/embeddings", b"{}", streamed=False)
        stream = EngineStream(VLLM, Wire("127.0.0.1", server.port, {}), EMBED, call)
        with pytest.raises(EngineGone):
            await read_all(stream, 5)
        assert not stream.complete
