"""Browsers: a page of another origin may ask, if it was named."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from live_service import Service, chat_body

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("deadline")]

PAGE = "https://chat.example.com"


@pytest.fixture(scope="module")
def service(serve: Callable[..., Service]) -> Service:
    settings = {"auth": {"mode": "keys"}, "cors": {"origins": [PAGE]}}
    return serve(settings=settings).start().wait_ready()


def preflight(service: Service, origin: str, method: str = "POST") -> tuple[int, str | None]:
    reply = service.http.options(
        "/v1/chat/completions",
        headers={
            "origin": origin,
            "access-control-request-method": method,
            "access-control-request-headers": "authorization,content-type",
        },
    )
    return reply.status_code, reply.headers.get("access-control-allow-origin")


def test_a_preflight_passes_without_a_key(service: Service) -> None:
    assert preflight(service, PAGE) == (200, PAGE)


def test_other_pages_and_other_methods_do_not(service: Service) -> None:
    assert preflight(service, "https://evil.example") == (400, None)
    assert preflight(service, PAGE, "DELETE")[0] == 400


def test_a_page_reads_errors_and_the_headers_of_ours(service: Service) -> None:
    headers = {"origin": PAGE}
    reply = service.http.post("/v1/chat/completions", headers=headers, json=chat_body("Hello"))
    assert reply.status_code == 401
    assert reply.headers["access-control-allow-origin"] == PAGE
    assert "x-served-version" in reply.headers["access-control-expose-headers"]


def test_without_origins_no_page_may(serve: Callable[..., Service]) -> None:
    service = serve().start().wait_ready()
    assert preflight(service, PAGE)[1] is None
    reply = service.http.get("/v1/models", headers={"origin": PAGE})
    assert "access-control-allow-origin" not in reply.headers
