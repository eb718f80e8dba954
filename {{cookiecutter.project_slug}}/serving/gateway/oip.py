"""`/v2`: health and metadata by the Open Inference Protocol, and Triton's model-repository
extension, so that tools which know them (`tritonclient`, KServe's probes) work here.

Inference goes by `/v1`. Sources: KServe's "Open Inference Protocol (v2)", Triton's "Model
Repository Extension". Errors are `{"error": "…"}`, as Triton's are.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from importlib.metadata import version as installed
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serving.contract.errors import ApiError, from_validation
from serving.gateway.auth import Gate
from serving.gateway.http import read_bytes
from serving.runtime.operations import Operations, Refused, UnknownModel
from serving.runtime.reconciler import Reconciler
from serving.runtime.replica import State
from serving.runtime.routing_file import RoutingFileError
from serving.runtime.served_version import ServedVersion

MAX_BODY = 1024 * 1024
#: Our states in Triton's words.
_STATES = {
    State.READY: "READY",
    State.LOADING: "LOADING",
    State.WARMING: "LOADING",
    State.DRAINING: "UNLOADING",
}
_NAME = re.compile(r"(?P<name>[^:]+)(?::(?P<number>[1-9]\d{0,8}))?")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Latest(_Part):
    num_versions: Literal[1] = 1


class _Specific(_Part):
    versions: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1, max_length=100)]


class _Policy(_Part):
    latest: _Latest | None = None
    specific: _Specific | None = None


class _Config(_Part):
    """The part of Triton's model configuration that means something here."""

    name: str | None = None
    version_policy: _Policy = _Policy()


class _Parameters(BaseModel):
    model_config = ConfigDict(extra="forbid")

    config: str | None = None
    unload_dependents: bool = False


class _Body(_Part):
    ready: bool = False
    parameters: _Parameters = _Parameters()


_T = TypeVar("_T", bound=BaseModel)


class Oip:
    """The routes under `/v2`."""

    def __init__(self, reconciler: Reconciler, operations: Operations, gate: Gate) -> None:
        self._gate = gate
        self._reconciler = reconciler
        self._operations = operations

    @property
    def routes(self) -> list[Route]:
        model, one = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"
        repository = "/v2/repository/models/{model}"
        return [
            Route("/v2/health/live", _answering(self.live), methods=["GET"]),
            Route("/v2/health/ready", _answering(self.ready), methods=["GET"]),
            *(
                Route(path, _answering(answer, self._gate), methods=[method])
                for method, path, answer in (
                    ("GET", "/v2", self.server),
                    ("GET", model, self.metadata),
                    ("GET", one, self.metadata),
                    ("GET", f"{model}/ready", self.model_ready),
                    ("GET", f"{one}/ready", self.model_ready),
                    ("GET", f"{model}/config", self.config),
                    ("GET", f"{one}/config", self.config),
                    ("POST", "/v2/repository/index", self.index),
                    ("POST", f"{repository}/load", self.load),
                    ("POST", f"{repository}/unload", self.unload),
                )
            ),
        ]

    async def live(self, _: Request) -> dict[str, Any]:
        return {"live": True}

    async def ready(self, _: Request) -> dict[str, Any]:
        if not self._reconciler.ready:
            raise ApiError(503, "not_ready", "A required model cannot answer yet.")
        return {"ready": True}

    async def server(self, _: Request) -> dict[str, Any]:
        return {
            "name": self._reconciler.settings.service.name,
            "version": installed("bentoml"),
            "extensions": ["model_repository", "model_configuration"],
        }

    async def metadata(self, request: Request) -> dict[str, Any]:
        name, versions = self._addressed(request)
        return {
            "name": name,
            "versions": [str(number) for number in sorted(versions)],
            "platform": next(iter(versions.values())).section.name,
            "inputs": [],  # prompts go to /v1
            "outputs": [],
        }

    async def model_ready(self, request: Request) -> dict[str, Any]:
        name, versions = self._addressed(request)
        if not any(version.state == State.READY for version in versions.values()):
            raise ApiError(503, "not_ready", f"{name} cannot answer now.")
        return {"name": name, "ready": True}

    async def config(self, request: Request) -> dict[str, Any]:
        name, versions = self._addressed(request)
        return {
            "name": name,
            "backend": next(iter(versions.values())).section.name,
            "version_policy": {"specific": {"versions": sorted(versions)}},
        }

    async def index(self, request: Request) -> list[dict[str, str]]:
        asked = await _body(request)
        listed = []
        for name, served in self._reconciler.served.items():
            for number in sorted({*self._reconciler.present(name), *served}):
                version = served.get(number)
                state = _STATES.get(version.state, "UNAVAILABLE") if version else "UNAVAILABLE"
                if state != "READY" and asked.ready:
                    continue
                entry = {"name": name, "version": str(number), "state": state}
                if state == "UNAVAILABLE":
                    entry["reason"] = (version.reason if version else "") or "unloaded"
                listed.append(entry)
        return listed

    async def load(self, request: Request) -> dict[str, Any]:
        """Loads versions and keeps them loaded; moves no label. Answers once they are ready."""
        name, number = self._named(request)
        asked = await _body(request)
        numbers = [number] if number else self._by_policy(name, asked.parameters.config)
        for each in numbers:
            await self._operations.load(name, each, by="/v2")
        return {}

    async def unload(self, request: Request) -> dict[str, Any]:
        """Puts away what was loaded so, the version or all of them."""
        name, number = self._named(request)
        await _body(request)
        loaded = self._reconciler.file.routing.of(name).loaded
        for each in [number] if number else loaded:
            await self._operations.unload(name, each, by="/v2")
        return {}

    def _by_policy(self, name: str, config: str | None) -> list[int]:
        policy = _checked(_Config, config).version_policy if config else _Policy()
        if policy.specific is not None:
            return sorted(policy.specific.versions)
        present = self._reconciler.store.numbers(name)
        if not present:
            raise Refused(f"{name} has no version in the store; run `serving models import`.")
        return [present[-1]]

    def _named(self, request: Request) -> tuple[str, int | None]:
        """`chat`, or `chat:4` for one version."""
        parts = _NAME.fullmatch(request.path_params["model"])
        if parts is None or parts["name"] not in self._reconciler.served:
            raise UnknownModel(f"There is no model {request.path_params['model']}.")
        return parts["name"], int(parts["number"]) if parts["number"] else None

    def _addressed(self, request: Request) -> tuple[str, dict[int, ServedVersion]]:
        """The model and those of its versions that are meant."""
        name, number = self._named(request)
        version = request.path_params.get("version")
        if version is not None:
            number = int(version) if version.isdecimal() else 0
        served = self._reconciler.served[name]
        chosen = served if number is None else {n: v for n, v in served.items() if n == number}
        if not chosen:
            raise UnknownModel(f"{name}:{version or number} is not served.")
        return name, chosen


def _answering(
    endpoint: Callable[[Request], Awaitable[Any]], gate: Gate | None = None
) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint with its result and its errors in Triton's JSON; with a `gate`, for operators."""

    async def answer(request: Request) -> Response:
        status = 200
        try:
            if gate is not None:
                gate.admit_operator(request)
            content = await endpoint(request)
        except ApiError as error:
            status, content = error.status, {"error": error.message}
        except UnknownModel as error:
            status, content = 404, {"error": str(error)}
        except (Refused, RoutingFileError) as error:
            status, content = 400, {"error": str(error)}
        return Response(msgspec.json.encode(content), status, media_type="application/json")

    return answer


async def _body(request: Request) -> _Body:
    data = await read_bytes(request.scope, request.receive, MAX_BODY)
    return _checked(_Body, data or b"{}")


def _checked(kind: type[_T], data: str | bytes) -> _T:
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise from_validation(error, kind) from None
