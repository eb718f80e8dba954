"""The ASGI application that BentoML mounts: routes, and one error envelope for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.accounts.ledger import Bookkeeper
from serving.contract.errors import ApiError, internal_error
from serving.contract.models import Model, ModelList
from serving.contract.openapi import document
from serving.gateway.auth import Gate
from serving.gateway.http import request_id
from serving.gateway.inference import (
    CHAT,
    CLIENT_LEFT,
    COMPLETIONS,
    EMBEDDINGS,
    RESPONSES,
    Endpoint,
    Inference,
)
from serving.gateway.limits import Limiter
from serving.gateway.observed import Observed
from serving.gateway.request_log import RequestLog
from serving.gateway.shadow import Shadows
from serving.gateway.tracing import Tracing
from serving.gateway.trail import Trails
from serving.runtime.outcome import Outcome
from serving.runtime.routing import Router, Target
from serving.runtime.shutdown import Shutdown
from serving.runtime.wanted import PRODUCTION
from serving.runtime.wire import ClientGone
from serving.settings import Settings


def create_app(
    settings: Settings,
    router: Router,
    shutdown: Shutdown,
    operators: Iterable[Route] = (),
    note: Callable[[Outcome], None] = lambda _: None,
    gate: Gate | None = None,
    ledger: Bookkeeper | None = None,
    limiter: Limiter | None = None,
    observed: Observed | None = None,
    request_log: RequestLog | None = None,
    tracing: Tracing | None = None,
) -> Gateway:
    """The application over a router whose snapshots say what is served; `operators` are the routes
    for those who change that, and `note` is told how each answer went. Without a `gate`, everybody
    may ask; without a `ledger`, nothing is written down. `observed` counts what clients feel,
    `request_log` and `tracing` tell of each request; a `limiter` of one's own is started and
    stopped by whoever made it."""
    gate, ledger = gate or Gate(), ledger or Bookkeeper()
    limiter, observed = limiter or Limiter(settings), observed or Observed()
    trails = Trails(observed, request_log or RequestLog(settings), tracing or Tracing(settings))
    shadows = Shadows(settings, router, ledger)

    def inference(endpoint: Endpoint) -> Inference:
        return Inference(
            endpoint, settings, router, shadows, shutdown, note, gate, ledger, limiter, trails
        )

    generation = {
        "/v1/chat/completions": inference(CHAT),
        "/v1/completions": inference(COMPLETIONS),
        "/v1/embeddings": inference(EMBEDDINGS),
        "/v1/responses": inference(RESPONSES),
    }
    models = Models(router, settings.service.name, gate)
    openapi = msgspec.json.encode(document())

    async def describe(_: Request) -> Response:
        return Response(openapi, media_type="application/json")

    others = Starlette(
        routes=[
            *(Route(path, endpoint, methods=["POST"]) for path, endpoint in generation.items()),
            Route("/v1/models", models.list, methods=["GET"]),
            Route("/v1/models/{model:path}", models.get, methods=["GET"]),
            Route("/openapi.json", describe, methods=["GET"]),
            *operators,
        ],
        exception_handlers={
            ApiError: _api_error,
            HTTPException: _http_error,
            ClientGone: _nobody,
            Exception: _bug,
        },
    )
    others.router.redirect_slashes = False
    return Gateway(generation, trails.log.around(others))


class Gateway:
    """Sends a generation straight to its endpoint and everything else through Starlette, which
    wraps two functions around every send.

    Not a Starlette itself: BentoML asks one for its routes, and answers every path that is not
    among them by itself, as plain text.
    """

    def __init__(self, generation: Mapping[str, ASGIApp], others: ASGIApp) -> None:
        self._generation = generation
        self._others = others

    def find(self, scope: Scope) -> ASGIApp | None:
        """The endpoint of a generation; None for everything else."""
        if scope["type"] == "http" and scope["method"] == "POST":
            return self._generation.get(scope["path"])
        return None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self.find(scope) or self._others
        await app(scope, receive, send)


class Models:
    """`GET /v1/models` and `GET /v1/models/{model}`, from the snapshot."""

    def __init__(self, router: Router, owner: str, gate: Gate) -> None:
        self._router = router
        self._owner = owner
        self._gate = gate

    async def list(self, request: Request) -> Response:
        caller = self._gate.enter(request.scope, "inference")
        models = []
        for name, served in self._router.snapshot.models.items():
            if not caller.may(name):
                continue
            target = served.targets[served.labels[PRODUCTION]]
            models.append(self._model(name, target))
            models += [self._model(f"{name}/{a}", target) for a in sorted(target.adapters)]
        return _json(request, ModelList(models))

    async def get(self, request: Request) -> Response:
        address = request.path_params["model"]
        self._gate.enter(request.scope, "inference").check(address)
        target, _, _ = self._router.snapshot.find(address)
        return _json(request, self._model(address, target))

    def _model(self, address: str, target: Target) -> Model:
        return Model(address, int(target.created.timestamp()), self._owner)


def _json(request: Request, content: msgspec.Struct) -> Response:
    return Response(
        msgspec.json.encode(content),
        media_type="application/json",
        headers={"x-request-id": request_id(request.scope)},
    )


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return Response(
        error.body(),
        error.status,
        media_type="application/json",
        headers={"x-request-id": request_id(request.scope), **error.headers},
    )


async def _http_error(request: Request, error: Exception) -> Response:
    """What Starlette's router refuses: no such path, or not with this method."""
    assert isinstance(error, HTTPException)
    path, method = request.url.path, request.method
    if error.status_code == 405:
        message = f"{path} does not take {method}."
        own = ApiError(405, "method_not_allowed", message, headers=error.headers)
    elif error.status_code == 404:
        own = ApiError(404, "not_found", f"There is no {path}; /openapi.json lists what there is.")
    else:
        own = ApiError(error.status_code, "http_error", error.detail, headers=error.headers)
    return await _api_error(request, own)


async def _nobody(_: Request, __: Exception) -> Response:
    """The client left before it had sent all."""
    return Response(status_code=CLIENT_LEFT)


async def _bug(request: Request, _: Exception) -> Response:
    """Starlette raises the exception again after this reply, so that the log has its traceback."""
    return await _api_error(request, internal_error())
