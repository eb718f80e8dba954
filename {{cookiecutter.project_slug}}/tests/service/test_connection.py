"""What the gateway needs of BentoML's worker: our protocol, and its connection in each scope."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from live_service import PROJECT, eventually, free_port
from raw_client import connected

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("deadline")]

SERVICE = """
import bentoml

from serving.gateway.connection import ClientConnection
from serving.gateway.patient import install
from serving.settings import Settings

install(
    Settings.model_validate(
        {
            "service": {"name": "llm"},
            "engine": {"name": "vllm", "max_model_len": 512},
            "models": {"chat": {}},
            "timeouts": {"head": 1},
        }
    ),
    lambda code: None,
)


async def app(scope, receive, send):
    if scope["type"] == "http":
        client = ClientConnection.of(scope)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        client.write(b"straight")
        await send({"type": "http.response.body", "body": b", and by the way"})


cors = {"enabled": True, "access_control_allow_origins": ["https://chat.example.com"]}


@bentoml.service(tracing={"excluded_urls": ".*"}, http={"cors": cors})
@bentoml.asgi_app(app, path="/")
class Little:
    pass
"""


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Of a service that consists of little else."""
    folder: Path = tmp_path_factory.mktemp("little")
    (folder / "service.py").write_text(SERVICE, "utf-8")
    port = free_port()
    command = [sys.executable, "-m", "bentoml", "serve", "--host", "127.0.0.1", "--port", str(port)]
    environment = {
        **os.environ,
        "BENTOML_HOME": str(folder / "bentoml"),
        "PYTHONPATH": str(PROJECT),
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            eventually(lambda: httpx.get(f"http://127.0.0.1:{port}/livez").is_success, "live")
            yield port
        finally:
            process.terminate()
            process.wait(20)


def test_bentomls_worker_speaks_our_protocol(port: int) -> None:
    with connected(port) as client:
        (reply,) = client.send(b"GET / HTTP/1.1\r\n").rest()
    assert (reply.status, reply.error["code"]) == (408, "request_timeout")


def test_bentomls_middlewares_hand_the_connection_on(port: int) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        for _ in range(3):
            assert client.get("/").text == "straight, and by the way"
