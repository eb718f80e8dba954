"""What operators see of one request besides its row in the ledger: counts, a line in the request
log, a span."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from starlette.types import Scope

from serving.gateway.auth import Caller
from serving.gateway.encoding import AnyRequest
from serving.gateway.http import Responder
from serving.gateway.observed import Observed
from serving.gateway.request_log import Line, RequestLog, address
from serving.gateway.tracing import Span, Tracing
from serving.runtime.outcome import Outcome


@dataclass(slots=True)
class Trail:
    """What is known of a request so far: nothing of its caller before the key was read, nothing of
    what it asks before that was valid."""

    scope: Scope
    span: Span | None
    caller: Caller | None = None
    request: AnyRequest | None = None
    began: float = field(default_factory=time.perf_counter)

    @property
    def headers(self) -> bytes:
        """Lines that go with it to the engine."""
        return self.span.headers if self.span is not None else b""


class Trails:
    """Those of all requests for inference."""

    def __init__(self, observed: Observed, log: RequestLog, tracing: Tracing) -> None:
        self.observed = observed
        self.log = log
        self._tracing = tracing

    def begin(self, scope: Scope, task: str) -> Trail:
        return Trail(scope, self._tracing.begin(scope, task))

    def end(self, trail: Trail, responder: Responder, outcome: Outcome | None) -> None:
        """Once, however the request ended."""
        status, code = responder.status, responder.code
        if code:
            self.observed.refused(code)
        if trail.span is not None:
            trail.span.end(responder.request_id, trail.request, outcome, status, code)
        if self.log.wanted:
            self.log.write(self._line(trail, responder, outcome))

    def _line(self, trail: Trail, responder: Responder, outcome: Outcome | None) -> Line:
        scope, request = trail.scope, trail.request
        line = Line(
            responder.request_id,
            address(scope),
            scope["method"],
            scope["path"],
            responder.status,
            error=responder.code or None,
            duration=time.perf_counter() - trail.began,
        )
        if trail.caller is not None and trail.caller.key is not None:
            line.key = trail.caller.key.id
        if trail.span is not None:
            line.trace_id = trail.span.trace_id
        if request is not None:
            line.model, line.stream = request.model, bool(request.stream)
            line.prompt = self.log.prompt(request)
        if outcome is not None:
            line.version, line.label, line.engine = outcome.number, outcome.label, outcome.engine
            line.queued, line.ttft = outcome.queued, outcome.ttft
            line.finish_reason = outcome.finish_reason
            if (usage := outcome.usage) is not None:
                line.prompt_tokens = usage.prompt_tokens
                line.completion_tokens = usage.completion_tokens
                line.cached_tokens = usage.prompt_tokens_details.cached_tokens
                line.reasoning_tokens = usage.completion_tokens_details.reasoning_tokens
        return line
