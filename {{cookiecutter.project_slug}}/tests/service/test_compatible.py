"""A service in front of a server that somebody else runs: used, watched, and never touched."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from live_service import Service, alive, chat_body, eventually, free_port, text_of
from scripted_engine import script

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("deadline")]

KEY = "sk-of-somebody-else-5f1c"
VARIABLE = "SOMEBODY_ELSES_KEY"
MODEL = "org/Model-7B"
EIGHT = "w0 w1 w2 w3 w4 w5 w6 w7"
#: The scripted engine with the one path more that such servers have, and that wants the key too.
SERVER = f"""\
import sys
sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
import scripted_engine
answer = scripted_engine.Connection.answer

async def with_models(self, path, body, authorization):
    if path == "/v1/models" and authorization == "Bearer {KEY}":
        path = "/health"
    await answer(self, path, body, authorization)

scripted_engine.Connection.answer = with_models
scripted_engine.main()
"""


class Server:
    """Somebody else's server: not a child of the service, and on the same port at every start."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._program = folder / "server.py"
        self._program.write_text(SERVER)
        self._model = model
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        line = ["--dialect", "vllm", "serve", str(self._model), "--served-model-name", MODEL]
        return subprocess.Popen(
            [sys.executable, str(self._program), *line, "--port", str(self.port)],
            env={**os.environ, "VLLM_API_KEY": KEY},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )

    def start_again(self) -> None:
        self.process = self._start()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(20)

    @property
    def stats(self) -> dict[str, Any]:
        stats: dict[str, Any] = httpx.get(f"{self.url}/stats", timeout=5).json()
        return stats


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, model_template: Path) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"), model_template)
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="module")
def make(server: Server, serve: Callable[..., Service]) -> Iterator[Callable[[], Service]]:
    """Starts services in front of the server."""

    def made() -> Service:
        settings = {"timeouts": {"health": 0.5, "start": 1}, "restarts": {"attempts": 1}}
        service = serve(engine="openai_compatible", settings=settings)
        document = yaml.safe_load(service.config.read_text("utf-8"))
        document["engine"] = {
            "name": "openai_compatible",
            "url": f"{server.url}/v1",
            "model": MODEL,
            "key_env": VARIABLE,
            "max_model_len": 256,
        }
        service.config.write_text(yaml.safe_dump(document), "utf-8")
        return service.start()

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(VARIABLE, KEY)
        yield made


@pytest.fixture(scope="module")
def running(make: Callable[[], Service]) -> Service:
    return make()


@pytest.fixture
def service(running: Service, server: Server) -> Service:
    if server.process.poll() is not None:
        server.start_again()
    return running.wait_ready()


def test_it_answers_under_its_own_name_for_the_model(service: Service, server: Server) -> None:
    reply = service.chat("Hello").json()
    assert reply["choices"][0]["message"]["content"] == EIGHT
    assert (reply["model"], reply["system_fingerprint"]) == ("chat", "chat:1")
    assert reply["usage"]["completion_tokens"] == 8
    assert server.stats["bodies"][-1]["model"] == MODEL
    assert [model.id for model in service.openai().models.list()] == ["chat"]


def test_it_streams_as_the_server_speaks(service: Service) -> None:
    prompt = script(tokens=40, delay_ms=50)
    with service.stream(prompt, stream_options={"include_usage": True}) as stream:
        stream.until_text("w2")  # long before the end
        *_, usage, done = stream.rest()
    assert (usage.json["usage"]["completion_tokens"], done.data) == (40, "[DONE]")


def test_completions_and_responses_are_answered_too(service: Service) -> None:
    client = service.openai()
    assert client.completions.create(model="chat", prompt="Hello").choices[0].text == EIGHT
    whole = client.responses.create(model="chat", input="Hello")
    assert (whole.output_text, whole.status) == (EIGHT, "completed")
    events = list(client.responses.create(model="chat", input="Hello", stream=True))
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == EIGHT
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == EIGHT


def test_what_its_section_declares_is_passed_on(service: Service, server: Server) -> None:
    fields = {"temperature": 0.5, "top_p": 0.9, "seed": 7, "stop": ["w3"]}
    reply = service.chat("Hello", **fields).json()
    assert reply["choices"][0]["message"]["content"] == "w0 w1 w2 "
    seen = server.stats["bodies"][-1]
    assert {name: seen[name] for name in fields} == fields


TOOL = {"name": "f", "parameters": {"type": "object"}}
SCHEMA = {"name": "x", "schema": {"type": "object"}}


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("chat/completions", {"n": 2}, "n"),
        ("chat/completions", {"presence_penalty": 1}, "presence_penalty"),
        ("chat/completions", {"tools": [{"type": "function", "function": TOOL}]}, "tools"),
        ("chat/completions", {"logprobs": True}, "logprobs"),
        ("chat/completions", {"ignore_eos": True}, "ignore_eos"),
        ("responses", {"tools": [{"type": "function", **TOOL}]}, "tools"),
        ("responses", {"text": {"format": {"type": "json_schema", **SCHEMA}}}, "text.format"),
        ("responses", {"reasoning": {"effort": "low"}}, "reasoning.effort"),
        ("responses", {"include": ["message.output_text.logprobs"]}, "top_logprobs"),
        ("embeddings", {}, None),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_what_its_section_does_not_declare_never_reaches_the_server(
    service: Service,
    server: Server,
    path: str,
    fields: dict[str, Any],
    param: str | None,
    stream: bool,
) -> None:
    before = server.stats["requests"]
    body = {"model": "chat", "input": "Hello", **fields}
    if path == "chat/completions":
        body = chat_body("Hello", **fields)
    if path != "embeddings":
        body["stream"] = stream
    reply = service.http.post(f"/v1/{path}", json=body)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (400, "unsupported_by_engine")
    assert error["param"] == param
    assert server.stats["requests"] == before


def test_the_servers_words_for_a_failure_stay_with_us(service: Service) -> None:
    reply = service.chat(script(fault="status_500"))
    assert (reply.status_code, reply.json()["error"]["code"]) == (502, "engine_error")
    assert "CUDA" not in reply.text


def test_the_server_sees_its_key_and_nobody_else_does(service: Service, server: Server) -> None:
    bare = httpx.post(f"{server.url}/v1/chat/completions", json=chat_body("Hello", model=MODEL))
    assert bare.status_code == 401
    refused = server.stats["refused_keys"]
    replies = [service.chat("Hello"), service.chat("Hello", n=2), service.http.get("/metrics")]
    replies.append(service.chat(script(fault="status_401")))
    assert [reply.status_code for reply in replies] == [200, 400, 200, 502]
    assert server.stats["refused_keys"] == refused
    assert not any(KEY in reply.text or KEY in str(reply.headers) for reply in replies)
    assert service.process is not None
    family = [psutil.Process(service.process.pid)]
    family += family[0].children(recursive=True)
    assert not any(KEY in part for process in family for part in process.cmdline())
    written = [path for path in service.folder.rglob("*") if path.is_file()]
    assert service.log in written
    assert [path for path in written if KEY.encode() in path.read_bytes()] == []


def test_a_server_that_dies_breaks_its_stream_and_shows_on_readyz(
    service: Service, server: Server
) -> None:
    with service.stream(script(tokens=100, delay_ms=50)) as stream:
        stream.until_text("w2")
        server.kill()
        *_, last = stream.rest()
    assert (last.name, last.json["error"]["code"]) == ("error", "engine_error")
    eventually(lambda: service.status("/readyz") == 503, "/readyz shows it", 6)
    assert service.status("/livez") == 200
    reply = service.chat("Hello")
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "model_loading")
    assert int(reply.headers["retry-after"]) >= 1


def await_tries(service: Service, more: int) -> None:
    """Returns once the service has given the server up so many times more."""
    until = service.log_text.count("next start in") + more
    eventually(lambda: service.log_text.count("next start in") >= until, "more tries", 20)


def test_a_server_that_is_back_on_its_port_is_used_again_however_long_it_was_gone(
    service: Service, server: Server
) -> None:
    """`restarts.attempts` is 1 here, and counts only what we start ourselves."""
    for _ in range(2):
        server.kill()
        eventually(lambda: service.status("/readyz") == 503, "/readyz shows it", 6)
        await_tries(service, 3)
        server.start_again()
        eventually(lambda: service.ready, "ready again", 10)
        assert service.chat("Hello").status_code == 200
        with service.stream("Hello") as stream:
            assert text_of(stream.rest()) == EIGHT
    assert KEY not in service.log_text


def test_a_stop_leaves_no_process_and_the_server_as_it_was(
    make: Callable[[], Service], server: Server, service: Service
) -> None:
    assert service.ready  # one of several in front of the same server
    other = make().wait_ready()
    assert other.process is not None
    parent = psutil.Process(other.process.pid)
    family = [parent.pid, *(child.pid for child in parent.children(recursive=True))]
    assert len(family) > 1
    lines = [" ".join(child.cmdline()) for child in parent.children(recursive=True)]
    assert not any("scripted_engine" in line or "server.py" in line for line in lines)
    assert other.stop() == 0
    assert not any(alive(pid) for pid in family)
    assert server.process.poll() is None
    assert service.chat("Hello").status_code == 200
