"""`POST /v1/completions`: raw text in, its continuation out."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from pydantic import Field, field_validator

from serving.contract.events import Delta, EngineEvent, FinishReason, TokenLogprob, Usage
from serving.contract.reply import Answer, ChunkReply
from serving.contract.sampling import Generation, Tokens


class CompletionRequest(Generation):
    TASK: ClassVar[str] = "completions"
    INPUT_FIELD: ClassVar[str] = "prompt"
    OPTIONAL: ClassVar[dict[str, Any]] = {
        **Generation.OPTIONAL,
        "logprobs": None,
        "echo_logprobs": False,
    }
    FIELDS: ClassVar[dict[str, str]] = {"echo_logprobs": "echo"}
    NOT_OFFERED: ClassVar[dict[str, list[Any]]] = {"best_of": [1], "suffix": [""]}

    prompt: Annotated[str, Field(min_length=1)]
    max_tokens: Tokens | None = 16  # OpenAI's default for this endpoint; null leaves it open
    echo: bool | None = None
    #: how many of the likeliest tokens to name beside each generated one
    logprobs: Annotated[int, Field(ge=0, le=20, strict=True)] | None = None

    @field_validator("prompt", mode="before")
    @classmethod
    def _one_prompt(cls, value: Any) -> Any:
        """Some clients send a list, which may hold one prompt here."""
        return value[0] if isinstance(value, list) and len(value) == 1 else value

    @cached_property
    def characters(self) -> int:
        return len(self.prompt)

    def opening(self) -> str:
        """As much as a system prompt may take."""
        return self.prompt[:2000]

    @property
    def token_limit(self) -> int | None:
        return self.max_tokens

    @property
    def echo_logprobs(self) -> bool:
        """Whether the prompt's own probabilities are asked for, which only the engine knows. A
        plain echo is said by the gateway."""
        return bool(self.echo) and self.logprobs is not None


class CompletionLogprobs(msgspec.Struct):
    """Lists as long as there are tokens. `text_offset`: where each begins, in characters of the
    choice's text."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(msgspec.Struct):
    index: int
    text: str
    finish_reason: FinishReason | None
    logprobs: CompletionLogprobs | None = None


class Completion(msgspec.Struct):
    """The whole reply, and also each event of its stream."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    object: Literal["text_completion"] = "text_completion"
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET


class CompletionReply(ChunkReply):
    prefix = "cmpl-"

    def __init__(self, request: CompletionRequest, fingerprint: str) -> None:
        super().__init__(request, fingerprint)
        self._asked_logprobs = request.logprobs is not None
        self._echo = request.prompt if request.echo and not request.echo_logprobs else ""
        self._offsets = [0] * request.n

    def feed(self, events: list[EngineEvent]) -> bytes:
        if self._echo and any(event.deltas for event in events):
            echo = [Delta(index, self._echo) for index in range(len(self.answers))]
            self._echo = ""
            return super().feed([EngineEvent(echo), *events])
        return super().feed(events)

    def _opening(self, index: int) -> bytes | None:
        return None

    def _text(self, index: int, text: str) -> bytes:
        return self.encode(self._make([CompletionChoice(index, text, None)], self._no_usage))

    def _said(self, answer: Answer, delta: Delta) -> bytes:
        logprobs = self._logprobs(delta.index, delta.logprobs) if delta.logprobs else None
        choice = CompletionChoice(delta.index, delta.text, None, logprobs)
        return self.encode(self._make([choice], self._no_usage))

    def _finish(self, index: int, reason: FinishReason) -> bytes:
        return self.encode(self._make([CompletionChoice(index, "", reason)], self._no_usage))

    def _usage(self, usage: Usage) -> bytes:
        return self.encode(self._make([], usage))

    def whole(self) -> bytes:
        usage = self.checked_usage()
        choices = [
            CompletionChoice(
                index,
                answer.text,
                answer.reason,
                self._logprobs(index, answer.logprobs) if self._asked_logprobs else None,
            )
            for index, answer in enumerate(self.answers)
        ]
        return self._encoder.encode(self._make(choices, usage))

    def _logprobs(self, index: int, tokens: list[TokenLogprob]) -> CompletionLogprobs:
        offsets = []
        for token in tokens:
            offsets.append(self._offsets[index])
            self._offsets[index] += len(token.token)
        return CompletionLogprobs(
            [token.token for token in tokens],
            [token.logprob for token in tokens],
            [
                None
                if token.logprob is None
                else {rival.token: rival.logprob for rival in token.top_logprobs}
                for token in tokens
            ],
            offsets,
        )

    def _make(
        self, choices: list[CompletionChoice], usage: Usage | msgspec.UnsetType | None
    ) -> Completion:
        return Completion(self.id, self.created, self.model, self.fingerprint, choices, usage=usage)
