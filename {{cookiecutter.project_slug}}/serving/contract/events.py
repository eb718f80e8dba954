"""What an engine said, in words no engine owns: the step between a dialect and the contract."""

from __future__ import annotations

from typing import Literal

import msgspec

FinishReason = Literal["stop", "length", "tool_calls"]


class CachedTokens(msgspec.Struct):
    """Prompt tokens whose keys and values the engine had in its cache already."""

    cached_tokens: int = 0


class ReasoningTokens(msgspec.Struct):
    """Tokens of the answer that were thoughts."""

    reasoning_tokens: int = 0


class Usage(msgspec.Struct):
    """Tokens of one request, as the engine's tokenizer counted them. Thoughts that the engine does
    not count apart are counted by the pieces they came in; mostly, each is a token."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens = msgspec.field(default_factory=CachedTokens)
    completion_tokens_details: ReasoningTokens = msgspec.field(default_factory=ReasoningTokens)


class TopLogprob(msgspec.Struct):
    """One token the model might have chosen. `bytes`: its text's UTF-8."""

    token: str
    logprob: float
    bytes: list[int] | None = None


class TokenLogprob(msgspec.Struct):
    """A generated token with the natural logarithm of its probability, and its best rivals. Only an
    echoed prompt's first token has no probability."""

    token: str
    logprob: float | None
    bytes: list[int] | None = None
    top_logprobs: list[TopLogprob] = []


class ToolDelta(msgspec.Struct):
    """A piece of one tool call. `call` counts the calls of a choice; the first piece of each has
    the name, and the arguments' JSON comes in fragments."""

    call: int
    arguments: str = ""
    name: str | None = None
    id: str | None = None


class Delta(msgspec.Struct):
    """What one choice said next, and why it ended if it did."""

    index: int
    text: str
    finish_reason: FinishReason | None = None
    reasoning: str = ""
    tools: list[ToolDelta] = []
    logprobs: list[TokenLogprob] = []

    @property
    def plain(self) -> bool:
        """Whether it is nothing but text, as nearly all are."""
        return not (self.reasoning or self.tools or self.logprobs)


class EngineEvent(msgspec.Struct):
    """One event of an engine's stream. `done` is the dialect's own end mark; `vectors` are what an
    embedding model answers instead of text, each as little-endian float32."""

    deltas: list[Delta] = []
    usage: Usage | None = None
    done: bool = False
    vectors: list[bytes] = []
