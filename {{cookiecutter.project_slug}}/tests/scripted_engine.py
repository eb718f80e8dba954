"""An engine that does as it is told: a process in place of vLLM, SGLang or `transformers serve`.

It takes the flags of the engine it stands in for (and refuses others, as that does), wants its key,
speaks its dialect, and misbehaves on request:

* in a request: the prompt, or the last user message, begins with `script:` and a JSON object with
  the fields of `Script`;
* at start: the fields of `Behaviour`, from the JSON file `behaviour.json` beside the engine's home,
  or from the file that the environment variable SCRIPTED_BEHAVIOUR names.

`GET /stats` tells what it saw. It needs httptools, and takes uvloop when that is there. It is cheap
per chunk, so that a benchmark measures the relay and not the engine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import fcntl
import functools
import json
import os
import signal
import sys
import time
import uuid
from abc import ABC, abstractmethod
from collections import deque
from pathlib import Path
from typing import IO, Any, ClassVar

import httptools

JSON = "application/json"
#: A message as engines write them: it must never reach a client.
RAW_ERROR = "CUDA error at /opt/engine/model_runner.py:123"
HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


# What tests and benchmarks call.


def install(home: Path) -> Path:
    """Makes `home` an engine environment whose programs run this file. Returns `home`."""
    (home / "bin").mkdir(parents=True)
    for program, dialect in (("transformers",) * 2, ("vllm",) * 2, ("python", "sglang")):
        script = home / "bin" / program
        script.write_text(
            "#!/bin/sh\n"
            f"SCRIPTED_BEHAVIOUR=${{SCRIPTED_BEHAVIOUR:-{home.parent / 'behaviour.json'}}}\n"
            "export SCRIPTED_BEHAVIOUR\n"
            f'exec "{sys.executable}" "{Path(__file__).resolve()}" --dialect {dialect} "$@"\n'
        )
        script.chmod(0o755)
    return home


def behave(home: Path, **fields: Any) -> None:
    """Sets the `Behaviour` of every later start from `home`."""
    Behaviour(**fields)
    (home.parent / "behaviour.json").write_text(json.dumps(fields), "utf-8")


def script(**fields: Any) -> str:
    """A prompt that carries a `Script`."""
    Script(**fields)
    return "script:" + json.dumps(fields, ensure_ascii=False)


@dataclasses.dataclass
class Script:
    """How one request is answered.

    `tokens` words `w0 w1 ...` are generated, each with `pad` more characters, or exactly `text`, in
    pieces of `piece` characters (0: words); the first after `first_delay_ms`, the others `delay_ms`
    apart. In a chat, the first `thoughts` pieces are reasoning. What it took is told by `/stats`
    under `name`. `fault` strikes after `after` pieces. `cut` slices the stream into writes of so
    many bytes, wherever characters and events end; `per_write` puts so many events into one write
    (0: all of them).

    Faults: crash_before, silent, not_http and status_NNN come instead of the answer;
    crash_mid_stream, stall, garbage (and a stall, too), error_event, reset (the connection breaks)
    and no_end (a clean end of the body, without finish reason) within it; no_done in place of
    `[DONE]`. A stall generates nothing more and lasts until the client leaves.
    """

    name: str = ""
    tokens: int = 8
    thoughts: int = 0
    pad: int = 0
    text: str | None = None
    piece: int = 0
    delay_ms: float = 0
    first_delay_ms: float = 0
    fault: str | None = None
    after: int = 3
    cut: int = 0
    per_write: int = 1

    @property
    def pieces(self) -> list[str]:
        if self.text is None:
            pad = "x" * self.pad
            return [f" w{i}{pad}" if i else f"w0{pad}" for i in range(self.tokens)]
        if self.piece:
            return [self.text[i : i + self.piece] for i in range(0, len(self.text), self.piece)]
        words = self.text.split(" ")
        return [f" {word}" if i else word for i, word in enumerate(words) if word or i]


@dataclasses.dataclass
class Behaviour:
    """How the process starts and lives.

    With `one_device`, only one engine of those that share the behaviour has a device at a time: one
    that finds it taken ends at its start, or stays asleep. One that `sleeps_deeply` never wakes.
    `crash_at_start` is said on stderr, by the first `crash_first_n` starts (0: by all).
    `health_503_after` names a file whose existence makes /health answer 503. `default` is the
    `Script` of prompts that carry none.
    """

    start_delay: float = 0
    hang_at_start: bool = False
    crash_at_start: str | None = None
    crash_first_n: int = 0
    ignore_sigterm: bool = False
    health_503_after: str | None = None
    secret_echo: bool = False
    spawn_child: bool = False
    one_device: bool = False
    sleeps_deeply: bool = False
    default: dict[str, Any] = dataclasses.field(default_factory=dict)


# The dialects.


@functools.lru_cache(4096)
def _quoted(text: str) -> bytes:
    return json.dumps(text, ensure_ascii=False).encode()


def _event(document: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(document, separators=(",", ":")).encode() + b"\n\n"


_MARK = "@@"


def _template(document: dict[str, Any]) -> tuple[bytes, bytes]:
    """The bytes of an event before and after the text that stands where the mark is."""
    before, after = _event(document).split(_quoted(_MARK))
    return before, after


class Dialect(ABC):
    """Writes the events of one request as one engine does."""

    name: ClassVar[str]
    #: Whether the head comes only with the first token.
    late_head: ClassVar[bool] = False
    usage_json: ClassVar[bytes] = b'{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d}'
    #: Where thoughts stand in a chat's delta.
    reasoning: ClassVar[str] = "reasoning"

    def __init__(self, body: dict[str, Any], *, chat: bool) -> None:
        self.body = body
        self.chat = chat
        self.id = ("chatcmpl-" if chat else "cmpl-") + uuid.uuid4().hex
        self.created = int(time.time())
        self.model = str(body.get("model"))
        self._templates: dict[int, tuple[bytes, bytes]] = {}
        self.prompt_tokens = 0
        #: What each choice has taken so far.
        self.generated: dict[int, int] = {}
        self.thoughts = 0

    @classmethod
    @abstractmethod
    def parser(cls) -> argparse.ArgumentParser: ...

    @classmethod
    def key(cls, options: argparse.Namespace) -> str:
        """The key its callers must show; empty when it asks for none."""
        return ""

    @classmethod
    def sleep_paths(cls, options: argparse.Namespace) -> tuple[str, str]:
        """Where it is put to sleep and woken; empty when it cannot."""
        return "", ""

    @staticmethod
    def unauthorized() -> bytes:
        return json.dumps({"error": "Unauthorized"}).encode()

    @abstractmethod
    def refuse(self, options: argparse.Namespace, prompt: int) -> tuple[int, bytes] | None:
        """Status and body when the engine would not take the request."""

    @abstractmethod
    def failure(self, status: int, message: str) -> bytes:
        """The body of a reply that is no answer."""

    @property
    def limit(self) -> int:
        return int(self.body.get("max_tokens") or sys.maxsize)

    @property
    def stops(self) -> list[str]:
        stop = self.body.get("stop") or []
        return [stop] if isinstance(stop, str) else stop

    def cut_at(self, text: str) -> int | None:
        """Where a stop text ends the answer."""
        found = [text.find(stop) for stop in self.stops if stop in text]
        return min(found) if found else None

    @property
    def choices(self) -> int:
        return int(self.body.get("n") or 1)

    def envelope(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    @functools.cached_property
    def _stream_options(self) -> dict[str, Any]:
        return self.body.get("stream_options") or {}

    @property
    def counts_on(self) -> bool:
        """Whether every event tells what its choice has taken so far."""
        return bool(self._stream_options.get("continuous_usage_stats"))

    @property
    def details(self) -> dict[str, Any]:
        """What only the count of the whole answer tells."""
        return {}

    @property
    def completion_tokens(self) -> int:
        return sum(self.generated.values())

    def counted(self, completion: int) -> bytes:
        prompt = self.prompt_tokens
        return self.usage_json % (prompt, prompt + completion, completion)

    def _event(self, index: int, document: dict[str, Any]) -> bytes:
        if self.counts_on:
            usage = json.loads(self.counted(self.generated.get(index, 0)))
            document = {**document, "usage": usage}
        return _event(document)

    def opening(self, index: int) -> bytes:
        if not self.chat:
            return b""
        return self._event(index, self.envelope([self.choice(index, role="assistant", text="")]))

    def content(self, index: int, text: str) -> bytes:
        self.generated[index] = self.generated.get(index, 0) + 1
        return self.said(index, text)

    def said(self, index: int, text: str) -> bytes:
        """Its event; the token is counted already."""
        if index not in self._templates:
            document = self.envelope([self.choice(index, text=_MARK)])
            if self.counts_on:  # at the end, where its numbers can be filled in
                document.pop("usage", None)
            self._templates[index] = _template(document)
        before, after = self._templates[index]
        if self.counts_on:
            after = b'%b,"usage":%b}\n\n' % (after[:-3], self.counted(self.generated[index]))
        return b"%b%b%b" % (before, _quoted(text), after)

    def thought(self, index: int, text: str) -> bytes:
        self.generated[index] = self.generated.get(index, 0) + 1
        self.thoughts += 1
        choice = {"index": index, "delta": {self.reasoning: text}, "finish_reason": None}
        return self._event(index, self.envelope([choice]))

    def ending(self, index: int, text: str, reason: str) -> bytes:
        """The last of one choice; `text` is its last piece, counted already."""
        return self._event(index, self.envelope([self.choice(index, text=text, reason=reason)]))

    def usage(self) -> bytes:
        if not self._stream_options.get("include_usage"):
            return b""
        usage = json.loads(self.counted(self.completion_tokens))
        return _event({**self.envelope([]), "usage": {**usage, **self.details}})

    @abstractmethod
    def choice(
        self, index: int, *, role: str | None = None, text: str, reason: str | None = None
    ) -> dict[str, Any]: ...

    @property
    def done(self) -> bytes:
        return b"data: [DONE]\n\n"

    def error(self) -> bytes:
        """How the engine reports, within a stream, that it failed."""
        return b"data: " + self.failure(500, RAW_ERROR) + b"\n\n" + self.done


class VllmDialect(Dialect):
    """Many nulls; the finish reason comes with the last text; a fingerprint of its own."""

    name = "vllm"

    @classmethod
    def parser(cls) -> argparse.ArgumentParser:
        parser = _parser("vllm")
        parser.add_argument("command", choices=["serve"])
        parser.add_argument("model")
        parser.add_argument("--served-model-name")
        parser.add_argument("--max-model-len", type=int, default=2048)
        parser.add_argument("--tensor-parallel-size", type=int)
        parser.add_argument("--gpu-memory-utilization", type=float)
        parser.add_argument("--enforce-eager", action="store_true")
        parser.add_argument("--enable-prompt-tokens-details", action="store_true")
        parser.add_argument("--enable-sleep-mode", action="store_true")
        parser.add_argument("--runner", choices=["pooling"])
        parser.add_argument("--convert", choices=["embed"])
        return parser

    @classmethod
    def sleep_paths(cls, options: argparse.Namespace) -> tuple[str, str]:
        if options.enable_sleep_mode and os.environ.get("VLLM_SERVER_DEV_MODE") == "1":
            return "/sleep?level=1", "/wake_up"
        return "", ""

    @classmethod
    def key(cls, options: argparse.Namespace) -> str:
        return os.environ.get("VLLM_API_KEY", "")

    def refuse(self, options: argparse.Namespace, prompt: int) -> tuple[int, bytes] | None:
        if self.model != options.served_model_name:
            return 404, self.failure(404, f"The model `{self.model}` does not exist.")
        if prompt + int(self.body.get("max_tokens") or 0) > options.max_model_len:
            return 400, self.failure(
                400,
                f"This model's maximum context length is {options.max_model_len} tokens. However, "
                f"your prompt contains {prompt} input tokens. Please reduce its length.",
            )
        return None

    def failure(self, status: int, message: str) -> bytes:
        kind = "BadRequestError" if status < 500 else "InternalServerError"
        error = {"message": message, "type": kind, "param": None, "code": status}
        return json.dumps({"error": error}).encode()

    @property
    def details(self) -> dict[str, Any]:
        return {"completion_tokens_details": {"reasoning_tokens": self.thoughts}}

    def envelope(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            **super().envelope(choices),
            "system_fingerprint": None,
            "prompt_token_ids": None,
            "prompt_text": None,
            "metrics": None,
        }

    def choice(
        self, index: int, *, role: str | None = None, text: str, reason: str | None = None
    ) -> dict[str, Any]:
        delta: dict[str, Any] = {"content": text, "reasoning": None}
        if role:
            delta["role"] = role
        return {
            "index": index,
            **({"delta": delta} if self.chat else {"text": text, "prompt_token_ids": None}),
            "logprobs": None,
            "finish_reason": reason,
            "stop_reason": None,
            "token_ids": None,
        }

    def ending(self, index: int, text: str, reason: str) -> bytes:
        last = self.envelope([self.choice(index, text=text, reason=reason)])
        return self._event(index, {**last, "system_fingerprint": "vllm-0.32.0-tp1-deadbeef"})


class SglangDialect(Dialect):
    """`matched_stop`, `usage: null`, `metadata`; the head comes with the first token."""

    name = "sglang"
    late_head = True
    usage_json = Dialect.usage_json[:-1] + b',"prompt_tokens_details":null,"reasoning_tokens":0}'
    reasoning = "reasoning_content"

    @classmethod
    def parser(cls) -> argparse.ArgumentParser:
        parser = _parser("sglang.launch_server")
        parser.add_argument("-m", dest="module", choices=["sglang.launch_server"], required=True)
        parser.add_argument("--model-path", dest="model", required=True)
        parser.add_argument("--served-model-name")
        parser.add_argument("--context-length", type=int, default=2048)
        parser.add_argument("--config", type=Path)
        parser.add_argument("--tp-size", type=int)
        parser.add_argument("--mem-fraction-static", type=float)
        parser.add_argument("--device")
        parser.add_argument("--attention-backend")
        parser.add_argument("--disable-cuda-graph", action="store_true")
        parser.add_argument("--sleep-on-idle", action="store_true")
        parser.add_argument("--enable-metrics", action="store_true")
        parser.add_argument("--enable-cache-report", action="store_true")
        parser.add_argument("--enable-memory-saver", action="store_true")
        parser.add_argument("--enable-weights-cpu-backup", action="store_true")
        parser.add_argument("--is-embedding", action="store_true")
        return parser

    @classmethod
    def sleep_paths(cls, options: argparse.Namespace) -> tuple[str, str]:
        if options.enable_memory_saver and options.enable_weights_cpu_backup:
            return "/release_memory_occupation", "/resume_memory_occupation"
        return "", ""

    @classmethod
    def key(cls, options: argparse.Namespace) -> str:
        for line in options.config.read_text().splitlines() if options.config else []:
            name, _, value = line.partition(":")
            if name == "api-key":
                return str(value.strip().strip("'\""))
        return ""

    def refuse(self, options: argparse.Namespace, prompt: int) -> tuple[int, bytes] | None:
        if prompt >= options.context_length:
            return 400, self.failure(
                400,
                f"The input ({prompt} tokens) is longer than the model's context length "
                f"({options.context_length} tokens).",
            )
        asked = int(self.body.get("max_tokens") or 0)
        if prompt + asked > options.context_length:
            return 400, self.failure(
                400,
                "Requested token count exceeds the model's maximum context length of "
                f"{options.context_length} tokens.",
            )
        return None

    def failure(self, status: int, message: str) -> bytes:
        kind = "BadRequestError" if status < 500 else "InternalServerError"
        error = {"object": "error", "message": message, "type": kind, "param": None, "code": status}
        return json.dumps(error).encode()

    def error(self) -> bytes:
        return b'data: {"error": ' + self.failure(500, RAW_ERROR) + b"}\n\n" + self.done

    def choice(
        self, index: int, *, role: str | None = None, text: str, reason: str | None = None
    ) -> dict[str, Any]:
        delta: dict[str, Any] = {"reasoning_content": None}
        if role:
            delta["role"] = role
        if text or role:
            delta["content"] = text
        return {
            "index": index,
            **({"delta": delta} if self.chat else {"text": text}),
            "logprobs": None,
            "finish_reason": reason,
            "matched_stop": 1 if reason == "stop" else None,
        }

    def envelope(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            **super().envelope(choices),
            "usage": None,
            "metadata": {"weight_version": "default"},
        }

    def ending(self, index: int, text: str, reason: str) -> bytes:
        if not self.chat:
            return super().ending(index, text, reason)
        rest = self.said(index, text) if text else b""
        return rest + super().ending(index, "", reason)


class TransformersDialect(Dialect):
    """Unknown fields are refused; no `[DONE]`, no key; usage comes with the finish reason, asked or
    not; a stop text stays in the answer."""

    name = "transformers"
    FIELDS: ClassVar[set[str]] = {
        *("model", "messages", "prompt", "stream", "stream_options", "generation_config", "seed"),
        *("max_tokens", "max_completion_tokens", "temperature", "top_p", "stop", "n", "user"),
        *("frequency_penalty", "presence_penalty", "logit_bias", "logprobs", "tools", "suffix"),
    }

    @classmethod
    def parser(cls) -> argparse.ArgumentParser:
        parser = _parser("transformers")
        parser.add_argument("command", choices=["serve"])
        parser.add_argument("model")
        parser.add_argument("--device", default="auto")
        parser.add_argument("--dtype", default="auto")
        parser.add_argument("--log-level", default="warning")
        parser.add_argument("--continuous-batching", action="store_true")
        parser.add_argument("--cb-max-memory-percent", type=float)
        return parser

    def refuse(self, options: argparse.Namespace, prompt: int) -> tuple[int, bytes] | None:
        unexpected = set(self.body) - self.FIELDS
        if unexpected:
            return 422, self.failure(422, f"Unexpected fields in the request: {unexpected}")
        if not isinstance(self._config, dict):
            return 500, b"Internal Server Error"
        return None

    def failure(self, status: int, message: str) -> bytes:
        return json.dumps({"detail": message}).encode()

    @functools.cached_property
    def _config(self) -> Any:
        return json.loads(self.body.get("generation_config", "{}"))

    @property
    def limit(self) -> int:
        return int(self.body.get("max_tokens") or self._config.get("max_new_tokens") or 1024)

    def cut_at(self, text: str) -> int | None:
        stops = self._config.get("stop_strings") or []
        found = [text.find(stop) + len(stop) for stop in stops if stop in text]
        return min(found) if found else None

    def envelope(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        common = super().envelope(choices)
        return {**common, "system_fingerprint": ""} if self.chat else common

    def choice(
        self, index: int, *, role: str | None = None, text: str, reason: str | None = None
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index}
        if not self.chat:
            choice["text"] = text
        elif role:
            choice["delta"] = {"role": role}
        else:
            choice["delta"] = {"content": text} if text else {}
        if reason:
            choice["finish_reason"] = reason
        return choice

    counts_on = False

    def ending(self, index: int, text: str, reason: str) -> bytes:
        rest = self.said(index, text) if text else b""
        last = self.envelope([self.choice(index, text="", reason=reason)])
        return rest + _event({**last, "usage": json.loads(self.counted(self.completion_tokens))})

    def usage(self) -> bytes:
        return b""

    @property
    def done(self) -> bytes:
        return b""

    def error(self) -> bytes:
        return b"data: " + json.dumps({"error": RAW_ERROR}).encode() + b"\n\n"


DIALECTS: dict[str, type[Dialect]] = {
    dialect.name: dialect for dialect in (TransformersDialect, VllmDialect, SglangDialect)
}


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(program, allow_abbrev=False)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    return parser


# The server.


LISTS = ("bodies", "traces", "spans", "waits")


@dataclasses.dataclass
class Stats:
    """What `GET /stats` tells. `aborted` counts the clients that left before their answer was
    complete, `paused` how often a client read too slowly, `written` the bytes sent to all.
    `counted` has the tokens of each request whose script has a name: its prompt's, all that were
    generated for it, and the thoughts among them. `traces` are the `traceparent` headers that
    came, `spans` when each whole answer began and was about to end, by the clock that all
    processes of a machine share, and `waits` the seconds from the first byte of its request to that
    beginning."""

    pid: int = dataclasses.field(default_factory=os.getpid)
    child: int | None = None
    starts: int = 1
    requests: int = 0
    in_flight: int = 0
    max_in_flight: int = 0
    aborted: int = 0
    paused: int = 0
    written: int = 0
    refused_keys: int = 0
    asleep: bool = False
    slept: int = 0
    counted: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    bodies: deque[Any] = dataclasses.field(default_factory=lambda: deque(maxlen=200))
    traces: deque[str] = dataclasses.field(default_factory=lambda: deque(maxlen=200))
    spans: deque[tuple[float, float]] = dataclasses.field(
        default_factory=lambda: deque(maxlen=1000)
    )
    waits: deque[float] = dataclasses.field(default_factory=lambda: deque(maxlen=1000))

    def encode(self) -> bytes:
        lists = {name: list(getattr(self, name)) for name in LISTS}
        return json.dumps({**vars(self), **lists}).encode()


class Server:
    def __init__(
        self, dialect: type[Dialect], options: argparse.Namespace, behaviour: Behaviour
    ) -> None:
        self.dialect = dialect
        self.options = options
        self.behaviour = behaviour
        self.key = dialect.key(options)
        self.stats = Stats()
        self.stopping = asyncio.Event()
        self.device: IO[str] | None = None

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        if self.behaviour.ignore_sigterm:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        else:
            loop.add_signal_handler(signal.SIGTERM, self.stopping.set)
        try:
            await loop.create_server(
                lambda: Connection(self), self.options.host, self.options.port, backlog=1024
            )
        except OSError as error:
            sys.exit(f"{error}")
        print(f"{self.dialect.name} listens on {self.options.port}", flush=True)
        await self.stopping.wait()  # running streams are cut, as by the rudest engine

    def take_device(self, told: str) -> bool:
        """The lock is free again when this process ends, however it does."""
        if self.behaviour.one_device:
            device = Path(told).with_suffix(".device").open("w")
            try:
                fcntl.flock(device, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            self.device = device
        return True

    def sleep(self) -> int:
        """The status of the answer; as SGLang, it breaks when it is told to sleep at work."""
        if self.stats.in_flight or self.stats.asleep:
            self.stopping.set()
            return 500
        self.stats.asleep = True
        self.stats.slept += 1
        if self.device is not None:
            self.device.close()
        return 200

    def wake(self) -> int:
        if self.behaviour.sleeps_deeply or not self.take_device(os.environ["SCRIPTED_BEHAVIOUR"]):
            return 500
        self.stats.asleep = False
        return 200

    @property
    def paths(self) -> tuple[str, ...]:
        """Where it answers: it either embeds or generates."""
        options = vars(self.options)
        if options.get("runner") or options.get("is_embedding"):
            return ("/v1/embeddings",)
        return "/v1/chat/completions", "/v1/completions"

    @property
    def healthy(self) -> bool:
        sick = self.behaviour.health_503_after
        return not self.behaviour.hang_at_start and not (sick and Path(sick).exists())


class Connection(asyncio.Protocol):
    """One client's socket; the methods named `on_...` are httptools' callbacks."""

    transport: asyncio.Transport

    def __init__(self, server: Server) -> None:
        self.server = server
        self.parser = httptools.HttpRequestParser(self)
        self.url = b""
        self.authorization = ""
        self.body = bytearray()
        self.task: asyncio.Task[None] | None = None
        self.can_write = asyncio.Event()
        self.can_write.set()
        self.came = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.task is not None and not self.task.done():
            self.server.stats.aborted += 1
            self.task.cancel()
        self.can_write.set()

    def pause_writing(self) -> None:
        self.server.stats.paused += 1
        self.can_write.clear()

    def resume_writing(self) -> None:
        self.can_write.set()

    def on_message_begin(self) -> None:
        self.came = time.monotonic()

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"authorization":
            self.authorization = value.decode()
        elif name.lower() == b"traceparent":
            self.server.stats.traces.append(value.decode())

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        path, body, authorization = self.url.decode(), bytes(self.body), self.authorization
        self.url, self.authorization = b"", ""
        self.body.clear()
        self.task = asyncio.ensure_future(self.answer(path, body, authorization))

    async def answer(self, path: str, body: bytes, authorization: str) -> None:
        server = self.server
        if path == "/stats":
            self.reply(200, server.stats.encode())
        elif path == "/health":
            self.reply(200 if server.healthy else 503, b"{}")
        elif server.key and authorization != f"Bearer {server.key}":
            server.stats.refused_keys += 1
            self.reply(401, server.dialect.unauthorized())
        elif path in server.dialect.sleep_paths(server.options):
            down, _ = server.dialect.sleep_paths(server.options)
            self.reply(server.sleep() if path == down else server.wake(), b"{}")
        elif server.stats.asleep:
            self.reply(500, b"{}")
        elif path in server.paths:
            stats = server.stats
            stats.requests += 1
            stats.in_flight += 1
            stats.max_in_flight = max(stats.max_in_flight, stats.in_flight)
            try:
                if path == "/v1/embeddings":
                    await self.embed(json.loads(body))
                else:
                    await self.generate(json.loads(body), chat=path.startswith("/v1/chat"))
            except asyncio.CancelledError:
                pass
            except Exception as error:
                print(f"internal error: {error!r}", file=sys.stderr, flush=True)
                self.transport.abort()
            finally:
                stats.in_flight -= 1
        else:
            self.reply(404, b'{"detail": "Not Found"}')

    def reply(self, status: int, body: bytes) -> None:
        head = f"HTTP/1.1 {status} X\r\ncontent-type: {JSON}\r\ncontent-length: {len(body)}\r\n\r\n"
        self.transport.write(head.encode() + body)

    async def generate(self, body: dict[str, Any], *, chat: bool) -> None:
        server = self.server
        server.stats.bodies.append(body)
        dialect = server.dialect(body, chat=chat)
        texts = [message["content"] for message in body["messages"]] if chat else [body["prompt"]]
        prompt_tokens = sum(len(text.split()) for text in texts)
        refusal = dialect.refuse(server.options, prompt_tokens)
        if refusal is not None:
            self.reply(*refusal)
            return
        script = self.script_of(texts[-1])
        if script.fault is not None and await self.strike_early(script.fault, dialect):
            return
        if not dialect.late_head:
            self.transport.write(HEAD)
        if script.first_delay_ms:
            await asyncio.sleep(script.first_delay_ms / 1000)
        if dialect.late_head:
            self.transport.write(HEAD)
        dialect.prompt_tokens = prompt_tokens
        server.stats.waits.append(time.monotonic() - self.came)
        try:
            await self.stream(script, dialect)
        finally:
            if script.name:
                counted = [prompt_tokens, dialect.completion_tokens, dialect.thoughts]
                server.stats.counted[script.name] = counted

    async def embed(self, body: dict[str, Any]) -> None:
        """The vector of a text is its number of words and its place among the texts."""
        stats = self.server.stats
        stats.bodies.append(body)
        texts = body["input"]
        sizes = [len(text.split() if isinstance(text, str) else text) for text in texts]
        script = self.script_of(texts[0]) if isinstance(texts[0], str) else Script()
        dialect = self.server.dialect(body, chat=False)
        if script.fault is not None and await self.strike_early(script.fault, dialect):
            return
        prompt = dialect.prompt_tokens = sum(sizes)
        if script.name:
            stats.counted[script.name] = [prompt, 0, 0]
        vectors = [
            {"object": "embedding", "index": at, "embedding": [float(size), float(at)]}
            for at, size in enumerate(sizes)
        ]
        usage = json.loads(dialect.counted(0))
        answer = {"object": "list", "data": vectors, "model": dialect.model, "usage": usage}
        self.reply(200, json.dumps(answer).encode())

    def script_of(self, text: str) -> Script:
        told: dict[str, Any] = {}
        if text.startswith("script:"):
            told, _ = json.JSONDecoder().raw_decode(text.removeprefix("script:"))
        return Script(**{**self.server.behaviour.default, **told})

    async def strike_early(self, fault: str, dialect: Dialect) -> bool:
        """Whether the fault came instead of an answer."""
        if fault == "crash_before":
            os._exit(13)
        elif fault == "silent":
            await asyncio.Event().wait()
        elif fault == "not_http":
            self.transport.write(b"\x16\x03\x01 this is not HTTP\r\n\r\n")
        elif fault.startswith("status_"):
            status = int(fault.removeprefix("status_"))
            self.reply(status, dialect.failure(status, RAW_ERROR))
        else:
            return False
        return True

    async def stream(self, script: Script, dialect: Dialect) -> None:
        began = time.monotonic()
        pieces, reason = bounded(script.pieces, dialect)
        indexes = range(dialect.choices)
        out = Output(self, script)
        delay = script.delay_ms / 1000
        opening = b"".join(dialect.opening(index) for index in indexes)
        if opening:
            await out.write(opening)
        for at, piece in enumerate(pieces[:-1]):
            if at == script.after and script.fault and await self.strike(script, dialect, out):
                return
            say = dialect.thought if at < script.thoughts and dialect.chat else dialect.content
            for index in indexes:
                await out.write(say(index, piece))
            if delay:
                await asyncio.sleep(delay)
        if script.after >= len(pieces) - 1 and script.fault and script.fault != "no_done":
            await self.strike(script, dialect, out)
            return
        self.server.stats.spans.append((began, time.monotonic()))
        last = pieces[-1] if pieces else ""
        for index in indexes:
            dialect.generated[index] = len(pieces)
            await out.write(dialect.ending(index, last, reason))
        done = b"" if script.fault == "no_done" else dialect.done
        await out.write(dialect.usage() + done)
        await out.end()

    async def strike(self, script: Script, dialect: Dialect, out: Output) -> bool:
        """Whether the fault ended the stream."""
        match script.fault:
            case "crash_mid_stream":
                await out.flush()
                os._exit(13)
            case "stall":
                await out.flush()
                await asyncio.Event().wait()
            case "reset":
                await out.flush()
                await asyncio.sleep(0.05)  # what was written goes out first
                self.transport.abort()
            case "garbage":
                await out.write(b'data: {"choices": [{"ind\n\n')
                await out.flush()
                await asyncio.Event().wait()
            case "error_event":
                await out.write(dialect.error())
                await out.end()
            case "no_end":
                await out.end()
            case _:
                return False
        return True


class Output:
    """The chunked body of one stream, cut as the script wants it. Waits for slow readers."""

    def __init__(self, connection: Connection, script: Script) -> None:
        self._connection = connection
        self._cut = script.cut
        self._per_write = script.per_write
        self._held: list[bytes] = []
        self._count = 0

    async def write(self, event: bytes) -> None:
        if not event:
            return
        if self._per_write == 1 and not self._cut:
            await self._send(b"%x\r\n%b\r\n" % (len(event), event))
            return
        self._held.append(event)
        if self._per_write and len(self._held) >= self._per_write:
            await self.flush()

    async def flush(self) -> None:
        data = b"".join(self._held)
        self._held.clear()
        if not data:
            return
        if not self._cut:
            await self._send(b"%x\r\n%b\r\n" % (len(data), data))
            return
        for at in range(0, len(data), self._cut):
            piece = data[at : at + self._cut]
            frame = b"%x\r\n%b\r\n" % (len(piece), piece)
            # The frame itself is cut too, and the pause keeps the halves in packets of their own.
            for half in (frame[: len(frame) // 2], frame[len(frame) // 2 :]):
                await self._send(half)
                await asyncio.sleep(0.0005)

    async def end(self) -> None:
        await self.flush()
        await self._send(b"0\r\n\r\n")

    async def _send(self, data: bytes) -> None:
        connection = self._connection
        connection.transport.write(data)
        connection.server.stats.written += len(data)
        self._count += 1
        if not connection.can_write.is_set():
            await connection.can_write.wait()
        elif self._count % 64 == 0:
            await asyncio.sleep(0)


def bounded(pieces: list[str], dialect: Dialect) -> tuple[list[str], str]:
    """The pieces within the request's limits, and why they end."""
    reason = "stop" if len(pieces) <= dialect.limit else "length"
    pieces = pieces[: dialect.limit]
    end = dialect.cut_at("".join(pieces))
    if end is None:
        return pieces, reason
    kept = []
    for piece in pieces:
        kept.append(piece[:end])
        end -= len(piece)
        if end <= 0:
            break
    return kept, "stop"


def load_behaviour(path: Path) -> Behaviour:
    return Behaviour(**json.loads(path.read_text("utf-8"))) if path.is_file() else Behaviour()


def count_start(path: Path) -> int:
    """How often an engine was started with this behaviour file, this start included."""
    starts = path.with_suffix(".starts")
    with starts.open("a") as file:
        file.write(f"{os.getpid()}\n")
    return len(starts.read_text().splitlines())


def main() -> None:
    if sys.argv[1:2] != ["--dialect"]:
        sys.exit("usage: scripted_engine.py --dialect NAME ARGUMENTS")
    dialect = DIALECTS[sys.argv[2]]
    options = dialect.parser().parse_args(sys.argv[3:])
    told = os.environ.get("SCRIPTED_BEHAVIOUR")
    behaviour = load_behaviour(Path(told)) if told else Behaviour()
    starts = count_start(Path(told)) if told else 1
    if not (Path(options.model) / "config.json").is_file():
        sys.exit(f"OSError: {options.model} is no model")
    if behaviour.crash_at_start is not None and starts <= (behaviour.crash_first_n or starts):
        sys.exit(behaviour.crash_at_start)
    if behaviour.start_delay:
        time.sleep(behaviour.start_delay)
    runner = asyncio.Runner(loop_factory=_loop_factory())
    with runner, contextlib.suppress(KeyboardInterrupt):
        runner.run(_serve(dialect, options, behaviour, starts))


async def _serve(
    dialect: type[Dialect], options: argparse.Namespace, behaviour: Behaviour, starts: int
) -> None:
    server = Server(dialect, options, behaviour)
    server.stats.starts = starts
    if not server.take_device(os.environ.get("SCRIPTED_BEHAVIOUR", "")):
        sys.exit("CUDA out of memory")
    if behaviour.secret_echo:
        print(f"my key is {server.key}, guard it well", flush=True)
    if behaviour.spawn_child:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "import time; time.sleep(600)"
        )
        server.stats.child = child.pid
    await server.run()


def _loop_factory() -> Any:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


if __name__ == "__main__":
    main()
