"""What operators see of a running service: its metrics, its log, its spans."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from collector import Collector, collecting, values
from commands import command
from live_service import Service, chat_body, eventually
from scripted_engine import script

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("deadline")]

SECRET = "what the client wrote"


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def service(serve: Callable[..., Service], collector: Collector) -> Service:
    settings = {"auth": {"mode": "keys"}, "tracing": {"otlp_endpoint": collector.url}}
    return serve(settings=settings).start().wait_ready()


@pytest.fixture(scope="module")
def keys(service: Service) -> dict[str, str]:
    """One of each scope."""
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SERVING_CONFIG", str(service.config))
        for scope in ("inference", "metrics", "admin"):
            done = command(service, "keys", "create", scope, "--scope", scope)
            assert done.returncode == 0, done.stderr
            made[scope] = done.stdout.strip()
    eventually(lambda: all(scrape(service, key)[0] != 401 for key in made.values()), "known")
    return made


def scrape(service: Service, key: str = "", accept: str = "") -> tuple[int, str, str]:
    """Status, content type and page."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    reply = service.http.get("/metrics", headers={**headers, "accept": accept})
    return reply.status_code, reply.headers["content-type"], reply.text


def ask(service: Service, key: str, **fields: Any) -> int:
    headers = {"authorization": f"Bearer {key}", **fields.pop("headers", {})}
    body = {**chat_body(SECRET), **fields}
    return service.http.post("/v1/chat/completions", headers=headers, json=body).status_code


def line_of(service: Service, request_id: str) -> dict[str, Any]:
    """The one in the request log."""

    def found() -> list[dict[str, Any]]:
        lines = [text for text in service.log_text.splitlines() if text.startswith("{")]
        return [line for line in map(json.loads, lines) if line.get("request_id") == request_id]

    (line,) = eventually(found, f"{request_id} is in the log")
    return line


def test_metrics_are_for_keys_of_that_scope_or_of_operators(
    service: Service, keys: dict[str, str]
) -> None:
    assert scrape(service)[0] == 401
    assert scrape(service, keys["inference"])[0] == 403
    assert scrape(service, keys["metrics"])[0] == scrape(service, keys["admin"])[0] == 200
    assert ask(service, keys["metrics"]) == 403


def test_the_page_is_prometheus_or_open_metrics_as_asked(
    service: Service, keys: dict[str, str]
) -> None:
    _, kind, page = scrape(service, keys["metrics"])
    assert kind.startswith("text/plain; version=")
    assert "serving_version_state{" in page
    assert "process_resident_memory_bytes " in page
    assert "bentoml_" not in page
    wanted = "application/openmetrics-text; version=1.0.0"
    _, kind, page = scrape(service, keys["metrics"], wanted)
    assert kind.startswith(wanted)
    assert page.endswith("# EOF\n")


def test_ten_thousand_paths_and_models_make_no_new_series(
    service: Service, keys: dict[str, str]
) -> None:
    def series() -> set[str]:
        page = scrape(service, keys["metrics"])[2]
        return {line.rpartition(" ")[0] for line in page.splitlines() if line[0] != "#"}

    def head(method: str, path: str, length: int = 0) -> str:
        return (
            f"{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {keys['inference']}\r\n"
            f"content-type: application/json\r\ncontent-length: {length}\r\n\r\n"
        )

    def unknown_path(number: int) -> str:
        return head("GET", f"/v1/path-{number}")

    def unknown_model(number: int) -> str:
        body = json.dumps(chat_body("Hello", model=f"nobody-{number}", user=f"user-{number}"))
        return head("POST", "/v1/chat/completions", len(body)) + body

    assert ask(service, keys["inference"], model="nobody") == 404
    before = series()
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        for make in (unknown_path, unknown_model):
            for first in range(0, 5000, 10):  # a connection may be so far ahead of its answers
                requests = "".join(make(number) for number in range(first, first + 10))
                connection.sendall(requests.encode())
                met = b""
                while met.count(b"HTTP/1.1 404 ") < 10:
                    data = connection.recv(65536)
                    assert data
                    met += data
                assert met.count(b"HTTP/1.1 ") == 10
    assert series() == before


def test_one_trace_leads_from_the_client_to_the_engine(
    service: Service, keys: dict[str, str], collector: Collector
) -> None:
    trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    headers = {"traceparent": f"00-{trace}-{parent}-01", "x-request-id": "traced"}
    assert ask(service, keys["inference"], headers=headers, stream=True) == 200

    def found() -> list[Any]:
        return [span for span in list(collector.spans) if span.trace_id.hex() == trace]

    (span,) = eventually(found, "the span came")
    assert span.parent_span_id.hex() == parent
    assert values(span)["gen_ai.response.model"] == "chat:1"
    assert f"00-{trace}-{span.span_id.hex()}-01" in service.stats()["traces"]
    assert line_of(service, "traced")["trace_id"] == trace
    assert not any(SECRET.encode() in body for body in collector.raw)


def test_each_request_is_one_line_in_the_log_however_it_ended(
    service: Service, keys: dict[str, str]
) -> None:
    def asked(name: str, key: str, **fields: Any) -> tuple[int, dict[str, Any]]:
        status = ask(service, key, headers={"x-request-id": name}, **fields)
        return status, line_of(service, name)

    key = keys["inference"]
    status, line = asked("answered", key, stream=True)
    assert (status, line["status"], line["engine"], line["version"]) == (200, 200, "vllm", 1)
    assert line["key"] == key.split("-")[1]
    assert line["completion_tokens"] > 0 < line["ttft"] < line["duration"]
    for name, used, fields, expected, code in (
        ("nobody", "sk-nothing", {}, 401, "invalid_api_key"),
        ("large", key, {"user": "x" * 70000}, 413, "body_too_large"),
        ("wrong", key, {"temperature": "hot"}, 400, "invalid_request"),
        ("broken", key, chat_body(script(fault="status_500")), 502, "engine_error"),
    ):
        status, line = asked(name, used, **fields)
        assert (status, line["status"], line["error"]) == (expected, expected, code)
    service.http.get("/admin/status", headers={"x-request-id": "an-operator"})
    assert line_of(service, "an-operator")["status"] == 401
    assert SECRET not in service.log_text
    assert not any(key in service.log_text for key in keys.values())


def test_nothing_else_writes_a_line_for_each_request(
    service: Service, keys: dict[str, str]
) -> None:
    headers = {"x-request-id": "only-once"}
    assert ask(service, keys["inference"], headers=headers) == 200
    line_of(service, "only-once")
    scrape(service, keys["metrics"])
    assert "scheme=http" not in service.log_text  # as in BentoML's
    assert '"path":"/metrics","status":200' not in service.log_text
