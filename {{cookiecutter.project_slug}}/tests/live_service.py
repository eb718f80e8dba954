"""The real service as a process: `bentoml serve` on a free port, with its own store and engine.

Nothing here sleeps in the hope that something has happened by then: `eventually` polls, up to a
deadline.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import httpx
import openai
import psutil
import scripted_engine
import yaml

PROJECT = Path(__file__).parent.parent

#: Seconds, short enough for tests to wait for them.
TIMEOUTS = {
    "start": 20,
    "warmup": 10,
    "first_token": 3,
    "stall": 2,
    "keepalive": 0.25,
    "health": 1,
    "lazy": 10,
    "drain": 10,
    "stop": 1,
}
RESTARTS = {"attempts": 5, "backoff": 0.2, "backoff_max": 1, "healthy_after": 60}

Result = TypeVar("Result")


def eventually(ask: Callable[[], Result], what: str, seconds: float = 20) -> Result:
    """The first true answer of `ask`; `httpx` errors count as a no."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(httpx.TransportError):
            if answer := ask():
                return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(0.02)


#: Seconds after a revocation in which a request may begin that its key still opens. Services look
#: at the keys every half second: the other half is there for a look, or an answer, that is late on
#: a machine with other things to do, and so there is no tolerance beyond it.
IN_FORCE = 1.0


def let_in_until(ask: Callable[[], bool], seconds: float = 2 * IN_FORCE) -> float:
    """When the last request began that was let in, of all that `ask` makes in so many seconds, or
    the first one if none was; by `time.monotonic`."""
    last = began = first = time.monotonic()
    while began < first + seconds:
        if ask():
            last = began
        time.sleep(0.01)
        began = time.monotonic()
    return last


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def alive(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


@dataclass(frozen=True)
class Processes:
    """The process ids of one running service."""

    serve: int
    worker: int
    guard: int
    engine: int

    @property
    def below(self) -> tuple[int, ...]:
        """All that must be gone when `bentoml serve` is."""
        return self.worker, self.guard, self.engine


class Service:
    """One service in `folder`, with a copy of the model store `store`.

    `settings` is laid over a serving.yaml that is good for tests, section by section; `behaviour`
    is how the scripted engine starts; `hooks` replaces warmup_hooks.py.
    """

    def __init__(
        self,
        folder: Path,
        store: Path,
        *,
        engine: str = "vllm",
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        behaviour: Mapping[str, Any] | None = None,
        hooks: str | None = None,
        port: int | None = None,
    ) -> None:
        self.folder = folder
        self.engine = engine
        self.port = port or free_port()
        self.home = folder / "bentoml"
        self.log = folder / "serve.log"
        self.config = folder / "serving.yaml"
        shutil.copytree(store, self.home)
        self.engine_home = scripted_engine.install(folder / "engine")
        scripted_engine.behave(self.engine_home, **(behaviour or {}))
        self.write_settings(settings or {})
        self.project = PROJECT if hooks is None else self._with_hooks(hooks)
        self.process: subprocess.Popen[bytes] | None = None
        self.http = httpx.Client(base_url=self.url, timeout=20)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=20)

    def write_settings(self, sections: Mapping[str, Mapping[str, Any]]) -> None:
        document: dict[str, Any] = {
            "service": {"name": "test-service"},
            "engine": {"name": self.engine, "home": "engine", "max_model_len": 256},
            "models": {"chat": {}},
            "timeouts": TIMEOUTS,
            "restarts": RESTARTS,
            "limits": {"max_body_bytes": 65536},
        }
        for name, section in sections.items():
            document[name] = {**document.get(name, {}), **section}
        self.config.write_text(yaml.safe_dump(document), "utf-8")

    def _with_hooks(self, hooks: str) -> Path:
        project = self.folder / "project"
        shutil.copytree(PROJECT / "serving", project / "serving")
        shutil.copytree(PROJECT / "engines", project / "engines")
        for name in ("service.py", "pyproject.toml"):
            shutil.copy(PROJECT / name, project)
        (project / "warmup_hooks.py").write_text(hooks, "utf-8")
        return project

    # Life.

    def start(self) -> Service:
        """Starts `bentoml serve` as `make serve` does, in a process group of its own."""
        environment = {
            **os.environ,
            "BENTOML_HOME": str(self.home),
            "BENTOML_DO_NOT_TRACK": "True",
            "PYTHONFAULTHANDLER": "1",  # see `_last_words`
            "SERVING_CONFIG": str(self.config),
        }
        # The drain is the gateway's own; the last is for connections that are still open after it.
        options = {
            "--host": "127.0.0.1",
            "--port": str(self.port),
            "--timeout-graceful-shutdown": "5",
        }
        command = [sys.executable, "-m", "bentoml", "serve", *itertools.chain(*options.items())]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=self.project,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def wait_live(self, seconds: float = 30) -> Service:
        """Until it answers at all."""
        eventually(lambda: self._running() and self.status("/livez") == 200, "live", seconds)
        return self

    def wait_ready(self, seconds: float = 30) -> Service:
        try:
            eventually(lambda: self._running() and self.ready, "ready", seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log_text}") from None
        return self

    def _running(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"exit status {self.process.returncode}\n{self.log_text}")
        return True

    def signal(self, number: signal.Signals) -> None:
        """To `bentoml serve` alone, as an orchestrator sends it."""
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self, seconds: float = 20) -> int:
        """The exit status."""
        assert self.process is not None
        return self.process.wait(seconds)

    def stop(self) -> int:
        """Stops it however it is, leaving no process behind. Returns the exit status."""
        self.http.close()
        if self.process is None:
            return 0
        left = self._family()
        try:
            if self.process.poll() is None:
                self.process.terminate()
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not stop\n{self._last_words(left)}") from None
        finally:
            for process in [*left, *self._family()]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self.process.wait(20)

    def _last_words(self, processes: list[psutil.Process]) -> str:
        """The log, at its end the stack of every thread of `bentoml serve` and its worker."""
        for process in processes[:2]:
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGABRT)
                process.wait(5)
        return self.log_text

    def _family(self) -> list[psutil.Process]:
        assert self.process is not None
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = psutil.Process(self.process.pid)
            return [parent, *parent.children(recursive=True)]
        return []

    def __enter__(self) -> Service:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    # What it looks like from outside.

    def status(self, path: str) -> int:
        return self.http.get(path, timeout=5).status_code

    @property
    def ready(self) -> bool:
        return self.status("/readyz") == 200

    @property
    def log_text(self) -> str:
        return self.log.read_text("utf-8", "replace") if self.log.exists() else ""

    @property
    def engine_log(self) -> Path:
        return self.folder / "state" / "logs" / "chat-1.log"

    @property
    def processes(self) -> Processes:
        """Of a service whose engine runs."""
        assert self.process is not None
        children = psutil.Process(self.process.pid).children(recursive=True)
        lines = {child: " ".join(child.cmdline()) for child in children}
        engine = next(child for child, line in lines.items() if "scripted_engine.py" in line)
        guard = next(child for child, line in lines.items() if "guard.py" in line)
        worker = guard.parent()
        assert worker is not None
        return Processes(self.process.pid, worker.pid, guard.pid, engine.pid)

    def has_engine(self) -> bool:
        with contextlib.suppress(StopIteration, psutil.NoSuchProcess):
            return bool(self.processes)
        return False

    @property
    def engine_port(self) -> int:
        line = psutil.Process(self.processes.engine).cmdline()
        return int(line[line.index("--port") + 1])

    def stats(self) -> dict[str, Any]:
        """What the engine saw; see `scripted_engine.Stats`."""
        reply = httpx.get(f"http://127.0.0.1:{self.engine_port}/stats", timeout=5)
        stats: dict[str, Any] = reply.json()
        return stats

    # Requests.

    def chat(self, prompt: str, **fields: Any) -> httpx.Response:
        return self.http.post("/v1/chat/completions", json=chat_body(prompt, **fields))

    @contextlib.contextmanager
    def stream(self, prompt: str, **fields: Any) -> Iterator[EventStream]:
        """A chat stream on a connection of its own."""
        body = chat_body(prompt, **fields, stream=True)
        with (
            httpx.Client(base_url=self.url, timeout=20) as client,
            client.stream("POST", "/v1/chat/completions", json=body) as response,
        ):
            yield EventStream(response)


def chat_body(prompt: str, **fields: Any) -> dict[str, Any]:
    return {"model": "chat", "messages": [{"role": "user", "content": prompt}], **fields}


@dataclass(frozen=True)
class Event:
    """One server-sent event; a comment has the name `comment`."""

    name: str
    data: str

    @property
    def json(self) -> Any:
        return json.loads(self.data)

    @property
    def text(self) -> str:
        """The text it adds to a chat."""
        if self.name != "message" or self.data == "[DONE]":
            return ""
        return "".join(c["delta"].get("content") or "" for c in self.json["choices"])


class EventStream:
    """Reads the events of a streamed reply, one by one."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._events = self._parse()

    def __iter__(self) -> Iterator[Event]:
        return self._events

    def until_text(self, text: str) -> str:
        """Reads until the answer so far contains `text`; returns the answer so far."""
        so_far = ""
        for event in self._events:
            so_far += event.text
            if text in so_far:
                return so_far
        raise AssertionError(f"the stream ended without {text!r}: {so_far!r}")

    def rest(self) -> list[Event]:
        """All that is still to come, without comments."""
        return [event for event in self._events if event.name != "comment"]

    def _parse(self) -> Iterator[Event]:
        rest = b""  # bytes: str would be split at U+2028 too
        for data in self.response.iter_raw():
            *blocks, rest = (rest + data).split(b"\n\n")
            for block in blocks:
                yield self._event(block.decode())
        if rest:
            yield Event("unfinished", rest.decode("utf-8", "replace"))

    @staticmethod
    def _event(block: str) -> Event:
        if block.startswith(":"):
            return Event("comment", block[1:].strip())
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        return Event(fields.get("event", "message"), fields["data"])


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events)
