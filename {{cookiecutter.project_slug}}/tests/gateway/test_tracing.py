"""One span a request, as a collector gets it."""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from collector import Collector, collecting, values
from gateway_client import Gateway, gateway
from gateway_client import settings as make_settings
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Received
from opentelemetry.proto.trace.v1.trace_pb2 import Status
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.semconv.attributes import error_attributes, http_attributes
from raw_server import Handler, Request, answer, whole

from serving.gateway.tracing import Tracing
from serving.runtime.outcome import Outcome
from serving.settings import Settings

CHAT = "/v1/chat/completions"
SECRET = "what the client wrote"
HELLO = {"model": "chat", "messages": [{"role": "user", "content": SECRET}]}
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Engine:
    """Answers, or fails; `traceparents` are what it was told."""

    def __init__(self) -> None:
        self.traceparents: list[str] = []
        self.status = 200

    async def __call__(self, request: Request) -> None:
        for line in request.head.splitlines():
            if line.startswith("traceparent: "):
                self.traceparents.append(line.partition(": ")[2])
        await request.send(answer("Hel", "lo") if self.status == 200 else whole(b"{}", self.status))


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture(autouse=True)
def _no_collector_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


def settings(**section: Any) -> Settings:
    return Settings.model_validate({**make_settings().model_dump(), "tracing": section})


@asynccontextmanager
async def traced(handler: Handler, **section: Any) -> AsyncIterator[Gateway]:
    """What is left is sent in the end."""
    tracing = Tracing(settings(**section))
    tracing.start()
    async with gateway(handler, options={"tracing": tracing}) as service:
        yield service
    await tracing.stop()


def only(collector: Collector) -> Received:
    (span,) = collector.spans
    return span


async def test_a_streamed_answer_is_one_span_without_a_word_of_it(
    engine: Engine, collector: Collector
) -> None:
    asked = {**HELLO, "stream": True, "max_tokens": 9, "temperature": 0.5, "seed": 7}
    before = time.time_ns()
    async with traced(engine, otlp_endpoint=collector.url) as service:
        reply = await service.post(CHAT, asked, **{"x-request-id": "mine"})
    span = only(collector)
    assert (span.name, span.kind) == ("chat chat", Received.SPAN_KIND_SERVER)
    assert values(span) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.max_tokens": 9,
        "gen_ai.request.model": "chat",
        "gen_ai.request.seed": 7,
        "gen_ai.request.stream": True,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.response.model": "chat:3",
        "gen_ai.response.time_to_first_chunk": values(span)["gen_ai.response.time_to_first_chunk"],
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.usage.input_tokens": 1,
        "gen_ai.usage.output_tokens": 2,
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "http.route": CHAT,
        "serving.label": "production",
        "serving.request_id": "mine",
    }
    assert [event.name for event in span.events] == ["first_token", "end"]
    inner = [event.time_unix_nano for event in span.events]
    moments = [before, span.start_time_unix_nano, *inner, span.end_time_unix_nano, time.time_ns()]
    assert moments == sorted(moments)
    assert span.status.code == Status.STATUS_CODE_UNSET
    assert collector.resource["service.name"] == "llm"
    assert reply.status_code == 200
    assert not any(SECRET.encode() in body or b"Hello" in body for body in collector.raw)


async def test_what_was_refused_says_why_and_no_name_that_a_client_made_up(
    engine: Engine, collector: Collector
) -> None:
    async with traced(engine, otlp_endpoint=collector.url) as service:
        await service.post(CHAT, {**HELLO, "temperature": "hot"})
        await service.post(CHAT, {**HELLO, "model": "nobody"})
    invalid, unknown = map(values, collector.spans)
    assert (invalid["http.response.status_code"], invalid["error.type"]) == (400, "invalid_request")
    assert "gen_ai.request.model" not in invalid
    assert (unknown["error.type"], unknown["gen_ai.request.model"]) == ("model_not_found", "nobody")
    assert {span.name for span in collector.spans} == {"chat"}
    assert {span.status.code for span in collector.spans} == {Status.STATUS_CODE_UNSET}
    assert engine.traceparents == []


async def test_an_engine_that_fails_is_an_error(engine: Engine, collector: Collector) -> None:
    engine.status = 500
    async with traced(engine, otlp_endpoint=collector.url) as service:
        assert (await service.post(CHAT, HELLO)).status_code == 502
    span = only(collector)
    assert (span.status.code, values(span)["error.type"]) == (
        Status.STATUS_CODE_ERROR,
        "engine_error",
    )


async def test_client_gateway_and_engine_are_one_trace(
    engine: Engine, collector: Collector
) -> None:
    async with traced(engine, otlp_endpoint=collector.url) as service:
        await service.post(CHAT, HELLO, traceparent=f"00-{TRACE}-{PARENT}-01")
    span = only(collector)
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert engine.traceparents == [f"00-{TRACE}-{span.span_id.hex()}-01"]


async def test_a_parent_that_makes_no_sense_is_none(engine: Engine, collector: Collector) -> None:
    async with traced(engine, otlp_endpoint=collector.url) as service:
        await service.post(CHAT, HELLO, traceparent="00-nonsense", tracestate="a=b")
    span = only(collector)
    assert span.parent_span_id == b""
    (told,) = engine.traceparents
    assert told.startswith(f"00-{span.trace_id.hex()}-{span.span_id.hex()}-")


async def test_only_sampled_requests_are_sent_and_the_engine_knows_which(
    engine: Engine, collector: Collector
) -> None:
    async with traced(engine, otlp_endpoint=collector.url, sample_rate=0) as service:
        await service.post(CHAT, HELLO)
        await service.post(CHAT, HELLO, traceparent=f"00-{TRACE}-{PARENT}-01")
    assert only(collector).trace_id.hex() == TRACE
    # The lowest bit; the next one says that the trace's id is random.
    assert [int(parent[-2:], 16) & 1 for parent in engine.traceparents] == [0, 1]


async def test_without_a_collector_there_is_no_span(engine: Engine) -> None:
    async with traced(engine) as service:
        assert (await service.post(CHAT, HELLO)).status_code == 200
    assert engine.traceparents == []


async def test_the_environment_may_name_the_collector(
    engine: Engine, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "of-the-environment")
    async with traced(engine) as service:
        await service.post(CHAT, HELLO)
    assert only(collector).name == "chat chat"
    assert collector.resource["service.name"] == "of-the-environment"


async def test_the_queue_shows_when_the_request_left_it(collector: Collector) -> None:
    tracing = Tracing(settings(otlp_endpoint=f"{collector.url}/v1/traces"))
    tracing.start()
    span = tracing.begin({"type": "http", "method": "POST", "path": CHAT, "headers": []}, "chat")
    assert span is not None
    span.end("id", None, Outcome("chat", 3, "", "vllm", queued=0.25), 499, "")
    await tracing.stop()
    queue, end = only(collector).events
    assert (queue.name, values(queue), end.name) == ("queue", {"seconds": 0.25}, "end")


async def test_a_collector_that_is_away_holds_up_no_request_and_no_stop(engine: Engine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # takes connections and says nothing
        began = time.monotonic()
        async with traced(engine, otlp_endpoint=f"http://127.0.0.1:{deaf.getsockname()[1]}") as it:
            assert (await it.post(CHAT, HELLO)).status_code == 200
        assert time.monotonic() - began < 20


async def test_attributes_have_the_names_of_the_conventions(
    engine: Engine, collector: Collector
) -> None:
    known = {
        value
        for module in (gen_ai_attributes, http_attributes, error_attributes)
        for value in vars(module).values()
        if isinstance(value, str)
    }
    async with traced(engine, otlp_endpoint=collector.url) as service:
        await service.post(CHAT, {**HELLO, "top_p": 0.9, "top_k": 3, "n": 2, "stream": True})
        await service.post(CHAT, {})
    names = {name for span in collector.spans for name in values(span)}
    assert {name for name in names if not name.startswith("serving.")} <= known
    assert len(names) > 15
