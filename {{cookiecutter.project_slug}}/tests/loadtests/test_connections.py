"""Connections of a load generator: kept, and read with the time at which the bytes came."""

from __future__ import annotations

import resource
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from geventhttpclient.response import HTTPConnectionClosed
from raw_server import whole

from loadtests.connections import Connection, Connections, _trust

REQUEST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"
WHOLE = whole(b"hi")


class Server:
    """Answers the requests with `replies`, one after the other; closes after one without "hi"."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.replies: list[bytes] = []
        self.came, self.left = 0, threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        scheme = "https" if tls else "http"
        self.url = urlsplit(f"{scheme}://127.0.0.1:{self._listener.getsockname()[1]}")
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.came += 1
            if self._tls is not None:
                try:
                    connection = self._tls.wrap_socket(connection, server_side=True)
                except ssl.SSLError:  # the client said that it does not trust us
                    continue
            with connection, suppress(ConnectionError):
                while connection.recv(65536):
                    reply = self.replies.pop(0)
                    connection.sendall(reply)
                    if not reply.endswith(b"hi"):
                        break
            self.left.set()

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def asked(connections: Connections) -> bytes:
    with connections.post(REQUEST) as (reply, _):
        return reply.read()


def test_a_connection_is_used_again(server: Server) -> None:
    connections = Connections(server.url)
    server.replies = [WHOLE] * 3
    assert [asked(connections) for _ in range(3)] == [b"hi"] * 3
    assert server.came == 1
    connections.close()


def test_a_connection_is_used_again_beyond_a_thousand_open_files(server: Server) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most < 1200:
        pytest.skip(f"only {most} files may be open here")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1200, most))
    files = [socket.socket() for _ in range(1100)]
    try:
        test_a_connection_is_used_again(server)
    finally:
        for file in files:
            file.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_one_that_the_server_closed_is_not(server: Server) -> None:
    connections = Connections(server.url)
    server.replies = [WHOLE[:-2] + b"ho", WHOLE]
    assert asked(connections) == b"ho"
    assert server.left.wait(10)
    assert asked(connections) == b"hi"
    assert server.came == 2
    connections.close()


def test_an_exchange_that_ended_early_takes_its_connection_along(server: Server) -> None:
    connections = Connections(server.url)
    server.replies = [WHOLE.replace(b"length: 2", b"length: 9"), WHOLE]
    with connections.post(REQUEST) as (reply, _):
        assert reply.read(2) == b"hi"
    assert asked(connections) == b"hi"
    assert server.came == 2
    connections.close()


def certificate(folder: Path) -> tuple[Path, Path]:
    """For 127.0.0.1, signed by itself; and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a server")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), False
        )
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(signed.public_bytes(Encoding.PEM))
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "key.pem").write_bytes(private)
    return folder / "cert.pem", folder / "key.pem"


def test_tls_is_checked_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cert, key = certificate(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(cert, key)
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    _trust.cache_clear()
    server = Server(tls)
    connections = Connections(server.url)
    server.replies = [WHOLE, WHOLE]
    assert [asked(connections), asked(connections), server.came] == [b"hi", b"hi", 1]
    connections.close()
    server.close()
    _trust.cache_clear()


def test_a_certificate_that_nobody_signed_is_refused(tmp_path: Path) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*certificate(tmp_path))
    server = Server(tls)
    with pytest.raises(ssl.SSLCertVerificationError):
        asked(Connections(server.url))
    server.close()


def test_a_server_that_says_nothing_is_an_error(server: Server) -> None:
    connections = Connections(server.url)
    server.replies = [b""]
    with pytest.raises(HTTPConnectionClosed), connections.post(REQUEST):
        pass
    connections.close()


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels do not note it")
def test_bytes_have_the_time_at_which_they_came_not_at_which_they_were_read() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connection = Connection("127.0.0.1", listener.getsockname()[1], tls=False)
        theirs, _ = listener.accept()
    with theirs:
        for _ in range(20):  # the kernel begins a moment after it is asked to
            before = time.perf_counter()
            theirs.sendall(b"a token")
            after = time.perf_counter()
            time.sleep(0.25)  # what a busy generator does meanwhile
            assert connection.recv(100) == b"a token"
            if connection.at < after + 0.1:
                break
        assert before - 0.1 < connection.at < after + 0.1
    connection.close()
