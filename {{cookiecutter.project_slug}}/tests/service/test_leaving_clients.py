"""Clients that leave, and clients that read slowly: the engine must notice both."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable

import httpx
import psutil
import pytest
from live_service import Service, chat_body, eventually
from scripted_engine import script

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("deadline")]

LONG = script(tokens=200, delay_ms=50)


@pytest.fixture(params=["transformers", "vllm", "sglang"], scope="module")
def service(request: pytest.FixtureRequest, shared: Callable[[str], Service]) -> Service:
    return shared(request.param)


def aborts(service: Service, before: int) -> bool:
    stats = service.stats()
    return bool(stats["aborted"] == before + 1 and stats["in_flight"] == 0)


def test_leaving_a_stream_aborts_its_generation(service: Service) -> None:
    before = service.stats()["aborted"]
    with service.stream(LONG, max_tokens=200) as stream:
        stream.until_text("w1")
    eventually(lambda: aborts(service, before), "the engine noticed", 2)


def test_leaving_before_a_whole_reply_aborts_its_generation(service: Service) -> None:
    before = service.stats()
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{service.url}/v1/chat/completions", json=chat_body(LONG, max_tokens=200), timeout=0.5
        )
    eventually(lambda: aborts(service, before["aborted"]), "the engine noticed", 2)
    assert service.stats()["requests"] == before["requests"] + 1


def test_leaving_during_the_prefill_aborts_it(service: Service) -> None:
    before = service.stats()["aborted"]
    with service.stream(script(first_delay_ms=2500)) as stream:
        assert next(iter(stream)).name == "comment"
    eventually(lambda: aborts(service, before), "the engine noticed", 2)


def test_leaving_in_the_middle_of_the_request_starts_nothing(service: Service) -> None:
    before = service.stats()["requests"]
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
            b"content-type: application/json\r\ncontent-length: 1000\r\n\r\n{"
        )
    assert service.chat("Hello").status_code == 200
    assert service.stats()["requests"] == before + 1


def test_a_slow_reader_slows_the_engine_and_not_the_gateway_fills_up(
    shared: Callable[[str], Service],
) -> None:
    """200 MB are to be sent; nobody reads them, so only a few may ever be produced."""
    service = shared("vllm")
    worker = psutil.Process(service.processes.worker)
    flood = script(tokens=2000, pad=100_000)
    body = json.dumps(chat_body(flood, stream=True)).encode()
    before, memory = service.stats(), worker.memory_info().rss
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%b" % (len(body), body)
        )
        eventually(lambda: service.stats()["paused"] > before["paused"], "the engine had to wait")
        seen = [0, 0]

        def at_rest() -> bool:
            seen[:] = [seen[1], service.stats()["written"]]
            return seen[0] == seen[1]

        eventually(at_rest, "nothing more is written")
        assert seen[1] - before["written"] < 40e6
        assert worker.memory_info().rss - memory < 40e6
        assert service.chat("Hello").status_code == 200
    eventually(lambda: aborts(service, before["aborted"]), "the engine noticed", 5)
