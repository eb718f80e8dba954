"""One request, from the client's bytes to the last byte of its answer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError
from starlette.types import Receive, Scope, Send

from serving.accounts.ledger import Bookkeeper, Entry
from serving.contract.chat import ChatReply, ChatRequest
from serving.contract.completions import CompletionReply, CompletionRequest
from serving.contract.embeddings import EmbeddingReply, EmbeddingRequest
from serving.contract.errors import (
    ApiError,
    engine_error,
    from_validation,
    internal_error,
    replaced,
    shutting_down,
    timed_out,
)
from serving.contract.reply import Reply
from serving.contract.response_reply import ResponseReply
from serving.contract.responses import ResponsesRequest
from serving.gateway.auth import Caller, Gate
from serving.gateway.connection import ClientConnection
from serving.gateway.encoding import AnyRequest, encode
from serving.gateway.http import Responder, read_body
from serving.gateway.limits import Limiter, Reservation, prompt_estimate
from serving.gateway.relay import Relay
from serving.gateway.shadow import Shadows
from serving.gateway.trail import Trail, Trails
from serving.runtime.outcome import Outcome
from serving.runtime.replica import State
from serving.runtime.routing import Route, Router
from serving.runtime.shutdown import Shutdown
from serving.runtime.stream import EngineStream
from serving.runtime.wire import ClientGone, EngineGone
from serving.settings import Settings

log = logging.getLogger("bentoml.serving")

#: The status of a request whose client left, as nginx has it in its logs.
CLIENT_LEFT = 499


@dataclass(frozen=True)
class Endpoint:
    """What differs between the endpoints: the shapes of request and reply."""

    request: type[AnyRequest]
    reply: Callable[[Any, str], Reply | EmbeddingReply]


CHAT = Endpoint(ChatRequest, ChatReply)
COMPLETIONS = Endpoint(CompletionRequest, CompletionReply)
EMBEDDINGS = Endpoint(EmbeddingRequest, EmbeddingReply)
RESPONSES = Endpoint(ResponsesRequest, ResponseReply)


@dataclass(slots=True)
class Exchange:
    """One validated request on its way: who asks, and how the last try to answer it went. Once it
    is `accounted`, the ledger has it."""

    caller: Caller
    request: AnyRequest
    responder: Responder
    trail: Trail
    reservation: Reservation = field(default_factory=Reservation)
    outcome: Outcome | None = None
    accounted: bool = False
    began: float = field(default_factory=time.perf_counter)

    @property
    def used(self) -> int:
        """The tokens it took: as the engine counted them, or as they came when it was cut short."""
        if self.outcome is None:
            return 0
        self.outcome.cut_short(prompt_estimate(self.request))
        return self.outcome.usage.total_tokens if self.outcome.usage is not None else 0

    def entry(self, status: int) -> Entry:
        """For the ledger. `status` is the error's where a stream that had begun ended with one."""
        key = self.caller.key.id if self.caller.key is not None else None
        model = self.request.model.replace("\0", "")  # which PostgreSQL takes in no text
        entry = Entry(self.responder.request_id, key, model, status)
        entry.duration = time.perf_counter() - self.began
        if self.outcome is not None:
            self.outcome.cut_short(prompt_estimate(self.request))
            self.outcome.enter(entry)
        return entry


class Inference:
    """The ASGI application of one inference endpoint."""

    def __init__(
        self,
        endpoint: Endpoint,
        settings: Settings,
        router: Router,
        shadows: Shadows,
        shutdown: Shutdown,
        note: Callable[[Outcome], None],
        gate: Gate,
        ledger: Bookkeeper,
        limiter: Limiter,
        trails: Trails,
    ) -> None:
        self._endpoint = endpoint
        self._settings = settings
        self._router = router
        self._shadows = shadows
        self._shutdown = shutdown
        self._note = note
        self._gate = gate
        self._ledger = ledger
        self._limiter = limiter
        self._trails = trails

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The life of a request: read, validated, reserved for, routed, relayed, settled and
        entered into the ledger, however it ends."""
        responder = Responder(scope, send)
        watch = ClientWatch(ClientConnection.of(scope), receive, responder)
        trail = self._trails.begin(scope, self._endpoint.request.TASK)
        exchange: Exchange | None = None
        try:
            trail.caller = caller = self._gate.enter(scope, "inference")
            limit = self._settings.limits.max_body_bytes
            request = self._parse(await read_body(scope, receive, limit))
            trail.request = request
            exchange = Exchange(caller, request, responder, trail)
            with self._shutdown.request(), watch:
                await self._within_limits(exchange)
        except ApiError as error:
            self._account(exchange, error.status)
            await responder.error(error)
        except ClientGone:
            log.info("%s: the client left before it had sent all", responder.request_id)
            await responder.nobody()
        except asyncio.CancelledError:
            # Two of those who cancel are ours; everybody else means the whole task.
            if watch.left:
                log.info("%s: the client left, generation stopped", responder.request_id)
                self._account(exchange, CLIENT_LEFT)
                await responder.nobody()
            elif self._shutdown.cutting:
                self._account(exchange, 503)
                await responder.error(shutting_down())
            else:
                raise
        except Exception:  # a defect of ours: nothing above this would speak the contract
            log.exception("%s: the service failed", responder.request_id)
            self._account(exchange, 500)
            await responder.error(internal_error())
        finally:
            self._trails.end(trail, responder, exchange.outcome if exchange else None)

    def _account(self, exchange: Exchange | None, status: int) -> None:
        if exchange is not None and not exchange.accounted:
            self._ledger.note(self._closed(exchange, status))

    def _closed(self, exchange: Exchange, status: int) -> Entry:
        """The end of it, for the ledger and the metrics."""
        exchange.accounted = True
        entry = exchange.entry(status)
        if exchange.outcome is not None:
            exchange.outcome.end(failed=status >= 500)
            self._trails.observed.answered(exchange.outcome, status)
        return entry

    def _parse(self, body: bytes) -> AnyRequest:
        try:
            request = self._endpoint.request.model_validate_json(body)
            _ = request.inner  # checked as well
            return request
        except ValidationError as error:
            raise from_validation(error, self._endpoint.request) from None

    async def _within_limits(self, exchange: Exchange) -> None:
        exchange.caller.check(exchange.request.model)
        exchange.reservation = await self._limiter.reserve(exchange.caller, exchange.request)
        exchange.responder.tell(exchange.reservation.headers)
        try:
            await self._answer(exchange)
        finally:
            await self._limiter.settle(exchange.reservation, exchange.used)

    async def _answer(self, exchange: Exchange) -> None:
        """Relays one replica's answer, or another's when the first died before a byte was sent."""
        request, caller, responder = exchange.request, exchange.caller, exchange.responder
        opening = request.inner.opening
        who = request.user or caller.id
        route = await self._router.route(request.model, who, asker=caller.id, opening=opening)
        try:
            with route:
                await self._relay(exchange, route)
        except EngineGone as gone:
            log.warning("%s: %s: %s", responder.request_id, route.target.tag, gone)
            if responder.started:
                raise _broken(route) from None
        else:
            return
        try:
            route = await self._router.route(
                request.model, who, opening=opening, but_not=route.replica
            )
        except ApiError:
            raise _broken(route) from None
        try:
            with route:
                await self._relay(exchange, route)
        except EngineGone:
            raise _broken(route) from None

    async def _relay(self, exchange: Exchange, route: Route) -> None:
        """Also sends the shadow its copy, and notes how both went. What is cut short because its
        client left or its version was replaced says nothing about the version."""
        target = route.target
        outcome = Outcome(target.name, target.number, route.label, route.replica.engine.name)
        outcome.queued = route.queued or None
        exchange.outcome = outcome
        copied = self._shadows.copy(exchange.request, route)
        try:
            await self._answer_from(route, exchange, outcome)
        except EngineGone:
            if route.replica.state != State.STOPPED:
                self._note(outcome.end(failed=True))
            raise
        except ApiError as error:
            if error.status >= 500:
                self._note(outcome.end(failed=True))
            raise
        self._note(outcome.end(failed=False))
        if copied:
            self._shadows.compare(outcome)

    async def _answer_from(self, route: Route, exchange: Exchange, outcome: Outcome) -> None:
        request, responder = exchange.request, exchange.responder
        responder.served_by(route.target.tag, route.label)
        call = await encode(request, route)
        reply = self._endpoint.reply(request, route.target.tag)
        headers = exchange.trail.headers
        stream = EngineStream(route.replica.engine, route.replica.wire, request, call, headers)
        relay = Relay(stream, reply, outcome, responder)
        timeouts = self._settings.timeouts
        try:
            async with asyncio.timeout(None if request.stream else timeouts.answer):
                await relay.run(timeouts, streamed=bool(request.stream))
            end = reply.end() if request.stream else reply.whole()
            if self._settings.ledger.durability == "strict":
                await self._ledger.commit(self._closed(exchange, 200))
            else:
                self._account(exchange, 200)
            await responder.flush()
            # Before the last bytes: who asks again as soon as they came must find a place.
            await self._limiter.settle(exchange.reservation, exchange.used)
            if request.stream:
                await responder.stream(end, last=True)
            else:
                await responder.json(end)
        except TimeoutError:
            raise timed_out(
                f"The answer took over {timeouts.answer:g} s; stream it or ask for less."
            ) from None
        finally:
            outcome.counted = stream.counted
            await stream.close()


def _broken(route: Route) -> ApiError:
    """For an answer whose engine ended: by itself, or because its version's time was over."""
    return replaced(route.target.tag) if route.replica.state == State.STOPPED else engine_error()


class ClientWatch:
    """Cancels the task it was entered in when the client leaves before its answer is finished.
    `left` tells that it did. The client's `connection` says so by itself; where it is not ours, a
    task asks the server."""

    def __init__(
        self, connection: ClientConnection | None, receive: Receive, responder: Responder
    ) -> None:
        self.left = False
        self._connection = connection
        self._receive = receive
        self._responder = responder
        self._request: asyncio.Task[None] | None = None
        self._watcher: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        self._request = asyncio.current_task()
        if self._connection is not None:
            self._connection.watch(self._leave)
        else:
            self._watcher = asyncio.ensure_future(self._watch())

    def __exit__(self, *_: object) -> None:
        if self._connection is not None:
            self._connection.unwatch(self._leave)
        elif self._watcher is not None:
            self._watcher.cancel()

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._leave()

    def _leave(self) -> None:
        if self._responder.finished:
            return
        self.left = True
        assert self._request is not None
        self._request.cancel()
