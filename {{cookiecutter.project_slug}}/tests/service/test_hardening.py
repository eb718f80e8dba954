"""Hostile requests: each is refused, in the envelope, and never taken for two or for another's."""

from __future__ import annotations

import contextlib
import gzip
import json
import re
from collections.abc import Callable

import pytest
from commands import command
from live_service import Service, chat_body, eventually
from raw_client import MODELS, Reply, connected, post
from scripted_engine import script

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("deadline")]

CHAT = "/v1/chat/completions"
HELLO = json.dumps(chat_body("Hello")).encode()
START = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n".encode()
CHUNKED = START + b"transfer-encoding: chunked\r\n\r\n"


@pytest.fixture
def service(shared: Callable[[str], Service]) -> Service:
    return shared("vllm")


@pytest.fixture(scope="module")
def guarded(serve: Callable[..., Service]) -> Service:
    """It wants keys."""
    return serve(settings={"auth": {"mode": "keys"}}).start().wait_ready()


def replies(service: Service, data: bytes) -> list[Reply]:
    """All that come until the service closes the connection."""
    with connected(service.port) as client:
        return client.send(data).rest()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


# Requests that two readers of HTTP may read in two ways. What follows each of them here would be a
# request of its own to one reader, and a part of the body to the other.

AMBIGUOUS = {
    "a length and chunks": START
    + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and a length": START
    + b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": START + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello",
    "a list of lengths": START + b"content-length: 5, 6\r\n\r\nhello",
    "a length with a sign": START + b"content-length: +5\r\n\r\nhello",
    "a length below zero": START + b"content-length: -5\r\n\r\nhello",
    "a length that overflows": START + b"content-length: 18446744073709551621\r\n\r\nhello",
    "an empty length": START + b"content-length:\r\n\r\n",
    "a hexadecimal length": START + b"content-length: 0x5\r\n\r\nhello",
    "a folded length": START + b"content-length:\r\n 5\r\n\r\nhello",
    "a space before the colon": START + b"content-length : 5\r\n\r\nhello",
    "chunked, identity": START + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "gzip, chunked": START + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "identity": START + b"transfer-encoding: identity\r\n\r\n",
    "another word": START + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a control character": START + b"transfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "two transfer codings": (
        START + b"transfer-encoding: identity\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
    "a folded transfer coding": START + b"transfer-encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "chunks in HTTP/1.0": CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0") + b"0\r\n\r\n",
    "a chunk size that is none": CHUNKED + b"xyz\r\nhello\r\n0\r\n\r\n",
    "a chunk size with a prefix": CHUNKED + b"0x5\r\nhello\r\n0\r\n\r\n",
    "a chunk size with a sign": CHUNKED + b"-5\r\nhello\r\n0\r\n\r\n",
    "a chunk size that overflows": CHUNKED + b"10000000000000005\r\nhello\r\n0\r\n\r\n",
    "a chunk size and a space": CHUNKED + b"5 \r\nhello\r\n0\r\n\r\n",
    "a chunk longer than its size": CHUNKED + b"3\r\nhello\r\n0\r\n\r\n",
    "a bare line feed after a chunk size": CHUNKED + b"5\nhello\r\n0\r\n\r\n",
    "a bare line feed after a chunk": CHUNKED + b"5\r\nhello\n0\r\n\r\n",
    "a bare line feed in an extension": CHUNKED + b"5;a\n\r\nhello\r\n0\r\n\r\n",
    "a length as a trailer": CHUNKED + b"0\r\ncontent-length: 5\r\n\r\n",
    "bare line feeds": START.replace(b"\r\n", b"\n") + b"content-length: 0\n\n",
    "one bare line feed": START + b"a: b\ncontent-length: 0\r\n\r\n",
    "a bare carriage return": START + b"a: b\rcontent-length: 5\r\n\r\n",
    "a folded header": START + b"a: b\r\n c\r\n\r\n",
    "a NUL": START + b"a: b\x00c\r\n\r\n",
    "an odd header name": START + b"a(b: c\r\n\r\n",
    "a space before the first header": b"POST / HTTP/1.1\r\n host: x\r\n\r\n",
    "no host": b"GET /v1/models HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /v1/models HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n",
    "a host that is none": b"GET /v1/models HTTP/1.1\r\nhost: x@y/z\r\n\r\n",
    "a URL of another host": b"GET http://y/v1/models HTTP/1.1\r\nhost: x\r\n\r\n",
    "a URL of a file": b"GET file://x/v1/models HTTP/1.1\r\nhost: x\r\n\r\n",
    "a URL without a path": b"GET http://x HTTP/1.1\r\nhost: x\r\n\r\n",
    "a fragment": b"GET /v1/models#/admin HTTP/1.1\r\nhost: x\r\n\r\n",
    "a target without a slash": b"GET v1/models HTTP/1.1\r\nhost: x\r\n\r\n",
    "a star": b"OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n",
    "a line feed in a path": b"GET /v1/models%0A HTTP/1.1\r\nhost: x\r\n\r\n",
    "a control character in a path": b"GET /\x01 HTTP/1.1\r\nhost: x\r\n\r\n",
    "a tunnel": b"CONNECT x:443 HTTP/1.1\r\nhost: x\r\n\r\n",
    "an odd version": b"GET /v1/models HTTP/1.2\r\nhost: x\r\n\r\n",
    "a version that is not spoken so": b"GET /v1/models HTTP/2.0\r\nhost: x\r\n\r\n",
    "no version": b"GET /v1/models\r\n\r\n",
    "an odd method": b"GRAB /v1/models HTTP/1.1\r\nhost: x\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}


@pytest.mark.parametrize("request_", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_what_is_no_plain_http_gets_one_refusal_and_ends_its_connection(
    service: Service, request_: bytes
) -> None:
    before = service.stats()["requests"]
    (reply,) = replies(service, request_ + post(CHAT, HELLO))
    assert (reply.status, reply.error["code"]) == (400, "invalid_http")
    assert reply.headers["connection"] == "close"
    assert service.stats()["requests"] == before


@pytest.mark.parametrize("name", ["two lengths", "a chunk size that is none", "TLS"])
def test_a_refusal_does_not_depend_on_how_the_bytes_arrive(service: Service, name: str) -> None:
    with connected(service.port) as client:
        with contextlib.suppress(ConnectionError):  # it may be refused before its end
            for byte in AMBIGUOUS[name]:
                client.send(bytes([byte]))
        (reply,) = client.rest()
    assert (reply.status, reply.error["code"]) == (400, "invalid_http")


def test_nothing_is_read_as_a_request_after_a_connection_was_to_close(service: Service) -> None:
    closing = MODELS.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")
    (reply,) = replies(service, closing + MODELS)
    assert reply.status == 200


def test_a_body_is_no_request_although_its_head_asks_for_another_protocol(
    service: Service,
) -> None:
    """httptools takes the body for that protocol, and what comes later for a new request."""
    head = START + b"connection: Upgrade\r\nupgrade: h2c\r\ncontent-length: %d\r\n\r\n"
    with connected(service.port) as client:
        client.send(head % len(MODELS))
        client.send(MODELS)
        (reply,) = client.rest()
    assert (reply.status, reply.error["code"]) == (400, "invalid_json")
    (reply,) = replies(service, head % len(MODELS) + MODELS + MODELS)
    assert reply.error["code"] == "invalid_json"


@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_a_client_that_would_like_http_2_is_answered_in_its_own(
    service: Service, framing: str
) -> None:
    """As Java's own client asks, with each first request of a connection."""
    asks = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAE\r\n"
    body = b"content-length: %d\r\n\r\n%b" % (len(HELLO), HELLO)
    if framing == "chunks":
        body = b"transfer-encoding: chunked\r\n\r\n" + chunk(HELLO) + b"0\r\n\r\n"
    (reply,) = replies(service, START + asks + body)
    assert reply.status == 200
    assert json.loads(reply.body)["choices"][0]["message"]["content"]


def test_a_websocket_is_not_spoken(service: Service) -> None:
    asks = (
        b"connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
        b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    (reply,) = replies(service, b"GET /v1/nothing HTTP/1.1\r\nhost: x\r\n" + asks)
    assert (reply.status, reply.error["code"]) == (404, "not_found")


def test_a_trailer_is_no_header(guarded: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVING_CONFIG", str(guarded.config))
    key = command(guarded, "keys", "create", "ann").stdout.strip()
    bearer = {"authorization": f"Bearer {key}"}
    eventually(
        lambda: guarded.http.get("/v1/models", headers=bearer).status_code == 200, "it is known"
    )
    trailers = f"authorization: Bearer {key}\r\nx-request-id: trailer\r\n".encode()
    with connected(guarded.port) as client:
        body = chunk(HELLO) + b"0\r\n" + trailers + b"\r\n"
        reply = client.send(CHUNKED + body).reply()
        assert reply.status == 401
        assert reply.headers["x-request-id"] != "trailer"


# Requests that are too much.


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        MODELS[:-2] + b"a: " + b"b" * 70_000 + b"\r\n\r\n",
        MODELS[:-2] + b"a: b\r\n" * 12_000 + b"\r\n",
        MODELS[:-2] + b"a" * 70_000 + b": b\r\n\r\n",
        MODELS[:-2] + b"a: " + b"b" * 5_000_000,
    ],
    ids=["a long path", "a long header", "many headers", "a long name", "no end"],
)
def test_a_head_over_the_limit_is_refused(service: Service, head: bytes) -> None:
    with connected(service.port) as client:
        with contextlib.suppress(ConnectionError):  # it may be refused before its end
            client.send(head)
        (reply,) = client.rest()
    assert (reply.status, reply.error["code"]) == (431, "head_too_large")


def test_a_head_just_under_the_limit_is_read(service: Service) -> None:
    head = MODELS[:-2] + b"a: " + b"b" * 65_000 + b"\r\n\r\n"
    with connected(service.port) as client:
        assert client.send(head).reply().status == 200
        assert client.send(head + head).reply().status == 200
        assert client.reply().status == 200


@pytest.mark.parametrize(
    "rest", [b"1;" + b"a" * 200_000, b"0\r\na: " + b"b" * 200_000], ids=["extension", "trailer"]
)
def test_what_frames_a_body_is_limited(service: Service, rest: bytes) -> None:
    with connected(service.port) as client:
        client.send(CHUNKED)
        with contextlib.suppress(ConnectionError):
            client.send(rest)
        (reply,) = client.rest()
    assert (reply.status, reply.error["code"]) == (400, "invalid_http")


def test_a_body_in_the_smallest_chunks_is_read(service: Service) -> None:
    body = HELLO[:-1] + b" " * 50_000 + b"}"
    with connected(service.port) as client:
        chunks = b"".join(chunk(body[at : at + 1]) for at in range(len(body)))
        assert client.send(CHUNKED + chunks + b"0\r\n\r\n").reply().status == 200


def test_requests_in_advance_are_answered_in_their_order(service: Service) -> None:
    with connected(service.port) as client:
        client.send(b"".join(MODELS.replace(b"models", b"no%d" % n) for n in range(10)))
        for n in range(10):
            assert f"/v1/no{n};" in client.reply().error["message"]


def test_too_many_requests_in_advance_end_their_connection(service: Service) -> None:
    slow = json.dumps(chat_body(script(tokens=2, delay_ms=200), max_tokens=2)).encode()
    answered = replies(service, post(CHAT, slow) + MODELS * 1000)
    assert {reply.status for reply in answered} == {200}
    assert len(answered) < 50


def test_a_bad_request_in_advance_does_not_disturb_the_answer_before_it(service: Service) -> None:
    slow = json.dumps(chat_body(script(tokens=2, delay_ms=200), max_tokens=2)).encode()
    for bad in (
        b"nonsense\r\n\r\n",
        AMBIGUOUS["two lengths"],
        AMBIGUOUS["a chunk size that is none"],
    ):
        (reply,) = replies(service, post(CHAT, slow) + bad)
        assert reply.status == 200
        assert json.loads(reply.body)["choices"]


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "x-gzip", "gzip, gzip"])
def test_a_compressed_body_is_refused_and_not_unpacked(service: Service, coding: str) -> None:
    bomb = gzip.compress(b'{"model": "' + b"a" * 50_000_000 + b'"}')
    reply = service.http.post(
        CHAT,
        content=bomb,
        headers={"content-type": "application/json", "content-encoding": coding},
    )
    assert reply.status_code == 415
    assert reply.json()["error"]["code"] == "unsupported_media_type"
    assert "content-encoding" in reply.json()["error"]["message"]


def test_a_body_that_is_told_to_be_plain_is_read(service: Service) -> None:
    headers = {"content-type": "application/json", "content-encoding": "identity"}
    assert service.http.post(CHAT, content=HELLO, headers=headers).status_code == 200


# Request ids.


@pytest.mark.parametrize("given", ["a", "req-1.2_3:4", "A" * 128])
def test_a_request_id_is_taken_over(service: Service, given: str) -> None:
    for reply in (
        service.http.get("/v1/models", headers={"x-request-id": given}),
        service.http.get("/v1/nothing", headers={"x-request-id": given}),
        service.http.post(CHAT, json=chat_body("Hello"), headers={"x-request-id": given}),
    ):
        assert reply.headers["x-request-id"] == given


@pytest.mark.parametrize(
    "given",
    [
        "",
        "A" * 129,
        "a b",
        "a\tb",
        "a%0d%0aset-cookie: x=1",
        "a, b",
        "<script>",
        '"quoted"',
        "\u00e9",
        "a;b",
        "{{7*7}}",
        "../../etc/passwd",
    ],
)
def test_a_request_id_that_is_none_is_not_echoed(service: Service, given: str) -> None:
    request_ = MODELS[:-2] + b"x-request-id: " + given.encode("utf-8") + b"\r\n\r\n"
    with connected(service.port) as client:
        reply = client.send(request_).reply()
    assert reply.status == 200
    assert re.fullmatch("[0-9a-f]{32}", reply.headers["x-request-id"])
    assert "set-cookie" not in reply.headers


# Ways around the guard of the admin API.

PATHS = [
    "/admin/status",
    "/admin",
    "/admin/",
    "//admin/status",
    "/admin//status",
    "/./admin/status",
    "/admin/./status",
    "/admin/../admin/status",
    "/v1/../admin/status",
    "/v1/models/../../admin/status",
    "/%61dmin/status",
    "/admin%2fstatus",
    "/admin%2Fstatus",
    "/v1%2f..%2fadmin%2fstatus",
    "/v1/models/..%2f..%2fadmin%2fstatus",
    "/%2e%2e/admin/status",
    "/%252e%252e/admin/status",
    "/admin;x/status",
    "/admin/status;x",
    "/admin/status/",
    "/admin/status?x=/v1/models",
    "/admin/status%00",
    "/admin/status%20",
    "/admin/status%0a",
    "/\\admin/status",
    "/v1/models%0d%0aGET%20/admin/status",
    "/ADMIN/status",
    "/Admin/Status",
    "/admin/status.json",
    "/livez/../admin/status",
    "/metrics/../admin/status",
    "http://localhost/admin/status",
    "http://localhost//admin/status",
    "/admin/history",
    "/admin/usage",
]


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "TRACE", "POST", "PUT", "get"])
@pytest.mark.parametrize("path", PATHS)
def test_no_path_leads_around_the_guard(guarded: Service, path: str, method: str) -> None:
    request_ = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    with connected(guarded.port) as client:
        client.send(request_.encode())
        if method == "HEAD":
            assert int(client.socket.recv(12)[-3:]) in (400, 401, 404)
            return
        (reply,) = client.rest()
    assert reply.status in (400, 401, 404, 405)
    assert reply.error["code"] in (
        "invalid_api_key",
        "invalid_http",
        "not_found",
        "method_not_allowed",
    )
    assert "trace" not in reply.body.decode().replace("TRACE", "").lower()


OVERRIDES = [
    ("x-original-url", "/admin/status"),
    ("x-rewrite-url", "/admin/status"),
    ("x-http-method-override", "PUT"),
    ("x-forwarded-prefix", "/admin"),
]


@pytest.mark.parametrize(("name", "value"), OVERRIDES)
def test_no_header_changes_where_a_request_goes(service: Service, name: str, value: str) -> None:
    reply = service.http.get("/v1/nothing", headers={name: value})
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    "header",
    [
        {"x-forwarded-for": "127.0.0.1"},
        {"x-forwarded-host": "localhost"},
        {"x-real-ip": "127.0.0.1"},
        {"forwarded": "for=127.0.0.1"},
        {"host": "service.example.com"},
        {"host": "localhost.example.com"},
        {"host": "127.0.0.1.example.com"},
    ],
)
def test_only_this_machine_is_an_operator_without_keys(
    service: Service, header: dict[str, str]
) -> None:
    assert service.http.get("/admin/status").status_code == 200
    reply = service.http.get("/admin/status", headers=header)
    assert (reply.status_code, reply.json()["error"]["code"]) == (403, "local_only")
