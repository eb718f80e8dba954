"""One OpenTelemetry span for each request for inference, by the semantic conventions for generative
AI and HTTP (opentelemetry.io/docs/specs/semconv). No word of prompts or answers is in it.

A client's `traceparent` is honoured and the engine gets ours, so that one trace shows all three
(W3C Trace Context). The span has no child for each chunk, which would cost more than relaying it.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time

from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import Scope

from serving.contract.chat import ChatRequest
from serving.contract.completions import CompletionRequest
from serving.contract.embeddings import EmbeddingRequest
from serving.contract.sampling import Generation, Request
from serving.runtime.outcome import Outcome
from serving.settings import Settings

#: What the conventions call what an endpoint does.
OPERATIONS = {
    ChatRequest.TASK: "chat",
    CompletionRequest.TASK: "text_completion",
    EmbeddingRequest.TASK: "embeddings",
}
#: Seconds at a stop for what has not been sent to the collector yet.
STOP = 5.0

_PROPAGATOR = TraceContextTextMapPropagator()
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_SAMPLING = ("temperature", "top_p", "top_k", "seed", "presence_penalty", "frequency_penalty")


class Tracing:
    """Off until `start`, and then unless serving.yaml or the environment names a collector. The
    SDK's own variables, OTEL_EXPORTER_OTLP_HEADERS first of all, mean what they mean to it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._provider: TracerProvider | None = None
        self._tracer: Tracer | None = None

    def start(self) -> None:
        section = self._settings.tracing
        if not section.otlp_endpoint and not any(os.environ.get(name) for name in _ENDPOINTS):
            return
        # Slow, and only for those who want spans.
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        named = os.environ.get("OTEL_SERVICE_NAME") or self._settings.service.name
        self._provider = TracerProvider(
            resource=Resource.create({SERVICE_NAME: named}),
            # Without one, the SDK takes that of the environment, or all.
            sampler=ParentBased(TraceIdRatioBased(section.sample_rate))
            if section.sample_rate < 1
            else None,
            shutdown_on_exit=False,
        )
        exporter = OTLPSpanExporter(_signal(section.otlp_endpoint))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("serving")

    async def stop(self) -> None:
        """Sends what is left, as long as that takes no more than a moment."""
        if self._provider is not None:
            self._tracer = None
            ending = threading.Thread(target=self._provider.shutdown, daemon=True)
            ending.start()
            await asyncio.to_thread(ending.join, STOP)

    def begin(self, scope: Scope, task: str) -> Span | None:
        """The span of a request whose head has come; None while there are none."""
        if self._tracer is None:
            return None
        return Span(self._tracer, scope, OPERATIONS[task])


class Span:
    """One request under way. `headers` are lines for its engine."""

    def __init__(self, tracer: Tracer, scope: Scope, operation: str) -> None:
        self._began = time.perf_counter()
        self._began_at = time.time_ns()
        self._operation = operation
        self._span = tracer.start_span(
            operation,
            _parent(scope),
            SpanKind.SERVER,
            {
                "gen_ai.operation.name": operation,
                "http.request.method": scope["method"],
                "http.route": scope["path"],
            },
            start_time=self._began_at,
        )
        context = self._span.get_span_context()
        self.trace_id = f"{context.trace_id:032x}"
        parent = f"00-{self.trace_id}-{context.span_id:016x}-{context.trace_flags:02x}"
        lines = f"traceparent: {parent}\r\n"
        if context.trace_state:
            lines += f"tracestate: {context.trace_state.to_header()}\r\n"
        self.headers = lines.encode()

    def end(
        self,
        request_id: str,
        request: Request | None,
        outcome: Outcome | None,
        status: int,
        code: str,
    ) -> None:
        """`request` as far as it was valid, `outcome` as far as it reached an engine."""
        span = self._span
        if span.is_recording():
            span.set_attribute("serving.request_id", request_id)
            span.set_attribute("http.response.status_code", status)
            if request is not None:
                self._asked(request)
            if outcome is not None:
                self._answered(outcome)
            if code:
                self._failed(status, code)
            span.add_event("end")
        span.end()

    def _asked(self, request: Request) -> None:
        span, inner = self._span, request.inner
        span.set_attribute("gen_ai.request.model", request.model)
        if not isinstance(inner, Generation):
            return
        span.set_attribute("gen_ai.request.stream", inner.stream)
        if inner.token_limit is not None:
            span.set_attribute("gen_ai.request.max_tokens", inner.token_limit)
        if inner.n > 1:
            span.set_attribute("gen_ai.request.choice.count", inner.n)
        for name in _SAMPLING:
            if (value := getattr(inner, name)) is not None:
                span.set_attribute(f"gen_ai.request.{name}", value)

    def _answered(self, outcome: Outcome) -> None:
        span = self._span
        # Only names of what is served: a client must not make up names of spans.
        span.update_name(f"{self._operation} {outcome.model}")
        span.set_attribute("gen_ai.provider.name", outcome.engine)
        span.set_attribute("gen_ai.response.model", f"{outcome.model}:{outcome.number}")
        if outcome.label:
            span.set_attribute("serving.label", outcome.label)
        if outcome.finish_reason is not None:
            span.set_attribute("gen_ai.response.finish_reasons", (outcome.finish_reason,))
        if (usage := outcome.usage) is not None:
            span.set_attribute("gen_ai.usage.input_tokens", usage.prompt_tokens)
            span.set_attribute("gen_ai.usage.output_tokens", usage.completion_tokens)
            cached = usage.prompt_tokens_details.cached_tokens
            span.set_attribute("gen_ai.usage.cache_read.input_tokens", cached)
        if outcome.queued is not None:
            span.add_event("queue", {"seconds": outcome.queued}, self._at(outcome.began))
        if outcome.ttft is not None:
            span.set_attribute("gen_ai.response.time_to_first_chunk", outcome.ttft)
            span.add_event("first_token", timestamp=self._at(outcome.began + outcome.ttft))

    def _failed(self, status: int, code: str) -> None:
        self._span.set_attribute("error.type", code)
        if status >= 500:  # a client's own error is none of the server's span
            self._span.set_status(StatusCode.ERROR)

    def _at(self, moment: float) -> int:
        """A time of `time.perf_counter`, in nanoseconds since 1970."""
        return self._began_at + int((moment - self._began) * 1e9)


def _parent(scope: Scope) -> Context:
    carrier = {
        name.decode(): value.decode("latin-1")
        for name, value in scope["headers"]
        if name in (b"traceparent", b"tracestate")
    }
    return _PROPAGATOR.extract(carrier, Context()) if carrier else Context()


def _signal(endpoint: str | None) -> str | None:
    """Where a collector takes spans, as the SDK makes it from OTEL_EXPORTER_OTLP_ENDPOINT."""
    if endpoint is None or endpoint.rstrip("/").endswith("/v1/traces"):
        return endpoint
    return f"{endpoint.rstrip('/')}/v1/traces"
