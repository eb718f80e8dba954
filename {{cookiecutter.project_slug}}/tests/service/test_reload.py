"""serving.yaml changed under a running service."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from commands import said
from live_service import RESTARTS, TIMEOUTS, Service, eventually
from scripted_engine import script
from versions import import_versions, in_production, status_of, version_states

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("deadline")]


@pytest.fixture(scope="module")
def running(serve: Callable[..., Service]) -> Service:
    return serve().start().wait_ready()


@pytest.fixture
def service(running: Service) -> Iterator[Service]:
    """With its first settings again, after each test."""
    yield running
    rewrite(running, {})
    assert shown(running) == {"fault": "", "waiting": []}


def shown(service: Service) -> Any:
    return status_of(service)["settings"]


def rewrite(service: Service, sections: dict[str, Any]) -> None:
    """Returns once the service has looked at it: what it could not use always shows."""
    service.write_settings({**sections, "service": {"name": "other"}})
    eventually(lambda: "service.name" in shown(service)["waiting"], "the change shows")
    service.write_settings(sections)
    eventually(lambda: "service.name" not in shown(service)["waiting"], "the next one, too")


def test_limits_change_between_two_requests(service: Service) -> None:
    long = "Hello " * 100 + " " * 1500
    assert service.chat(long, max_tokens=1).status_code == 200
    rewrite(service, {"limits": {"max_body_bytes": 1024}})
    assert service.chat(long, max_tokens=1).json()["error"]["code"] == "body_too_large"
    assert "serving.yaml: in force now: limits.max_body_bytes" in service.log_text


def test_a_running_stream_keeps_the_limits_it_began_with(service: Service) -> None:
    with service.stream(script(tokens=40, delay_ms=100)) as stream:
        stream.until_text("w1")
        rewrite(service, {"timeouts": {"stall": 0.05, "keepalive": 0.02}})
        assert stream.rest()[-1].data == "[DONE]"
    late = service.chat(script(tokens=9, delay_ms=1000))
    assert late.json()["error"]["code"] == "timeout"


def test_what_needs_a_restart_says_so_and_the_rest_is_in_force(service: Service) -> None:
    rewrite(
        service,
        {"engine": {"max_model_len": 128}, "timeouts": {"answer": 9000, "drain": 3}},
    )
    assert shown(service)["waiting"] == ["engine.max_model_len", "timeouts.answer"]
    assert "in force now: timeouts.drain" in service.log_text
    assert "restart for engine.max_model_len, timeouts.answer" in said(service, "status")
    assert service.ready


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("limits: {max_body_byte: 1}\n", "limits.max_body_byte is not a known key; did you mean"),
        ("limits: [\n", "not valid YAML"),
        ("", "must hold the keys"),
    ],
)
def test_a_file_with_an_error_changes_nothing(service: Service, text: str, told: str) -> None:
    if "max_body_byte" in text:
        text = service.config.read_text("utf-8").replace("max_body_bytes", "max_body_byte")
    service.config.write_text(text, "utf-8")
    fault = eventually(lambda: shown(service)["fault"], "the fault shows")
    assert told in fault
    assert "The settings before stay in force." in fault
    assert told in re.sub(r"\s+", " ", said(service, "status"))
    assert service.chat("Hello").status_code == 200


def test_a_new_version_gets_an_engine_section_of_its_own_without_a_restart(
    serve: Callable[..., Service], model_template: Any
) -> None:
    service = serve(settings={"timeouts": TIMEOUTS, "restarts": RESTARTS})
    import_versions(service, model_template, 2)
    in_production(service, 1)
    service.start().wait_ready()
    own = {"name": "vllm", "home": "engine", "max_model_len": 32}
    service.write_settings({"models": {"chat": {"engines": {2: own}}}})
    eventually(lambda: "in force now: models.chat.engines.2" in service.log_text, "it is in force")
    said(service, "labels", "set", "chat", "production", "2")
    assert service.chat("Hello", max_tokens=64).json()["error"]["code"] == "context_length_exceeded"
    eventually(lambda: version_states(service) == {2: "ready"}, "only version 2")
