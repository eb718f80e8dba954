"""The life of a request, with an engine that does the worst at every moment of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from gateway_client import Gateway, gateway, replica_at, snapshot
from raw_server import STREAM, Request, answer, chunk, event, serving, whole

from serving.contract.sse import EventReader
from serving.engines.transformers import Transformers
from serving.engines.vllm import Vllm
from serving.runtime.replica import State
from serving.settings import TransformersEngine, VllmEngine

CHAT = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"
HELLO = {"model": "chat", "messages": [{"role": "user", "content": "Hello"}]}
FIRST = STREAM + chunk(event({"choices": [{"index": 0, "delta": {"content": "Hel"}}]}))


async def says_hello(request: Request) -> None:
    await request.send(answer("Hel", "lo"))


def code_of(body: bytes) -> str:
    return str(json.loads(body)["error"]["code"])


def events(body: bytes) -> list[Any]:
    return [data if data == b"[DONE]" else json.loads(data) for data in EventReader().feed(body)]


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not what():
            await asyncio.sleep(0.001)


async def test_a_whole_answer_names_what_was_asked_and_what_answered() -> None:
    async with gateway(says_hello) as service:
        reply = await service.post(CHAT, {**HELLO, "model": "chat:3"}, **{"x-request-id": "mine"})
    assert reply.status_code == 200
    body = reply.json()
    assert body["choices"][0]["message"]["content"] == "Hello"
    assert (body["model"], body["system_fingerprint"]) == ("chat:3", "chat:3")
    assert reply.headers["x-request-id"] == "mine"
    assert reply.headers["x-served-version"] == "chat:3"
    assert "x-served-label" not in reply.headers  # no label led to it


async def test_a_streamed_answer_is_complete_and_nobody_is_left_in_flight() -> None:
    async with gateway(says_hello) as service:
        reply = await service.post(CHAT, {**HELLO, "stream": True})
        assert service.replica.in_flight == 0
    *chunks, done = events(reply.content)
    assert done == b"[DONE]"
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == "Hello"


async def test_completions_take_the_same_way() -> None:
    async def handler(request: Request) -> None:
        assert json.loads(request.body)["prompt"] == "Once"
        texts = [event({"choices": [{"index": 0, "text": "upon", "finish_reason": "length"}]})]
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        texts += [event({"choices": [], "usage": usage}), b"data: [DONE]\n\n"]
        await request.send(STREAM + b"".join(map(chunk, texts)) + b"0\r\n\r\n")

    async with gateway(handler) as service:
        reply = await service.post("/v1/completions", {"model": "chat", "prompt": "Once"})
    assert reply.json()["choices"][0] == {
        "index": 0,
        "text": "upon",
        "finish_reason": "length",
        "logprobs": None,
    }


EMBEDDER = Vllm(VllmEngine(name="vllm", max_model_len=512), Path(), "embed")


async def embeds(request: Request) -> None:
    asked = json.loads(request.body)["input"]
    rows = [[1.0, 0.0], [0.0, 1.0]][: len(asked)]
    data = [{"index": at, "embedding": row} for at, row in enumerate(rows)][::-1]
    usage = {"prompt_tokens": 4, "total_tokens": 4}
    await request.send(whole(json.dumps({"data": data, "usage": usage}).encode()))


async def test_embeddings_are_one_reply_in_the_order_of_the_inputs() -> None:
    async with gateway(embeds, EMBEDDER) as service:
        reply = await service.post(EMBEDDINGS, {"model": "chat", "input": ["a", "b"]})
        assert service.replica.in_flight == 0
        assert service.engine.requests[0].head.split()[1] == EMBEDDINGS
    assert reply.status_code == 200
    assert reply.headers["x-served-version"] == "chat:3"
    body = reply.json()
    assert [row["embedding"] for row in body["data"]] == [[1.0, 0.0], [0.0, 1.0]]
    assert body["usage"] == {"prompt_tokens": 4, "total_tokens": 4}


async def test_a_wrong_number_of_vectors_is_an_engine_error() -> None:
    async def forgets(request: Request) -> None:
        request.body = json.dumps({"input": ["a"]}).encode()
        await embeds(request)

    async with gateway(forgets, EMBEDDER) as service:
        reply = await service.post(EMBEDDINGS, {"model": "chat", "input": ["a", "b"]})
    assert (reply.status_code, code_of(reply.content)) == (502, "engine_error")


async def test_an_embedding_request_that_met_a_crash_is_tried_once_elsewhere() -> None:
    async with serving(embeds) as healthy:
        service: Gateway

        async def crash_and_be_replaced(request: Request) -> None:
            service.router.publish(snapshot(replica_at(healthy.port, EMBEDDER)))
            await crash(request)

        async with gateway(crash_and_be_replaced, EMBEDDER) as service:
            reply = await service.post(EMBEDDINGS, {"model": "chat", "input": "a"})
        assert reply.status_code == 200
        assert len(healthy.requests) == 1


async def test_an_adapter_is_asked_for_in_place_of_the_model() -> None:
    async with gateway(says_hello) as service:
        service.router.publish(snapshot(service.replica, adapters=["law"]))
        reply = await service.post(CHAT, {**HELLO, "model": "chat/law"})
        assert reply.json()["model"] == "chat/law"
        assert json.loads(service.engine.requests[0].body)["model"] == "law"
        unknown = await service.post(CHAT, {**HELLO, "model": "chat/tax"})
        assert (unknown.status_code, code_of(unknown.content)) == (404, "model_not_found")


CALLING = [
    {"tool_calls": [{"id": "x", "index": 0, "function": {"name": "f"}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": '{"city": '}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": '"Paris"}'}}]},
]
TOOLS = [{"type": "function", "function": {"name": "f"}}]
WITH_TOOLS = Vllm(VllmEngine(name="vllm", max_model_len=512, tool_parser="hermes"), Path())


async def calls(request: Request) -> None:
    """As vLLM answers when the request named the function to call."""
    choices: list[dict[str, Any]] = [{"index": 0, "delta": delta} for delta in CALLING]
    choices.append({"index": 0, "delta": {}, "finish_reason": "stop"})
    said = [event({"choices": [choice]}) for choice in choices]
    said.append(event({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 3}}))
    said.append(b"data: [DONE]\n\n")
    await request.send(STREAM + b"".join(map(chunk, said)) + b"0\r\n\r\n")


@pytest.mark.parametrize("stream", [True, False])
async def test_a_tool_call_goes_all_the_way_from_the_engine_to_the_client(stream: bool) -> None:
    body = {**HELLO, "tools": TOOLS, "stream": stream}
    async with gateway(calls, WITH_TOOLS) as service:
        reply = await service.post(CHAT, body)
        assert json.loads(service.engine.requests[0].body)["tools"] == TOOLS
    if stream:
        *chunks, _ = events(reply.content)
        pieces = [piece for c in chunks for piece in delta_of(c).get("tool_calls", [])]
        assert "".join(p["function"]["arguments"] for p in pieces) == '{"city": "Paris"}'
        assert (pieces[0]["id"], pieces[0]["function"]["name"]) == ("x", "f")
        reason = chunks[-1]["choices"][0]["finish_reason"]
    else:
        (choice,) = reply.json()["choices"]
        (call,) = choice["message"]["tool_calls"]
        assert call["function"] == {"name": "f", "arguments": '{"city": "Paris"}'}
        assert choice["message"]["content"] is None
        reason = choice["finish_reason"]
    assert reason == "tool_calls"


def delta_of(chunk: dict[str, Any]) -> dict[str, Any]:
    delta: dict[str, Any] = chunk["choices"][0]["delta"]
    return delta


async def test_the_gateway_echoes_a_prompt_that_the_engine_does_not() -> None:
    async def handler(request: Request) -> None:
        assert "echo" not in json.loads(request.body)
        said = [event({"choices": [{"index": 0, "text": " upon", "finish_reason": "length"}]})]
        said.append(event({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}))
        said.append(b"data: [DONE]\n\n")
        await request.send(STREAM + b"".join(map(chunk, said)) + b"0\r\n\r\n")

    async with gateway(handler) as service:
        body = {"model": "chat", "prompt": "Once", "echo": True}
        reply = await service.post("/v1/completions", body)
    assert reply.json()["choices"][0]["text"] == "Once upon"


async def test_an_engine_that_refuses_within_its_stream_is_heard_before_the_first_byte() -> None:
    async def refuses(request: Request) -> None:
        error = {"message": "Grammar error: x in /opt/engine/x.py", "code": 400}
        said = chunk(event({"error": error})) + chunk(b"data: [DONE]\n\n")
        await request.send(STREAM + said + b"0\r\n\r\n")

    async with gateway(refuses) as service:
        for stream in (True, False):
            body = {**HELLO, "stream": stream, "response_format": {"type": "json_object"}}
            reply = await service.post(CHAT, body)
            assert reply.status_code == 400
            assert reply.json()["error"]["param"] == "response_format"
            assert "/opt" not in reply.text
        assert service.replica.in_flight == 0


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"model": "chat"}, 400, "messages"),
        ({**HELLO, "messages": []}, 400, "messages"),
        ({**HELLO, "temprature": 1}, 400, "temprature"),
        ({**HELLO, "tool_choice": "required"}, 400, "tool_choice"),
        (
            {
                **HELLO,
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {"type": "banana"}},
                },
            },
            400,
            "response_format.json_schema.schema",
        ),
        ({**HELLO, "model": "nobody"}, 404, "model"),
        ({**HELLO, "user": "x" * 5000}, 413, None),
    ],
)
async def test_wrong_input_never_reaches_the_engine(
    body: dict[str, Any], status: int, param: str | None
) -> None:
    async with gateway(says_hello) as service:
        reply = await service.post(CHAT, body)
        assert reply.status_code == status
        assert reply.json()["error"]["param"] == param
        assert service.engine.requests == []


async def test_text_that_is_not_unicode_is_refused() -> None:
    async with gateway(says_hello) as service, service.client() as client:
        body = b'{"model": "chat", "messages": [{"role": "user", "content": "\xff"}]}'
        reply = await client.post(CHAT, content=body, headers={"content-type": "application/json"})
        assert (reply.status_code, code_of(reply.content)) == (400, "invalid_json")


async def test_half_a_surrogate_pair_does_not_break_the_service() -> None:
    async with gateway(says_hello) as service, service.client() as client:
        body = b'{"model": "chat", "messages": [{"role": "user", "content": "\\ud83d"}]}'
        reply = await client.post(CHAT, content=body, headers={"content-type": "application/json"})
        assert reply.status_code == 400


async def test_what_the_engine_cannot_do_is_refused_by_name(model_folder: Path) -> None:
    fields = {"name": "transformers", "max_model_len": 64}
    engine = Transformers(TransformersEngine.model_validate(fields), model_folder)
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
    seen = {"model": "chat", "messages": [{"role": "user", "content": [image]}]}
    once = {"model": "chat", "prompt": "Once"}
    async with gateway(says_hello, engine) as service:
        for path, body, param in (
            (CHAT, {**HELLO, "n": 2}, "n"),
            (CHAT, {**HELLO, "logprobs": True}, "logprobs"),
            (CHAT, seen, "messages"),
            ("/v1/completions", {**once, "logprobs": 1}, "logprobs"),
            (EMBEDDINGS, {"model": "chat", "input": "a"}, None),
        ):
            reply = await service.post(path, body)
            error = reply.json()["error"]
            assert (reply.status_code, error["code"]) == (400, "unsupported_by_engine")
            assert error["param"] == param
        assert service.engine.requests == []


async def test_an_embedding_model_neither_chats_nor_completes() -> None:
    async with gateway(embeds, EMBEDDER) as service:
        for path, body in ((CHAT, HELLO), ("/v1/completions", {"model": "chat", "prompt": "a"})):
            reply = await service.post(path, body)
            assert (reply.status_code, code_of(reply.content)) == (400, "unsupported_by_engine")
            assert "ask another endpoint or model" in reply.text
        shorter = {"model": "chat", "input": "a", "dimensions": 8}
        assert (await service.post(EMBEDDINGS, shorter)).json()["error"]["param"] == "dimensions"
        assert service.engine.requests == []


@pytest.mark.parametrize(
    ("state", "code"), [(State.LOADING, "model_loading"), (State.FAILED, "model_failed")]
)
async def test_a_model_without_replica_is_503_with_a_time_to_ask_again(
    state: State, code: str
) -> None:
    async with gateway(says_hello) as service:
        service.router.publish(snapshot(None, state))
        reply = await service.post(CHAT, HELLO)
    assert (reply.status_code, code_of(reply.content)) == (503, code)
    assert int(reply.headers["retry-after"]) > 0


Fault = Callable[[Request], Awaitable[None]]


async def crash(request: Request) -> None:
    request.writer.transport.abort()


async def crash_midway(request: Request) -> None:
    await request.send(FIRST)
    request.writer.transport.abort()


async def garbage(request: Request) -> None:
    await request.send(FIRST + chunk(b"data: {garbage\n\n"))


async def not_http(request: Request) -> None:
    await request.send(b"\x16\x03\x01 /opt/engine/x.py")
    request.close()


async def no_end(request: Request) -> None:
    await request.send(FIRST + b"0\r\n\r\n")


async def done_without_finish(request: Request) -> None:
    await request.send(FIRST + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")


async def own_error(request: Request) -> None:
    await request.send(FIRST + chunk(event({"error": {"message": "/opt/engine/x.py"}})))


async def status_500(request: Request) -> None:
    await request.send(whole(b"Traceback /opt/engine/x.py", 500))


FAULTS = [
    crash,
    crash_midway,
    garbage,
    not_http,
    no_end,
    done_without_finish,
    own_error,
    status_500,
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
async def test_a_broken_answer_is_never_a_complete_one(fault: Fault) -> None:
    async with gateway(fault) as service:
        reply = await service.post(CHAT, HELLO)
        assert (reply.status_code, code_of(reply.content)) == (502, "engine_error")
        streamed = await service.post(CHAT, {**HELLO, "stream": True})
        assert service.replica.in_flight == 0
    assert b"[DONE]" not in streamed.content
    assert "/opt" not in reply.text + streamed.text
    if streamed.status_code == 200:
        assert b"event: error\ndata: " in streamed.content
        assert events(streamed.content)[-1]["error"]["code"] == "engine_error"
    else:
        assert (streamed.status_code, code_of(streamed.content)) == (502, "engine_error")


async def test_a_request_that_has_sent_no_byte_is_tried_once_on_another_replica() -> None:
    async with serving(says_hello) as healthy:
        service: Gateway

        async def crash_and_be_replaced(request: Request) -> None:
            service.router.publish(snapshot(replica_at(healthy.port)))
            await crash(request)

        async with gateway(crash_and_be_replaced) as service:
            reply = await service.post(CHAT, HELLO)
        assert reply.json()["choices"][0]["message"]["content"] == "Hello"
        assert len(healthy.requests) == 1


async def test_it_is_tried_no_third_time() -> None:
    async with serving(crash) as other:
        service: Gateway

        async def crash_and_be_replaced(request: Request) -> None:
            service.router.publish(snapshot(replica_at(other.port)))
            await crash(request)

        async with gateway(crash_and_be_replaced) as service:
            reply = await service.post(CHAT, HELLO)
        assert reply.status_code == 502
        assert len(other.requests) == 1


async def test_a_stream_that_has_begun_is_not_begun_again_elsewhere() -> None:
    async with serving(says_hello) as healthy:
        service: Gateway

        async def crash_and_be_replaced(request: Request) -> None:
            service.router.publish(snapshot(replica_at(healthy.port)))
            await crash_midway(request)

        async with gateway(crash_and_be_replaced) as service:
            call, task = service.call(CHAT, {**HELLO, "stream": True})
            await task
        # Whether the first text went out before the crash was seen decides, never both.
        assert call.bytes.count(b'"role":"assistant"') == 1
        assert (b"event: error" in call.bytes) != (b"[DONE]" in call.bytes)


async def test_silence_before_the_first_token_is_504_in_time() -> None:
    async def silent(request: Request) -> None:
        await request.client_left()

    async with gateway(silent, first_token=0.1, keepalive=60) as service:
        for stream in (False, True):
            reply = await service.post(CHAT, {**HELLO, "stream": stream})
            assert (reply.status_code, code_of(reply.content)) == (504, "timeout")


async def test_silence_within_the_answer_ends_the_stream_with_an_error() -> None:
    async def stalls(request: Request) -> None:
        await request.send(FIRST)
        await request.client_left()

    async with gateway(stalls, first_token=60, stall=0.1, keepalive=60) as service:
        reply = await service.post(CHAT, {**HELLO, "stream": True})
        assert reply.status_code == 200
        assert events(reply.content)[-1]["error"]["code"] == "timeout"
        assert b"[DONE]" not in reply.content


async def test_a_long_prefill_sends_comments_and_then_the_whole_answer() -> None:
    release = asyncio.Event()

    async def slow(request: Request) -> None:
        await release.wait()
        await says_hello(request)

    async with gateway(slow, keepalive=0.02) as service:
        call, task = service.call(CHAT, {**HELLO, "stream": True})
        await until(lambda: call.bytes.count(b": keep-alive\n\n") >= 3)
        release.set()
        await task
        assert events(call.bytes)[-1] == b"[DONE]"


async def test_a_whole_reply_is_not_spoilt_by_comments() -> None:
    async def slow(request: Request) -> None:
        await asyncio.sleep(0.1)  # several keep-alive periods
        await says_hello(request)

    async with gateway(slow, keepalive=0.02) as service:
        reply = await service.post(CHAT, HELLO)
        assert reply.json()["choices"][0]["message"]["content"] == "Hello"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("moment", ["before", "within"])
async def test_a_client_that_leaves_stops_generation(stream: bool, moment: str) -> None:
    engine_asked, engine_left = asyncio.Event(), asyncio.Event()

    async def endless(request: Request) -> None:
        engine_asked.set()
        if moment == "within":
            await request.send(FIRST)
        await request.client_left()
        engine_left.set()

    async with gateway(endless) as service:
        call, task = service.call(CHAT, {**HELLO, "stream": stream})
        async with asyncio.timeout(10):
            await engine_asked.wait()
        assert service.replica.in_flight == 1
        if stream and moment == "within":
            async with asyncio.timeout(10):
                await call.arrived.wait()
        call.left.set()
        async with asyncio.timeout(10):
            await task
            await engine_left.wait()
        assert service.replica.in_flight == 0
        assert b"[DONE]" not in call.bytes


async def test_a_client_that_leaves_with_its_whole_answer_stops_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "bentoml.serving")
    gone = asyncio.Event()

    async def handler(request: Request) -> None:
        whole_reply = answer("Hel", "lo")
        end = b"0\r\n\r\n"
        assert whole_reply.endswith(end)
        await request.send(whole_reply.removesuffix(end))
        await gone.wait()  # the frame of HTTP's last chunk comes when the client has long left
        await request.send(end)

    async with gateway(handler) as service:
        call, task = service.call(CHAT, {**HELLO, "stream": True})
        await until(lambda: b"[DONE]" in call.bytes)
        call.left.set()
        await asyncio.sleep(0)
        gone.set()
        async with asyncio.timeout(10):
            await task
    assert "generation stopped" not in caplog.text


async def test_one_clients_broken_request_does_not_touch_anothers() -> None:
    release = asyncio.Event()

    async def handler(request: Request) -> None:
        if b"bad" in request.body:
            await crash(request)
            return
        await release.wait()
        await says_hello(request)

    async with gateway(handler) as service:
        good, task = service.call(CHAT, {**HELLO, "stream": True})
        await until(lambda: service.replica.in_flight == 1)
        bad = {**HELLO, "messages": [{"role": "user", "content": "bad"}]}
        assert (await service.post(CHAT, bad)).status_code == 502
        release.set()
        await task
        assert events(good.bytes)[-1] == b"[DONE]"


async def test_a_new_request_after_the_stop_has_begun_gets_503() -> None:
    async with gateway(says_hello) as service:
        service.shutdown.started = True
        reply = await service.post(CHAT, HELLO)
        assert (reply.status_code, code_of(reply.content)) == (503, "shutting_down")
        assert service.engine.requests == []


async def test_a_stream_cut_by_the_stop_ends_with_an_error_event() -> None:
    async def endless(request: Request) -> None:
        await request.send(FIRST)
        await request.client_left()

    async with gateway(endless) as service:
        call, task = service.call(CHAT, {**HELLO, "stream": True})
        async with asyncio.timeout(10):
            await call.arrived.wait()
        service.shutdown.cutting = True
        task.cancel()
        await task
        assert events(call.bytes)[-1]["error"]["code"] == "shutting_down"
        assert service.replica.in_flight == 0
        assert call.sent[-1]["more_body"] is False


async def test_any_other_cancellation_is_not_swallowed() -> None:
    async def endless(request: Request) -> None:
        await request.client_left()

    async with gateway(endless) as service:
        _, task = service.call(CHAT, HELLO)
        await until(lambda: service.replica.in_flight == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert service.replica.in_flight == 0


async def test_what_came_before_an_engine_vanished_is_sent_before_the_error() -> None:
    async def handler(request: Request) -> None:  # all of it in one read
        await request.send(answer("Hel", "lo", done=False))

    async with gateway(handler) as served:
        reply = await served.post(CHAT, {**HELLO, "stream": True})
    assert reply.status_code == 200
    assert b'"content":"Hel"' in reply.content
    assert b"engine_error" in reply.content
    assert b"[DONE]" not in reply.content
