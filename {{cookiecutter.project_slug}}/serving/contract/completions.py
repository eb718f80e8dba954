"""`POST /v1/completions`: raw text in, its continuation out."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from pydantic import Field, field_validator

from serving.contract.events import FinishReason, Usage
from serving.contract.reply import Reply
from serving.contract.sampling import Request, Tokens


class CompletionRequest(Request):
    INPUT_FIELD: ClassVar[str] = "prompt"

    prompt: Annotated[str, Field(min_length=1)]
    max_tokens: Tokens | None = 16  # OpenAI's default for this endpoint; null leaves it open

    @field_validator("prompt", mode="before")
    @classmethod
    def _one_prompt(cls, value: Any) -> Any:
        """Some clients send a list, which may hold one prompt here."""
        return value[0] if isinstance(value, list) and len(value) == 1 else value

    @cached_property
    def characters(self) -> int:
        return len(self.prompt)

    @property
    def token_limit(self) -> int | None:
        return self.max_tokens


class CompletionChoice(msgspec.Struct):
    index: int
    text: str
    finish_reason: FinishReason | None
    logprobs: None = None


class Completion(msgspec.Struct):
    """The whole reply, and also each event of its stream."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    object: Literal["text_completion"] = "text_completion"
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET


class CompletionReply(Reply):
    prefix = "cmpl-"

    def _opening(self, index: int) -> bytes | None:
        return None

    def _text(self, index: int, text: str) -> bytes:
        return self.encode(self._make([CompletionChoice(index, text, None)], self._no_usage))

    def _finish(self, index: int, reason: FinishReason) -> bytes:
        return self.encode(self._make([CompletionChoice(index, "", reason)], self._no_usage))

    def _usage(self, usage: Usage) -> bytes:
        return self.encode(self._make([], usage))

    def _whole(self, texts: list[str], reasons: list[FinishReason], usage: Usage) -> bytes:
        choices = [
            CompletionChoice(index, text, reason)
            for index, (text, reason) in enumerate(zip(texts, reasons, strict=True))
        ]
        return msgspec.json.encode(self._make(choices, usage))

    def _make(
        self, choices: list[CompletionChoice], usage: Usage | msgspec.UnsetType | None
    ) -> Completion:
        return Completion(self.id, self.created, self.model, self.fingerprint, choices, usage=usage)
