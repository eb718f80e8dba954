"""Engines that fail in the middle of things: the client is told so, and never the internals."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from live_service import EventStream, Service, text_of
from scripted_engine import RAW_ERROR, script

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("deadline")]


@pytest.fixture(params=["transformers", "vllm", "sglang"], scope="module")
def service(request: pytest.FixtureRequest, shared: Callable[[str], Service]) -> Service:
    return shared(request.param)


def assert_broken(stream: EventStream, code: str) -> str:
    """The stream ends with an error event and no `[DONE]`. Returns the text before it."""
    *events, last = stream.rest()
    assert last.name == "error", last
    assert set(last.json) == {"error"}
    assert last.json["error"]["code"] == code
    assert last.json["error"]["type"] == "server_error"
    assert RAW_ERROR not in last.data
    assert all(event.name == "message" and event.data != "[DONE]" for event in events)
    return text_of(events)


@pytest.mark.parametrize("fault", ["garbage", "error_event", "no_end", "reset"])
def test_a_stream_that_breaks_ends_with_an_error_event(service: Service, fault: str) -> None:
    with service.stream(script(tokens=8, fault=fault, delay_ms=5)) as stream:
        assert assert_broken(stream, "engine_error") == "w0 w1 w2"


@pytest.mark.parametrize("fault", ["garbage", "error_event", "no_end", "reset", "not_http"])
def test_a_reply_that_breaks_is_a_bad_gateway(service: Service, fault: str) -> None:
    reply = service.chat(script(tokens=8, fault=fault))
    assert reply.status_code == 502
    assert reply.json()["error"]["code"] == "engine_error"
    assert RAW_ERROR not in reply.text


def test_a_stream_that_breaks_before_its_first_event_is_a_bad_gateway(service: Service) -> None:
    with service.stream(script(fault="not_http")) as stream:
        assert stream.response.status_code == 502
        assert b"engine_error" in stream.response.read()


@pytest.mark.parametrize("service", ["vllm", "sglang"], indirect=True)  # the others send no mark
def test_an_answer_without_its_end_mark_is_no_answer(service: Service) -> None:
    assert service.chat(script(fault="no_done")).status_code == 502
    with service.stream(script(fault="no_done")) as stream:
        assert assert_broken(stream, "engine_error").startswith("w0")


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        ("status_400", 400, "invalid_request"),
        ("status_429", 503, "overloaded"),
        ("status_500", 502, "engine_error"),
        ("status_503", 503, "overloaded"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_a_refusal_of_the_engine_is_translated(
    service: Service, fault: str, status: int, code: str, streamed: bool
) -> None:
    reply = service.chat(script(fault=fault), stream=streamed)
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
    assert RAW_ERROR not in reply.text
    if code == "overloaded":
        assert int(reply.headers["retry-after"]) >= 1


def test_an_engine_that_stalls_is_timed_out_and_left(service: Service) -> None:
    before = service.stats()["aborted"]
    with service.stream(script(fault="stall")) as stream:
        assert assert_broken(stream, "timeout") == "w0 w1 w2"
    stats = service.stats()
    assert (stats["aborted"], stats["in_flight"]) == (before + 1, 0)


def test_a_silent_engine_is_a_gateway_timeout(service: Service) -> None:
    reply = service.chat(script(fault="silent"))
    assert (reply.status_code, reply.json()["error"]["code"]) == (504, "timeout")
    assert service.stats()["in_flight"] == 0


def test_faults_leave_the_service_as_good_as_before(service: Service) -> None:
    """Connections that broke must not be used again."""
    for fault in ("garbage", "not_http", "reset", "no_end", "status_500"):
        service.chat(script(fault=fault))
        assert service.chat("Hello").status_code == 200, fault
