"""Reading what engines send: the parts of OpenAI-like events that the contract needs."""

from __future__ import annotations

from typing import Annotated, Any, Protocol

import msgspec
import numpy

from serving.contract.errors import engine_error
from serving.contract.events import (
    CachedTokens,
    Delta,
    EngineEvent,
    FinishReason,
    ReasoningTokens,
    TokenLogprob,
    ToolDelta,
    TopLogprob,
    Usage,
)


class EngineRefused(Exception):
    """The engine says in its stream, and not by its status, that it will not answer."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"status {status} in its stream")
        self.status = status
        self.body = body


class Decoder(Protocol):
    """Reads the answer to one request."""

    def decode(self, data: bytes) -> EngineEvent:
        """The meaning of one event's data, or of a whole body.

        Raises `EngineRefused` when the engine reports an error there, `ApiError` for what cannot be
        read.
        """

    def counted(self) -> Usage | None:
        """What the engine has counted of an answer so far, if it tells before the end."""


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Text(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Logprobs(msgspec.Struct):
    """Chat's are in `content`; the rest is the older shape of text completions."""

    content: list[TokenLogprob] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] | None = None


class Choice(msgspec.Struct):
    index: Annotated[int, msgspec.Meta(ge=0)] = 0
    delta: _Text | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


#: What fits into a column of the ledger.
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]


class _Cached(msgspec.Struct):
    cached_tokens: _Count | None = None


class _Reasoned(msgspec.Struct):
    reasoning_tokens: _Count | None = None


class _Usage(msgspec.Struct):
    """`reasoning_tokens` is where SGLang tells them, with 0 for not counted."""

    prompt_tokens: _Count
    completion_tokens: _Count | None = None
    prompt_tokens_details: _Cached | None = None
    completion_tokens_details: _Reasoned | None = None
    reasoning_tokens: _Count | None = None

    def plain(self, thoughts: int = 0) -> Usage:
        """`thoughts` are the pieces of reasoning that came, for an engine that does not count."""
        spent = self.completion_tokens or 0
        usage = Usage(self.prompt_tokens, spent, self.prompt_tokens + spent)
        if self.prompt_tokens_details is not None:
            cached = self.prompt_tokens_details.cached_tokens or 0
            usage.prompt_tokens_details = CachedTokens(cached)
        details = self.completion_tokens_details or _Reasoned()
        reasoned = details.reasoning_tokens or self.reasoning_tokens or thoughts
        usage.completion_tokens_details = ReasoningTokens(min(reasoned, spent))
        return usage


class Chunk(msgspec.Struct):
    """One event of a stream; what the contract does not need is skipped."""

    choices: list[Choice] = []
    usage: _Usage | None = None
    error: Any = None


_CHUNKS = msgspec.json.Decoder(Chunk)
_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
}


class Thoughts:
    """Takes away the blank lines around a thought, which some engines leave and others do not: at
    its two ends, and before the answer that follows it."""

    def __init__(self) -> None:
        self._blanks: dict[int, str] = {}  # held back, per choice that has begun to think
        self._answering: set[int] = set()

    def trim(self, delta: Delta) -> Delta | None:
        """The delta without them; None when nothing of it is left."""
        index = delta.index
        if delta.reasoning:
            blanks = self._blanks.get(index)
            said = delta.reasoning.lstrip() if blanks is None else blanks + delta.reasoning
            delta.reasoning = said.rstrip()
            if delta.reasoning or blanks is not None:
                self._blanks[index] = said[len(delta.reasoning) :]
        if delta.text and index in self._blanks and index not in self._answering:
            delta.text = delta.text.lstrip()
            if delta.text:
                self._answering.add(index)
        return delta if delta.text or delta.finish_reason or not delta.plain else None


class StreamDecoder:
    """Reads a generation's stream.

    With `counts_on`, every event of a choice tells what that choice has taken so far, and only one
    without a choice tells what all have: vLLM and SGLang with `continuous_usage_stats`.
    """

    def __init__(self, *, counts_on: bool = False) -> None:
        self._thoughts: Thoughts | None = None
        self._thought = 0  # pieces of thoughts, blank ones too: mostly, each is a token
        self._counts_on = counts_on
        self._so_far: dict[int, _Usage] = {}

    def decode(self, data: bytes) -> EngineEvent:
        if data == b"[DONE]":
            return EngineEvent(done=True)
        try:
            chunk = _CHUNKS.decode(data)
        except msgspec.DecodeError:
            raise engine_error("The engine sent a garbled event; ask again.") from None
        if chunk.error is not None:
            raise EngineRefused(_status(chunk.error), data)
        deltas, usage = self.deltas(chunk), chunk.usage
        if usage is None:
            return EngineEvent(deltas)
        if self._counts_on and chunk.choices:
            self._so_far[chunk.choices[0].index] = usage  # kept as it is: it comes with every token
            return EngineEvent(deltas)
        return EngineEvent(deltas, usage.plain(self._thought))

    def counted(self) -> Usage | None:
        if not self._so_far:
            return None
        choices = self._so_far.values()
        return _Usage(
            max(choice.prompt_tokens for choice in choices),
            sum(choice.completion_tokens or 0 for choice in choices),
            reasoning_tokens=sum(choice.reasoning_tokens or 0 for choice in choices),
        ).plain(self._thought)

    def deltas(self, chunk: Chunk) -> list[Delta]:
        """What each choice of the chunk says, if it says anything."""
        deltas = [delta for choice in chunk.choices if (delta := _delta(choice)) is not None]
        if self._thoughts is None:
            if not any(delta.reasoning for delta in deltas):
                return deltas
            self._thoughts = Thoughts()
        self._thought += sum(1 for delta in deltas if delta.reasoning)
        trimmed = (self._thoughts.trim(delta) for delta in deltas)
        return [delta for delta in trimmed if delta is not None]


def _status(error: Any) -> int:
    """The status an error inside a stream would have had before it."""
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and 400 <= code < 600 else 500


def _delta(choice: Choice) -> Delta | None:
    reason = None
    if choice.finish_reason is not None:
        reason = _REASONS.get(choice.finish_reason)
        if reason is None:  # "abort", "error": it stopped, but did not finish
            raise engine_error()
    said = choice.delta
    if said is None:
        delta = Delta(choice.index, choice.text or "", reason)
    else:
        delta = Delta(choice.index, said.content or "", reason)
        delta.reasoning = said.reasoning_content or said.reasoning or ""
        if said.tool_calls:
            delta.tools = [_piece(at, call) for at, call in enumerate(said.tool_calls)]
    # Some engines count the end token among the answer's; it is no part of the text.
    if choice.logprobs is not None and (delta.text or reason != "stop"):
        delta.logprobs = _logprobs(choice.logprobs)
    return None if delta.plain and not delta.text and reason is None else delta


def _piece(at: int, call: _ToolCall) -> ToolDelta:
    function = call.function or _Function()
    number = at if call.index is None else call.index
    return ToolDelta(number, function.arguments or "", function.name, call.id)


def _logprobs(given: _Logprobs) -> list[TokenLogprob]:
    if given.content is not None:
        for token in given.content:
            token.bytes = _bytes(token.token, token.bytes)
            for rival in token.top_logprobs:
                rival.bytes = _bytes(rival.token, rival.bytes)
        return given.content
    tops = given.top_logprobs or []
    tokens = []
    for at, (text, logprob) in enumerate(
        zip(given.tokens or (), given.token_logprobs, strict=False)
    ):
        rivals = (tops[at] if at < len(tops) else None) or {}
        top = [TopLogprob(name, value) for name, value in rivals.items()]
        tokens.append(TokenLogprob(text, logprob, top_logprobs=top))
    return tokens


def _bytes(token: str, given: list[int] | None) -> list[int]:
    return list(token.encode("utf-8", "replace")) if given is None else given


class _Vector(msgspec.Struct):
    index: int
    embedding: list[float]


class _VectorList(msgspec.Struct):
    data: list[_Vector]
    usage: _Usage


class VectorDecoder:
    """Reads the body of an answer from `/v1/embeddings`."""

    def counted(self) -> None:
        """Nothing, before the one body has come."""

    def decode(self, data: bytes) -> EngineEvent:
        try:
            answer = msgspec.json.decode(data, type=_VectorList)
        except msgspec.DecodeError:
            raise engine_error("The engine sent a garbled answer; ask again.") from None
        ordered = sorted(answer.data, key=lambda vector: vector.index)
        vectors = [numpy.asarray(vector.embedding, "<f4").tobytes() for vector in ordered]
        return EngineEvent(usage=answer.usage.plain(), done=True, vectors=vectors)
