"""What the gateway asks of an engine: how to start it, and how to translate contract and dialect.

The engines all speak some flavour of OpenAI's JSON over HTTP, so the flavour they share is written
here once, its streams in `dialect.py`; a module overrides what its engine does differently.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from serving.contract.capabilities import EMBEDDING, GENERATION
from serving.contract.chat import ChatRequest
from serving.contract.completions import CompletionRequest
from serving.contract.embeddings import EmbeddingRequest
from serving.contract.errors import (
    ApiError,
    context_length_exceeded,
    engine_error,
    invalid,
    overloaded,
)
from serving.contract.sampling import Generation, Request
from serving.engines.dialect import Decoder, StreamDecoder, VectorDecoder
from serving.engines.metrics import Gauges
from serving.engines.prompt import PromptCounter
from serving.settings import EngineBase, ProcessEngine

#: The name every engine is told to serve its model under; clients never see it.
MODEL = "model"


@dataclass(frozen=True)
class Launch:
    """Where one engine process listens. `key` is a secret made for this start only; `folder` is
    private to this start and readable by the service's user alone. One that `sleeps` must be able
    to; see `Sleep`."""

    host: str
    port: int
    key: str
    folder: Path
    sleeps: bool = False


@dataclass(frozen=True)
class Sleep:
    """The paths at which an engine is told to move its weights from its device into the machine's
    memory, and back. Only while it answers nothing."""

    down: str
    up: str


@dataclass(frozen=True)
class EngineCall:
    """One request in the engine's dialect. `streamed` says how its answer comes: as events, or as
    one JSON body."""

    path: str
    body: bytes
    streamed: bool = True


class Engine(ABC):
    """One engine, set up for one model version and one task, `generate` or `embed`.

    `ends_with_done` says whether its streams end with `[DONE]`, so that a missing one means a
    broken stream. `needs` are files a model folder must hold for it, beyond what every import
    checks. `tasks` are those it can do, `gauges` the names its own metrics have for what
    `engines.metrics` shows. `compiles_logprobs` says that its first answer with log probabilities
    holds up all others, so that warm-up asks for one.
    """

    name: ClassVar[str]
    ends_with_done: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()
    tasks: ClassVar[tuple[str, ...]] = ("generate", "embed")
    gauges: ClassVar[Gauges | None] = None
    compiles_logprobs: ClassVar[bool] = False

    settings: EngineBase

    def __init__(self, settings: EngineBase, model_dir: Path, task: str = "generate") -> None:
        self.settings = settings
        self.model_dir = model_dir
        self.task = task

    @property
    def health_path(self) -> str:
        return "/health"

    def served_as(self, adapter: str) -> str:
        """What the engine calls the model, or one of its adapters."""
        return adapter or MODEL

    @cached_property
    def capabilities(self) -> frozenset[str]:
        """What it can be asked for with this model; see `contract.capabilities`."""
        if self.task == "embed":
            return EMBEDDING - self.lacks
        return GENERATION - self.lacks

    @property
    def lacks(self) -> frozenset[str]:
        """What this engine cannot do as it is set up, or this model cannot."""
        lacking = set()
        if not ("vision_config" in self.model_config or "image_token_id" in self.model_config):
            lacking.add("image_url")
        if not self.model_config.get("is_matryoshka"):
            lacking.add("dimensions")
        return frozenset(lacking)

    @cached_property
    def model_config(self) -> Mapping[str, Any]:
        """The model's config.json."""
        return read_json(self.model_dir / "config.json")

    def call(self, request: Request, adapter: str = "") -> EngineCall:
        """The request in this dialect, for the model or one of its adapters. Raises `ApiError` for
        what only the engine's module can see is wrong."""
        if isinstance(request, ChatRequest):
            path, body = "/v1/chat/completions", self.chat(request)
        elif isinstance(request, CompletionRequest):
            path, body = "/v1/completions", self.completion(request)
        else:
            assert isinstance(request, EmbeddingRequest)
            path, body = "/v1/embeddings", self.embedding(request)
        body["model"] = self.served_as(adapter)
        streamed = isinstance(request, Generation)
        return EngineCall(path, msgspec.json.encode(body), streamed)

    def chat(self, request: ChatRequest) -> dict[str, Any]:
        """The body for a chat, without the model's name."""
        body = self._common(request)
        body["messages"] = request.plain_messages
        if request.logprobs:
            body["top_logprobs"] = request.top_logprobs or 0
        return body

    def completion(self, request: CompletionRequest) -> dict[str, Any]:
        body = self._common(request)
        body["prompt"] = request.prompt
        if body.pop("echo_logprobs", False):
            body["echo"] = True
        return body

    def embedding(self, request: EmbeddingRequest) -> dict[str, Any]:
        """Vectors are cut to `dimensions` by the gateway, in the same way for all engines."""
        for ids in request.inputs:
            if not isinstance(ids, str):
                self._check_tokens(ids, "input")
        size = self._text_config.get("hidden_size")
        if request.dimensions and size is not None and request.dimensions > size:
            raise invalid(f"The model's vectors have {size} dimensions.", "dimensions")
        return {"input": request.inputs, "encoding_format": "float"}

    def _common(self, request: Generation) -> dict[str, Any]:
        """Every generation is streamed from the engine, also when the client wants the whole reply:
        one path to test, one way to abort, and a first-token time for every request."""
        self._check_tokens(map(int, request.logit_bias or ()), "logit_bias")
        body: dict[str, Any] = {
            **request.asked(),
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": self.temperature(request),
        }
        if request.token_limit is not None:
            body["max_tokens"] = request.token_limit
        return body

    def room(self, request: Generation) -> int:
        """Tokens left for the answer. Raises `ApiError` when the prompt and what is asked for do
        not fit into the context."""
        limit = self.settings.max_model_len
        prompt = self.counter.least(request.characters)  # counting a huge one takes seconds
        if prompt <= limit:
            prompt = self.counter.request(request)
        if prompt + (request.token_limit or 1) > limit:
            raise context_length_exceeded(limit, prompt, request.INPUT_FIELD)
        return limit - prompt

    @cached_property
    def counter(self) -> PromptCounter:
        """Needs the model's tokenizer.json."""
        return PromptCounter(self.model_dir)

    def _check_tokens(self, tokens: Iterable[int], field: str) -> None:
        """An engine may die of a token that its model does not have."""
        vocabulary = self._text_config.get("vocab_size")
        unknown = next((t for t in tokens if vocabulary is not None and t >= vocabulary), None)
        if unknown is not None:
            raise invalid(f"The model has no token {unknown}.", field)

    @property
    def _text_config(self) -> Mapping[str, Any]:
        """config.json's part about text, which models with eyes or ears keep apart."""
        part = self.model_config.get("text_config")
        return part if isinstance(part, dict) else self.model_config

    def temperature(self, request: Generation) -> float:
        """The client's, or the model's own, or OpenAI's default. Engines read a model that wants to
        be greedy (`do_sample: false`) in different ways, so it is said each time."""
        if request.temperature is not None:
            return request.temperature
        own = self.generation_config
        return float(own.get("temperature") or 1.0) if own.get("do_sample", True) else 0.0

    @cached_property
    def generation_config(self) -> Mapping[str, Any]:
        """The model's generation_config.json."""
        return read_json(self.model_dir / "generation_config.json")

    def decoder(self, request: Request) -> Decoder:
        """What reads the answer to one request."""
        if isinstance(request, EmbeddingRequest):
            return VectorDecoder()
        return StreamDecoder()

    def refusal(self, status: int, body: bytes, request: Request) -> ApiError:
        """The contract's error for a reply other than 200. The engine's own words stay in the log:
        they may name files and flags that mean nothing to a client."""
        if status in (400, 413, 422):
            text = body.decode(errors="replace").lower()
            if self.too_long(text):
                limit = self.settings.max_model_len
                return context_length_exceeded(limit, None, request.INPUT_FIELD)
            said = "The engine refused the request's values; see the field limits."
            return invalid(said, request.INPUT_FIELD)
        if status in (429, 503):
            return overloaded("The engine is busy; ask again.")
        return engine_error()

    def too_long(self, text: str) -> bool:
        """Whether a refusal, in lower case, is about the length of the context."""
        return "context" in text or "maximum" in text


class LocalEngine(Engine):
    """An engine that is a child process of the gateway.

    `takes_key` says whether it can demand the launch key of its callers; `sleep` how it sleeps, if
    it can.
    """

    takes_key: ClassVar[bool]
    sleep: ClassVar[Sleep | None] = None

    settings: ProcessEngine

    @property
    @abstractmethod
    def program(self) -> Path:
        """The executable in the engine's environment; without it, the engine is not installed."""

    @abstractmethod
    def command(self, launch: Launch) -> list[str]:
        """The command line. It must hold no secret: any user of the machine can read it."""

    def prepare(self, launch: Launch) -> None:
        """Writes into `launch.folder` what the command reads from there, if anything."""

    def environment(self, launch: Launch) -> dict[str, str]:
        """Variables added to the gateway's own environment for the engine process."""
        return dict(self.settings.env)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty when there is no such file."""
    if not path.is_file():
        return {}
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document
