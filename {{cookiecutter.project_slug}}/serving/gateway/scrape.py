"""`GET /metrics`: all that Prometheus is told, for keys with the scope `metrics` or `admin`."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serving.gateway import shadow
from serving.gateway.auth import Gate


class Scrape:
    """One page of what the `collectors` know, of shadows and of this process. BentoML's own page,
    which is switched off in service.py, would be answered before this one."""

    def __init__(self, gate: Gate, *collectors: Collector) -> None:
        self._gate = gate
        self._registry = CollectorRegistry()
        for collector in (*collectors, *shadow.METRICS, ProcessCollector(registry=None)):
            self._registry.register(collector)

    @property
    def routes(self) -> list[Route]:
        return [Route("/metrics", self.page, methods=["GET"])]

    async def page(self, request: Request) -> Response:
        """In Prometheus's text format, or in OpenMetrics where the client asks for that."""
        self._gate.enter(request.scope, "metrics", "admin")
        encode, kind = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(self._registry), headers={"content-type": kind})
