"""`/admin`: what is served and why, and the ways to change it. For operators: see `auth.py`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import date
from typing import Annotated, Any, TypeVar

import msgspec
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serving.accounts.database import Database, DatabaseError
from serving.accounts.usage import By, used
from serving.contract.errors import ApiError, from_validation
from serving.gateway.auth import Caller, Gate
from serving.gateway.http import read_body, request_id
from serving.runtime.operations import Operations, Refused, UnknownModel
from serving.runtime.reconciler import Reconciler
from serving.runtime.reload import Reloader
from serving.runtime.rollouts import Rollouts
from serving.runtime.routing_file import RevisionConflict, RoutingFileError
from serving.runtime.status import Status, status
from serving.runtime.wanted import CANARY, RolloutPlan, Routing
from serving.settings.sections import Count, Name

MAX_BODY = 65536


class _Body(BaseModel):
    """`revision`: the one the operator looked at. The change is made only from that."""

    model_config = ConfigDict(extra="forbid", strict=True)

    revision: int | None = None


class LabelBody(_Body):
    """`load`: also load the version, when it is not, and wait for it."""

    version: Count
    load: bool = False


class TrafficBody(_Body):
    weights: dict[Name, Annotated[int, Field(ge=0, le=1_000_000)]]


class ShadowBody(_Body):
    percent: Annotated[float, Field(ge=0, le=100)]


class PromoteBody(_Body):
    label: Name = CANARY


class RolloutBody(_Body, RolloutPlan):
    version: Count

    @property
    def plan(self) -> RolloutPlan:
        return RolloutPlan(**self.model_dump(include=set(RolloutPlan.model_fields)))


class UsageQuery(BaseModel):
    """`shadow`: of the copies that shadows got, instead of the requests."""

    model_config = ConfigDict(extra="forbid")

    by: list[By] = ["key", "model"]
    since: date | None = None
    until: date | None = None
    shadow: bool = False


_B = TypeVar("_B", bound=_Body)


class Admin:
    """The routes under `/admin`."""

    def __init__(
        self,
        reconciler: Reconciler,
        operations: Operations,
        rollouts: Rollouts,
        reloader: Reloader,
        gate: Gate,
        database: Database,
    ) -> None:
        self._reconciler = reconciler
        self._operations = operations
        self._rollouts = rollouts
        self._reloader = reloader
        self._gate = gate
        self._database = database

    @property
    def routes(self) -> list[Route]:
        label, model = "/admin/models/{model}/labels/{label}", "/admin/models/{model}"
        return [
            Route(path, _guarded(self._gate, endpoint), methods=[method])
            for method, path, endpoint in (
                ("GET", "/admin/status", self.status),
                ("GET", "/admin/history", self.history),
                ("GET", "/admin/usage", self.usage),
                ("PUT", label, self.set_label),
                ("DELETE", label, self.drop_label),
                ("PUT", f"{model}/traffic", self.set_traffic),
                ("PUT", f"{model}/shadow", self.set_shadow),
                ("POST", f"{model}/promote", self.promote),
                ("POST", f"{model}/rollout", self.start_rollout),
                ("DELETE", f"{model}/rollout", self.stop_rollout),
                ("POST", f"{model}/rollback", self.rollback),
            )
        ]

    async def status(self, _: Request) -> Status:
        return status(self._reconciler, self._rollouts, self._reloader)

    async def history(self, _: Request) -> dict[str, Any]:
        routing = self._reconciler.file.routing
        return routing.model_dump(mode="json", include={"revision", "history"})

    async def usage(self, request: Request) -> dict[str, Any]:
        """`by` may be given several times; `since` and `until` are days."""
        query = request.query_params
        try:
            asked = UsageQuery.model_validate(
                {**query, **({"by": query.getlist("by")} if "by" in query else {})}
            )
        except ValidationError as error:
            raise from_validation(error, UsageQuery) from None
        shadow, by = asked.shadow, list(asked.by)
        rows = await used(self._database, by, since=asked.since, until=asked.until, shadow=shadow)
        return {"usage": rows}

    async def set_label(self, request: Request) -> dict[str, Any]:
        model, label = _model(request), request.path_params["label"]
        body = await _body(request, LabelBody)
        return _done(
            await self._operations.set_label(
                model, label, body.version, load=body.load, **_who(request, body)
            )
        )

    async def drop_label(self, request: Request) -> dict[str, Any]:
        model, label = _model(request), request.path_params["label"]
        body = await _body(request, _Body)
        return _done(await self._operations.drop_label(model, label, **_who(request, body)))

    async def set_traffic(self, request: Request) -> dict[str, Any]:
        body = await _body(request, TrafficBody)
        who = _who(request, body)
        return _done(await self._operations.set_traffic(_model(request), body.weights, **who))

    async def set_shadow(self, request: Request) -> dict[str, Any]:
        body = await _body(request, ShadowBody)
        who = _who(request, body)
        return _done(await self._operations.set_shadow(_model(request), body.percent, **who))

    async def promote(self, request: Request) -> dict[str, Any]:
        body = await _body(request, PromoteBody)
        who = _who(request, body)
        return _done(await self._operations.promote(_model(request), body.label, **who))

    async def start_rollout(self, request: Request) -> dict[str, Any]:
        body = await _body(request, RolloutBody)
        who = _who(request, body)
        return _done(
            await self._operations.start_rollout(_model(request), body.version, body.plan, **who)
        )

    async def stop_rollout(self, request: Request) -> dict[str, Any]:
        body = await _body(request, _Body)
        return _done(await self._operations.stop_rollout(_model(request), **_who(request, body)))

    async def rollback(self, request: Request) -> dict[str, Any]:
        body = await _body(request, _Body)
        who = _who(request, body)
        change, routing = await self._operations.rollback(_model(request), **who)
        return {**_done(routing), "undone": change.model_dump(mode="json", exclude={"before"})}


def _guarded(
    gate: Gate, endpoint: Callable[[Request], Awaitable[Any]]
) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint for operators, its result as JSON and its refusals as our errors."""

    async def answer(request: Request) -> Response:
        request.state.caller = gate.admit_operator(request)
        try:
            content = await endpoint(request)
        except UnknownModel as error:
            raise ApiError(404, "model_not_found", str(error), param="model") from None
        except RevisionConflict as error:
            raise ApiError(409, "revision_conflict", f"{error}; look again.") from None
        except Refused as error:
            raise ApiError(409, "refused", str(error)) from None
        except RoutingFileError as error:
            raise ApiError(409, "routing_file", str(error)) from None
        except DatabaseError as error:
            raise ApiError(503, "database_unavailable", str(error), retry_after=5) from None
        return Response(
            msgspec.json.encode(content),
            media_type="application/json",
            headers={"x-request-id": request_id(request.scope)},
        )

    return answer


async def _body(request: Request, kind: type[_B]) -> _B:
    empty = request.headers.get("content-length", "0") == "0"
    if empty and "transfer-encoding" not in request.headers:
        query = {k: int(v) if v.isdecimal() else v for k, v in request.query_params.items()}
        data = msgspec.json.encode(query)
    else:
        data = await read_body(request.scope, request.receive, MAX_BODY)
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise from_validation(error, kind) from None


def _model(request: Request) -> str:
    model: str = request.path_params["model"]
    return model


def _who(request: Request, body: _Body) -> dict[str, Any]:
    """Who asks, by the key's name or as the program says of itself, and from which revision."""
    caller: Caller = request.state.caller
    by = caller.key.name if caller.key else request.headers.get("x-operator", "admin API")[:64]
    return {"by": by, "revision": body.revision}


def _done(routing: Routing) -> dict[str, Any]:
    return {"revision": routing.revision}
