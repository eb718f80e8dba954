"""The service under test, as its clients and its operators reach it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import httpx
import psutil

from serving.bearer import authorization
from serving.cli_routing import NotDone, ask


class CannotRun(Exception):
    """The load test cannot go on. The message says why and what to do, in one sentence."""


@dataclass(frozen=True)
class Replica:
    """One engine process of a version."""

    version: int
    engine: str
    pid: int | None
    state: str


class Service:
    """A service at `url`; the key with which it is asked is in SERVING_KEY."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")

    def get(self, path: str, timeout: float = 5.0) -> httpx.Response:
        """Raises `httpx.HTTPError` and `BadKey`."""
        return httpx.get(self.url + path, headers=authorization(), timeout=timeout)

    def ready(self) -> bool:
        try:
            return self.get("/readyz").status_code == 200
        except httpx.HTTPError:
            return False

    def models(self) -> list[str]:
        """The names that it serves, none where a server of others does not tell. Raises `CannotRun`
        for all that may be wrong with it."""
        try:
            reply = self.get("/v1/models", timeout=10)
            content = reply.json()
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise CannotRun(
                f"No OpenAI-compatible server answers at {self.url} ({error}): start it with "
                "`make serve`, name another with --url, or leave --url out to have one started."
            ) from None
        if reply.status_code in (401, 403):
            given = (
                "the key in SERVING_KEY is refused"
                if os.environ.get("SERVING_KEY")
                else ("it wants a key")
            )
            raise CannotRun(
                f"{self.url} answers {reply.status_code}, {given}: put one of scope inference "
                "(and admin, for scenarios that move labels) into the variable SERVING_KEY."
            )
        if reply.status_code == 404:
            return []
        if reply.is_error:
            raise CannotRun(f"{self.url}/v1/models answers {reply.status_code}; see its log.")
        return [model["id"] for model in content["data"]]

    # The admin API.

    def admin(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Raises `CannotRun` with what the service told, and `BadKey`."""
        try:
            return ask(method, self.url, path, body)
        except NotDone as error:
            raise CannotRun(str(error)) from None

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = self.admin("GET", "/status")
        return status

    def replicas(self, model: str) -> list[Replica]:
        return [
            Replica(version["version"], version["engine"], replica["pid"], replica["state"])
            for version in self.status()["models"][model]["versions"]
            for replica in version["replicas"]
        ]

    def process(self) -> psutil.Process | None:
        """`bentoml serve`, where the service runs on this machine and below this user."""
        port = httpx.URL(self.url).port
        for connection in psutil.net_connections("tcp"):
            if (
                connection.status == psutil.CONN_LISTEN
                and connection.pid
                and connection.laddr
                and connection.laddr[1] == port
            ):
                return psutil.Process(connection.pid)
        return None
