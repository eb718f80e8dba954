"""`POST /v1/chat/completions`: the request, the reply and the stream.

Requests are pydantic models, because their errors must say which field is wrong. Replies are
msgspec structs, because one is made for every token.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, ClassVar, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from serving.contract.events import FinishReason, Usage
from serving.contract.reply import Reply
from serving.contract.sampling import Request, Tokens


class TextPart(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text"]
    text: str


Content = str | Annotated[list[TextPart], Field(min_length=1, max_length=4096, fail_fast=True)]


class SystemMessage(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "developer"]
    content: Content
    name: str | None = None


class UserMessage(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["user"]
    content: Content
    name: str | None = None


class AssistantMessage(BaseModel):
    """An earlier answer. The SDK's reply objects may be sent back as they came, or as their
    `model_dump()` shows them, with a null for all that this answer had nothing of."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["assistant"]
    content: Content | None = None
    name: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None  # not said again to the model
    annotations: Annotated[list[None], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None
    tool_calls: Annotated[list[None], Field(max_length=0)] | None = None


Message = Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]


class ChatRequest(Request):
    INPUT_FIELD: ClassVar[str] = "messages"

    # Bounded and checked only as far as the first fault: a long list of wrong things is no work.
    messages: Annotated[list[Message], Field(min_length=1, max_length=4096, fail_fast=True)]
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None

    @property
    def token_limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @cached_property
    def characters(self) -> int:
        return sum(len(message["content"]) for message in self.plain_messages())

    def plain_messages(self) -> list[dict[str, str]]:
        """The conversation with each content as one text; `developer` is today's `system`."""
        return [
            {
                "role": "system" if message.role == "developer" else message.role,
                "content": message.content
                if isinstance(message.content, str)
                else "".join(part.text for part in message.content or ()),
            }
            for message in self.messages
        ]


class AnswerMessage(msgspec.Struct):
    content: str
    role: Literal["assistant"] = "assistant"
    refusal: None = None


class ChatChoice(msgspec.Struct):
    index: int
    message: AnswerMessage
    finish_reason: FinishReason
    logprobs: None = None


class ChatCompletion(msgspec.Struct):
    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    object: Literal["chat.completion"] = "chat.completion"


class ChatDelta(msgspec.Struct, omit_defaults=True):
    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(msgspec.Struct):
    index: int
    delta: ChatDelta
    finish_reason: FinishReason | None = None
    logprobs: None = None


class ChatChunk(msgspec.Struct):
    """One event of a stream. `usage` stands in the last one, and only when it was asked for."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET


class ChatReply(Reply):
    """Writes chat's events: the role first, then content, one finish reason, usage, `[DONE]`."""

    prefix = "chatcmpl-"

    def _opening(self, index: int) -> bytes | None:
        return self._chunk(
            [ChatChunkChoice(index, ChatDelta(role="assistant", content=""))], self._no_usage
        )

    def _text(self, index: int, text: str) -> bytes:
        return self._chunk([ChatChunkChoice(index, ChatDelta(content=text))], self._no_usage)

    def _finish(self, index: int, reason: FinishReason) -> bytes:
        return self._chunk([ChatChunkChoice(index, ChatDelta(), reason)], self._no_usage)

    def _usage(self, usage: Usage) -> bytes:
        return self._chunk([], usage)

    def _whole(self, texts: list[str], reasons: list[FinishReason], usage: Usage) -> bytes:
        choices = [
            ChatChoice(index, AnswerMessage(text), reason)
            for index, (text, reason) in enumerate(zip(texts, reasons, strict=True))
        ]
        return msgspec.json.encode(
            ChatCompletion(self.id, self.created, self.model, self.fingerprint, choices, usage)
        )

    def _chunk(
        self, choices: list[ChatChunkChoice], usage: Usage | msgspec.UnsetType | None
    ) -> bytes:
        return self.encode(
            ChatChunk(self.id, self.created, self.model, self.fingerprint, choices, usage=usage)
        )
