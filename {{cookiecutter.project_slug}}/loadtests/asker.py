"""Asks a server one thing, and writes down what its client felt."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

import gevent
import msgspec
from geventhttpclient.response import HTTPConnectionClosed, HTTPParseError, HTTPSocketResponse

from loadtests.connections import Connection, Connections
from loadtests.results import Operation, Sample
from serving.bearer import usable

PATHS: dict[Operation, str] = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "embeddings": "/v1/embeddings",
}
#: Told before anything was sent: too many for this key, too many for this server, too many at all.
REFUSED = frozenset({429, 503, 529})


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[Any] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None

    @property
    def has_content(self) -> bool:
        delta = self.delta
        if delta is None:
            return bool(self.text)
        return bool(delta.content or delta.reasoning or delta.reasoning_content or delta.tool_calls)


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Reply(msgspec.Struct):
    """An event of a stream, or a whole reply; what is not asked of it here is passed over."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


class Question(msgspec.Struct):
    """`text` is for completions and embeddings, `messages` for a chat. `max_tokens` of None leaves
    the length of the answer to the server."""

    operation: Operation
    messages: list[dict[str, str]] = []
    text: str = ""
    max_tokens: int | None = None
    user: str = ""


class Ticks(Protocol):
    """A clock: seconds on the run's line of time."""

    def now(self) -> float: ...


class _Truncated(Exception):
    """The reply ended before its end."""


class Target(msgspec.Struct, frozen=True):
    """A server. `fixed_length`: it takes `ignore_eos`, so that an answer is as long as asked. The
    bare `transformers serve` has a `dialect` of its own: lengths are in its `generation_config`,
    other engines' fields are refused, and no `[DONE]` ends its streams."""

    url: str
    model: str
    name: str = ""
    fixed_length: bool = False
    temperature: float | None = 0.0
    dialect: Literal["openai", "transformers"] = "openai"


class Asker:
    """Asks one server, on connections that are kept, as many as are needed.

    `key` is sent as OpenAI's clients send theirs. `patience`: seconds for a whole answer. Raises
    `BadKey`.
    """

    def __init__(self, target: Target, key: str, clock: Ticks, patience: float = 300.0) -> None:
        self.target = target
        self._clock = clock
        self._patience = patience
        address = urlsplit(target.url)
        prefix = address.path.rstrip("/").removesuffix("/v1")
        host = address.netloc.rpartition("@")[2]
        authorization = f"authorization: Bearer {usable(key)}\r\n" if key else ""
        self._heads = {
            operation: (
                f"POST {prefix}{path} HTTP/1.1\r\nhost: {host}\r\naccept: */*\r\n{authorization}"
                "content-type: application/json\r\ncontent-length: "
            ).encode("latin-1")
            for operation, path in PATHS.items()
        }
        self._connections = Connections(address)

    def close(self) -> None:
        self._connections.close()

    def ask(self, question: Question, *, stage: int, due: float) -> tuple[Sample, str]:
        """The sample, and the text of a chat's answer. Raises nothing that a server may cause."""
        body = msgspec.json.encode(self._body(question))
        heard = _Heard()
        sent = self._clock.now()
        began = time.perf_counter()
        sample = Sample(
            stage=stage,
            operation=question.operation,
            due=due,
            sent=sent,
            latency=0.0,
            outcome="failed",
            target=self.target.name,
        )
        try:
            with gevent.Timeout(self._patience):
                self._exchange(question.operation, body, heard, sample)
        except gevent.Timeout:
            sample.error = f"no whole answer within {self._patience:g} s"
        except _Truncated as error:
            sample.outcome, sample.error = "truncated", str(error)
        except (HTTPParseError, OSError, gevent.socket.error) as error:
            self._broke(sample, heard, error)
        except (msgspec.DecodeError, UnicodeDecodeError):
            sample.error = "the reply is not what the API promises"
        sample.latency = (heard.ended or time.perf_counter()) - began
        heard.into(sample, began)
        return sample, "".join(heard.text)

    def _exchange(self, operation: Operation, body: bytes, heard: _Heard, sample: Sample) -> None:
        request = b"%b%d\r\n\r\n%b" % (self._heads[operation], len(body), body)
        with self._connections.post(request) as (response, connection):
            sample.status = response.status_code
            sample.version = str(response.get("x-served-version", "") or "")
            sample.label = str(response.get("x-served-label", "") or "")
            if response.status_code != 200:
                sample.error = _told(response)
                if response.status_code in REFUSED:
                    sample.outcome = "refused"
            elif str(response.get("content-type", "")).startswith("text/event-stream"):
                self._read_stream(response, connection, heard, sample)
            else:
                self._read_reply(response, heard, sample)
                heard.ended = connection.at

    def _read_stream(
        self, response: HTTPSocketResponse, connection: Connection, heard: _Heard, sample: Sample
    ) -> None:
        for data in _events(response):
            if data == b"[DONE]":
                heard.ended = connection.at
                continue
            reply = msgspec.json.decode(data, type=_Reply)
            if reply.error is not None:
                sample.error = _code(reply.error) or "error event"
                return
            heard.event(reply, connection.at)
        if heard.ended is None and (self.target.dialect == "openai" or not heard.finish):
            raise _Truncated("the stream ended without [DONE]")
        sample.outcome = "whole"

    def _read_reply(self, response: HTTPSocketResponse, heard: _Heard, sample: Sample) -> None:
        reply = msgspec.json.decode(response.read(), type=_Reply)
        heard.whole_reply(reply)
        sample.outcome = "whole"

    def _broke(self, sample: Sample, heard: _Heard, error: Exception) -> None:
        """A connection that ends within a stream is a truncated one, whatever ended it: nobody told
        the client that the answer is not whole."""
        if heard.began:
            sample.outcome = "truncated"
        number = getattr(error, "errno", None)
        if isinstance(error, HTTPConnectionClosed):
            sample.error = "the server closed the connection"
        elif isinstance(error, HTTPParseError):
            sample.error = "the connection ended within the reply"
        elif number == errno.EMFILE:
            sample.error = "too many open files here: raise `ulimit -n`"
        else:
            sample.error = os.strerror(number) if number else type(error).__name__

    def _body(self, question: Question) -> dict[str, Any]:
        if question.operation == "embeddings":
            return {"model": self.target.model, "input": question.text}
        body: dict[str, Any] = {"model": self.target.model, "stream": True}
        if question.operation == "chat":
            body["messages"] = question.messages
        else:
            body["prompt"] = question.text
        if self.target.dialect == "transformers":
            return {**body, "generation_config": self._generation(question)}
        body["stream_options"] = {"include_usage": True}
        if question.max_tokens is not None:
            body["max_tokens"] = question.max_tokens
            if self.target.fixed_length:
                body["ignore_eos"] = True
        if self.target.temperature is not None:
            body["temperature"] = self.target.temperature
        if question.user:
            body["user"] = question.user
        return body

    def _generation(self, question: Question) -> str:
        config: dict[str, Any] = {"do_sample": bool(self.target.temperature)}
        if self.target.temperature:
            config["temperature"] = self.target.temperature
        if question.max_tokens is not None:
            config["max_new_tokens"] = question.max_tokens
            if self.target.fixed_length:
                config["eos_token_id"] = -1  # no vocabulary has it
        return msgspec.json.encode(config).decode()


class _Heard:
    """What came of one answer, and when."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.text: list[str] = []
        self.began = False
        self.ended: float | None = None
        self.finish = ""
        self.usage: _Usage | None = None

    def event(self, reply: _Reply, at: float) -> None:
        self.began = True
        self.usage = reply.usage or self.usage
        for choice in reply.choices:
            if choice.has_content:
                self.times.append(at)
                self.text.append((choice.delta and choice.delta.content) or "")
            self.finish = choice.finish_reason or self.finish

    def whole_reply(self, reply: _Reply) -> None:
        self.usage = reply.usage
        self.finish = next((c.finish_reason or "" for c in reply.choices), "")

    def into(self, sample: Sample, began: float) -> None:
        if self.times:
            sample.ttft = self.times[0] - began
            sample.gaps = [b - a for a, b in zip(self.times, self.times[1:], strict=False)]
        sample.finish = self.finish
        if self.usage is not None:
            sample.tokens_in = self.usage.prompt_tokens
            sample.tokens_out = self.usage.completion_tokens


def _events(response: HTTPSocketResponse) -> Iterator[bytes]:
    """The data of each server-sent event, as it comes; https://html.spec.whatwg.org/#event-stream.
    OpenAI's events are one line of data each."""
    while line := response.readline(b"\n"):
        if line.startswith(b"data:"):
            yield line[5:].strip()


def _told(response: HTTPSocketResponse) -> str:
    """An error reply's code, with its status."""
    try:
        error = msgspec.json.decode(response.read(), type=_Reply).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        error = None
    return f"{response.status_code} {_code(error)}".strip()


def _code(error: Any) -> str:
    if not isinstance(error, dict):
        return ""
    told = error.get("code") or error.get("type") or error.get("message") or ""
    return str(told)[:200]
