"""What the gateway asks of an engine: how to start it, and how to translate contract and dialect.

The engines all speak some flavour of OpenAI's JSON over HTTP, so the flavour they share is written
here once; a module overrides what its engine does differently.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from serving.contract.chat import ChatRequest
from serving.contract.completions import CompletionRequest
from serving.contract.errors import (
    ApiError,
    context_length_exceeded,
    engine_error,
    invalid,
    overloaded,
)
from serving.contract.events import Delta, EngineEvent, FinishReason, Usage
from serving.contract.sampling import Request
from serving.settings import EngineBase


@dataclass(frozen=True)
class Launch:
    """Where one engine process listens. `key` is a secret made for this start only; `folder` is
    private to this start and readable by the service's user alone."""

    host: str
    port: int
    key: str
    folder: Path


@dataclass(frozen=True)
class EngineCall:
    """One request in the engine's dialect."""

    path: str
    body: bytes


class Engine(ABC):
    """One engine, set up for one model version.

    `capabilities` are the optional request fields it honours (see `contract.sampling.Request`).
    `takes_key` says whether it can demand the launch key of its callers. `ends_with_done` says
    whether its streams end with `[DONE]`, so that a missing one means a broken stream. `needs` are
    files a model folder must hold for it, beyond what every import checks.
    """

    name: ClassVar[str]
    takes_key: ClassVar[bool]
    ends_with_done: ClassVar[bool] = True
    health_path: ClassVar[str] = "/health"
    needs: ClassVar[tuple[str, ...]] = ()

    settings: EngineBase

    def __init__(self, settings: EngineBase, model_dir: Path) -> None:
        self.settings = settings
        self.model_dir = model_dir
        self._decoder = msgspec.json.Decoder(EngineChunk)

    @property
    def capabilities(self) -> frozenset[str]:
        """All of them, unless the engine's module says otherwise."""
        return frozenset(Request.CAPABILITIES)

    @property
    @abstractmethod
    def program(self) -> Path:
        """The executable in the engine's environment; without it, the engine is not installed."""

    @abstractmethod
    def command(self, launch: Launch) -> list[str]:
        """The command line. It must hold no secret: any user of the machine can read it."""

    def prepare(self, launch: Launch) -> None:  # noqa: B027 - most engines need nothing
        """Writes into `launch.folder` what the command reads from there, if anything."""

    def environment(self, launch: Launch) -> dict[str, str]:
        """Variables added to the gateway's own environment for the engine process."""
        return {}

    def chat(self, request: ChatRequest) -> EngineCall:
        """Raises `ApiError` for what only this engine's adapter can see is wrong."""
        body = self._common(request)
        body["messages"] = request.plain_messages()
        return EngineCall("/v1/chat/completions", msgspec.json.encode(body))

    def completion(self, request: CompletionRequest) -> EngineCall:
        body = self._common(request)
        body["prompt"] = request.prompt
        return EngineCall("/v1/completions", msgspec.json.encode(body))

    def _common(self, request: ChatRequest | CompletionRequest) -> dict[str, Any]:
        """Every request is streamed from the engine, also when the client wants the whole reply:
        one path to test, one way to abort, and a first-token time for every request."""
        body: dict[str, Any] = {
            **request.asked(),
            "model": MODEL,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if request.temperature is not None:
            body["temperature"] = request.temperature
        if request.token_limit is not None:
            body["max_tokens"] = request.token_limit
        return body

    def open_stream(self, stops: list[str]) -> StreamDecoder:
        """A decoder for one stream of this dialect; `stops` are the request's stop texts."""
        return StreamDecoder(self._decoder)

    def refusal(self, status: int, body: bytes, param: str) -> ApiError:
        """The contract's error for a reply other than 200. The engine's own words stay in the log:
        they may name files and flags that mean nothing to a client."""
        if status in (400, 413, 422):
            text = body.decode(errors="replace").lower()
            if "context" in text or "max_model_len" in text or "maximum" in text:
                return context_length_exceeded(self.settings.max_model_len, None, param)
            return invalid("The engine refused the request's values; see the field limits.", param)
        if status in (429, 503):
            return overloaded("The engine is busy; ask again.")
        return engine_error()


#: The name every engine is told to serve its model under; clients never see it.
MODEL = "model"


class _Text(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Text | None = None
    text: str | None = None
    finish_reason: str | None = None


class EngineChunk(msgspec.Struct):
    """The part of an OpenAI-like stream event that the contract needs; the rest is skipped."""

    choices: list[_Choice] = []
    usage: Usage | None = None
    error: msgspec.Raw | None = None


_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length"}


class StreamDecoder:
    """Turns the data of one engine stream's events into `EngineEvent`s. One per request."""

    def __init__(self, decoder: msgspec.json.Decoder[EngineChunk]) -> None:
        self._decoder = decoder

    def decode(self, data: bytes) -> EngineEvent:
        """Raises `ApiError` when the engine reports an error or sends what is no event."""
        if data == b"[DONE]":
            return EngineEvent(done=True)
        try:
            chunk = self._decoder.decode(data)
        except msgspec.DecodeError:
            raise engine_error("The engine sent a garbled event; ask again.") from None
        if chunk.error is not None:
            raise engine_error()
        return EngineEvent(self._deltas(chunk), chunk.usage)

    def _deltas(self, chunk: EngineChunk) -> list[Delta]:
        deltas = []
        for choice in chunk.choices:
            text = choice.delta.content if choice.delta is not None else choice.text
            reason = None
            if choice.finish_reason is not None:
                reason = _REASONS.get(choice.finish_reason)
                if reason is None:  # "abort", "error": it stopped, but did not finish
                    raise engine_error()
            if text or reason:
                deltas.append(Delta(choice.index, text or "", reason))
        return deltas
