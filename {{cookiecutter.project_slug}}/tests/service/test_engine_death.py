"""An engine that dies: seen within two seconds, told to the clients, and mended without anybody."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from live_service import Service, alive, eventually, text_of
from scripted_engine import script

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("deadline")]


@pytest.fixture(scope="module")
def running(serve: Callable[..., Service]) -> Service:
    settings = {"restarts": {"attempts": 50, "backoff": 0.3}, "timeouts": {"health": 0.5}}
    return serve(engine="vllm", settings=settings).start()


@pytest.fixture
def service(running: Service) -> Service:
    def whole() -> bool:
        return running.ready and running.has_engine() and bool(running.stats())

    eventually(whole, "the service is whole again")
    return running


def test_a_killed_engine_breaks_its_stream_and_is_replaced(service: Service) -> None:
    old = service.processes.engine
    with service.stream(script(tokens=100, delay_ms=50), max_tokens=100) as stream:
        stream.until_text("w2")
        os.kill(old, signal.SIGKILL)
        killed = time.monotonic()
        *_, last = stream.rest()
        assert (last.name, last.json["error"]["code"]) == ("error", "engine_error")
        eventually(lambda: not service.ready, "/readyz shows it", 2)
        assert time.monotonic() - killed < 2
    service.wait_ready()
    assert service.processes.engine != old
    assert service.chat("Hello").status_code == 200


def test_requests_meanwhile_are_told_to_come_back(service: Service) -> None:
    os.kill(service.processes.engine, signal.SIGKILL)
    eventually(lambda: not service.ready, "/readyz shows it", 2)
    reply = service.chat("Hello")
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "model_loading")
    assert int(reply.headers["retry-after"]) >= 1
    assert service.status("/livez") == 200
    service.wait_ready()


@pytest.mark.parametrize("streamed", [False, True])
def test_a_crash_before_the_first_byte_is_an_error_reply(service: Service, streamed: bool) -> None:
    reply = service.chat(script(fault="crash_before"), stream=streamed)
    assert reply.status_code in (502, 503)
    assert reply.json()["error"]["code"] in ("engine_error", "model_loading")
    eventually(lambda: not service.ready, "/readyz shows it", 2)


def test_a_crash_within_a_stream_is_an_error_event(service: Service) -> None:
    with service.stream(script(fault="crash_mid_stream", delay_ms=20)) as stream:
        *events, last = stream.rest()
    assert text_of(events) == "w0 w1 w2"
    assert (last.name, last.json["error"]["code"]) == ("error", "engine_error")


def test_the_death_and_its_reason_are_in_the_log(service: Service) -> None:
    os.kill(service.processes.engine, signal.SIGKILL)
    eventually(lambda: not service.ready, "/readyz shows it", 2)
    eventually(lambda: "killed by signal 9" in service.log_text, "the log says so", 2)


def test_a_killed_guard_takes_its_engine_with_it_and_both_are_replaced(service: Service) -> None:
    old = service.processes
    os.kill(old.guard, signal.SIGKILL)
    eventually(lambda: not alive(old.engine), "the engine is gone", 2)
    eventually(lambda: not service.ready, "/readyz shows it", 2)
    service.wait_ready()


def test_an_engine_that_hangs_is_replaced(service: Service) -> None:
    old = service.processes.engine
    os.kill(old, signal.SIGSTOP)
    eventually(lambda: not alive(old), "the hung engine is gone", 15)
    service.wait_ready()
    assert "did not answer 3 health checks" in service.log_text


def test_an_engine_that_says_it_is_unwell_is_replaced(
    serve: Callable[..., Service], tmp_path: Path
) -> None:
    sick = tmp_path / "sick"
    with serve(behaviour={"health_503_after": str(sick)}).start().wait_ready() as service:
        old = service.processes.engine
        sick.touch()
        eventually(lambda: not service.ready, "/readyz shows it", 3)
        eventually(lambda: not alive(old), "the old engine is gone", 5)
        sick.unlink()
        service.wait_ready()
        assert "its health check answers 503" in service.log_text


def test_no_child_of_a_dead_engine_is_left(serve: Callable[..., Service]) -> None:
    with serve(behaviour={"spawn_child": True}).start().wait_ready() as service:
        child = service.stats()["child"]
        assert alive(child)
        os.kill(service.processes.engine, signal.SIGKILL)
        eventually(lambda: not alive(child), "the engine's child is gone", 3)
