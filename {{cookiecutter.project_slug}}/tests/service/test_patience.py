"""Slow clients: what they hold up, for how long, and what they are told."""

from __future__ import annotations

import json
import re
import resource
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator

import pytest
from live_service import TIMEOUTS, Service, chat_body, eventually
from raw_client import MODELS, RawClient, connected, post
from scripted_engine import script

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("deadline")]

CHAT = "/v1/chat/completions"
#: Seconds. The test machine may be slow, so that none of them is very short.
HEAD, BODY, IDLE, WRITE = 1.5, 2.0, 1.0, 1.5
SHORT = {**TIMEOUTS, "head": HEAD, "body": BODY, "idle": IDLE, "write": WRITE}
BODY_OF_HELLO = json.dumps(chat_body("Hello")).encode()


@pytest.fixture(scope="module")
def service(serve: Callable[..., Service]) -> Service:
    settings = {"timeouts": SHORT, "models": {"chat": {"limits": {"concurrent": 2}}}}
    return serve(settings=settings).start().wait_ready()


def drip(client: RawClient, data: bytes, pause: float) -> None:
    """Sends byte by byte, until the service says something or all is sent."""
    client.socket.settimeout(pause)
    for byte in data:
        client.send(bytes([byte]))
        try:
            client.socket.recv(1, socket.MSG_PEEK)
            break
        except TimeoutError:
            continue
    client.socket.settimeout(20)


def test_a_connection_that_says_nothing_is_closed(service: Service) -> None:
    with connected(service.port) as client:
        assert client.rest() == []
        assert HEAD - 0.1 <= client.age < HEAD + 5


def test_half_a_head_is_told_that_it_took_too_long(service: Service) -> None:
    with connected(service.port) as client:
        (reply,) = client.send(MODELS[:-2]).rest()
        assert client.age > HEAD - 0.1
    assert (reply.status, reply.error["code"]) == (408, "request_timeout")
    assert "head took over 1.5 s" in reply.error["message"]
    assert reply.headers["connection"] == "close"


def test_bytes_that_come_one_by_one_get_no_more_time(service: Service) -> None:
    with connected(service.port) as client:
        drip(client, MODELS[:-2] + b"x-slow: " + b"y" * 1000, 0.1)
        (reply,) = client.rest()
        assert client.age < HEAD + 5
    assert reply.status == 408


def test_empty_lines_get_no_more_time(service: Service) -> None:
    with connected(service.port) as client:
        client.send(MODELS).reply()
        began = time.monotonic()
        drip(client, b"\r\n" * 500, 0.1)
        (reply,) = client.rest()
        assert time.monotonic() - began < HEAD + 5
    assert reply.status == 408


@pytest.mark.parametrize("path", [CHAT, "/admin/models/chat/rollback", "/v2/repository/index"])
def test_half_a_body_is_told_that_it_took_too_long_and_starts_nothing(
    service: Service, path: str
) -> None:
    before = service.stats()["requests"]
    half = post(path, b"{", "x-request-id: slow-1", length=1000).replace(b"x\r", b"localhost\r", 1)
    with connected(service.port) as client:
        (reply,) = client.send(half).rest()
        assert client.age > BODY - 0.1
    assert (reply.status, reply.error["code"]) == (408, "request_timeout")
    assert "body took over 2 s" in reply.error["message"]
    assert reply.headers["x-request-id"] == "slow-1"
    assert service.stats()["requests"] == before
    assert "Traceback" not in service.log_text


def test_the_rest_of_a_refused_body_is_not_waited_for(service: Service) -> None:
    with connected(service.port) as client:
        refused = client.send(post(CHAT, b"{", length=10**9)).reply()
        assert refused.status == 413
        drip(client, b" " * 1000, 0.1)
        assert client.rest() == []
        assert client.age < BODY + 5


def test_a_body_just_in_time_is_answered(service: Service) -> None:
    with connected(service.port) as client:
        whole = post(CHAT, BODY_OF_HELLO)
        client.send(whole[:-10])
        time.sleep(BODY / 4)
        assert client.send(whole[-10:]).reply().status == 200


def test_an_answer_may_take_longer_than_its_request_might_have(service: Service) -> None:
    body = json.dumps(chat_body(script(tokens=4, delay_ms=700), max_tokens=4)).encode()
    with connected(service.port) as client:
        reply = client.send(post(CHAT, body)).reply()
        assert client.age > max(HEAD, BODY, IDLE, WRITE)
    assert reply.status == 200


def test_slow_clients_are_counted(service: Service) -> None:
    def told() -> int:
        counts = re.findall(
            r'serving_errors_total\{code="request_timeout"\} (\d+)',
            service.http.get("/metrics").text,
        )
        return int(counts[0]) if counts else 0

    before = told()
    with connected(service.port) as client:
        assert client.send(b"GET").rest()[0].status == 408
    assert told() == before + 1


def test_an_idle_connection_is_kept_as_long_as_it_says(service: Service) -> None:
    with connected(service.port) as client:
        assert client.send(MODELS).reply().status == 200
        began = time.monotonic()
        assert client.rest() == []
        assert IDLE - 0.1 < time.monotonic() - began < IDLE + 5


def test_a_kept_connection_serves_one_request_after_the_other(service: Service) -> None:
    with connected(service.port) as client:
        for _ in range(50):
            assert client.send(MODELS).reply().status == 200


def test_an_idle_connection_outlasts_the_pools_of_clients(service: Service) -> None:
    """httpx, and OpenAI's client with it, uses a connection again for 5 s. Closed at the same time,
    as uvicorn would, it loses a request now and then."""
    longer = {**SHORT, "idle": 60}
    models = {"chat": {"limits": {"concurrent": 2}}}
    service.write_settings({"timeouts": longer, "models": models})
    try:
        eventually(lambda: "in force now: timeouts.idle" in service.log_text, "it is in force")
        with connected(service.port, patience=5.5) as client:
            client.send(MODELS).reply()
            with pytest.raises(TimeoutError):
                client.rest()
            assert client.send(MODELS).reply().status == 200
    finally:
        service.write_settings({"timeouts": SHORT, "models": models})


@pytest.fixture
def crowd(service: Service) -> Iterator[list[RawClient]]:
    """Many connections, each with half a request."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    clients = []
    try:
        for _ in range(1000):
            clients.append(RawClient(service.port).send(b"POST " + CHAT.encode()))
        yield clients
    finally:
        for client in clients:
            client.socket.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_thousand_slow_clients_hold_nobody_up(service: Service, crowd: list[RawClient]) -> None:
    assert service.chat("Hello").status_code == 200
    codes = {reply.status for client in crowd for reply in client.rest()}
    assert codes == {408}


# Clients that do not read.


def flood(tokens: int = 300, pad: int = 100_000) -> bytes:
    body = chat_body(script(tokens=tokens, pad=pad), stream=True)
    return post(CHAT, json.dumps(body).encode())


def test_a_client_that_reads_nothing_is_cut_off_and_frees_its_place(service: Service) -> None:
    before = service.stats()
    with connected(service.port) as one, connected(service.port) as other:
        began = time.monotonic()
        for client in (one, other):
            client.send(flood())
        eventually(lambda: service.stats()["in_flight"] == 2, "both are answered")
        assert service.chat("Hello").status_code == 429  # they have all places
        eventually(lambda: service.stats()["in_flight"] == 0, "generation was stopped")
        assert time.monotonic() - began > WRITE - 0.1
        assert service.stats()["aborted"] == before["aborted"] + 2
        eventually(lambda: service.chat("Hello").status_code == 200, "the places are free")
        eventually(lambda: was_reset(one) and was_reset(other), "their connections are gone")
    assert "took nothing for 1.5 s: its connection is cut" in service.log_text
    eventually(lambda: 499 in statuses(service), "the ledger says that it left")


def statuses(service: Service) -> set[int]:
    """Of all requests in the ledger."""
    with sqlite3.connect(service.folder / "state" / "serving.db") as database:
        return {row[0] for row in database.execute("SELECT status FROM usage")}


def test_little_is_generated_for_a_client_that_reads_nothing(service: Service) -> None:
    before = service.stats()
    with connected(service.port, buffer=16384) as client:
        client.send(flood())
        eventually(lambda: service.stats()["aborted"] > before["aborted"], "it was cut off")
    assert service.stats()["written"] - before["written"] < 12e6


def test_a_client_that_reads_slowly_is_given_the_time(service: Service) -> None:
    """A small part of what is to come, in more time than a client may take nothing."""
    began = time.monotonic()
    with connected(service.port, buffer=4096) as client:
        client.send(flood(tokens=200))
        while time.monotonic() - began < 3 * WRITE:
            assert client.socket.recv(2048)
            time.sleep(0.05)
        assert service.stats()["in_flight"] == 1
    eventually(lambda: service.stats()["in_flight"] == 0, "it left")


def test_the_end_of_an_answer_that_is_not_read_is_not_kept(service: Service) -> None:
    """The answer is complete, and too small for the writer to be held up by it."""
    body = json.dumps(chat_body(script(tokens=9, pad=20_000), max_tokens=9)).encode()
    with connected(service.port, buffer=4096) as client:
        client.send(post(CHAT, body))
        eventually(lambda: 200 in statuses(service), "it was answered")
        eventually(lambda: was_reset(client), "it was cut off")
        assert client.age > WRITE - 0.1


def was_reset(client: RawClient) -> bool:
    return client.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0
