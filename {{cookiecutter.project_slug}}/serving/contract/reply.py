"""From engine events to the contract's reply, whole or streamed: one order of events for all."""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from typing import ClassVar

import msgspec

from serving.contract import sse
from serving.contract.errors import engine_error
from serving.contract.events import Delta, EngineEvent, FinishReason, TokenLogprob, ToolDelta, Usage
from serving.contract.sampling import Generation

#: Stands for the text while its event is cut in two; no id or model address can hold it.
_MARK = "\x00"
_ENCODED_MARK = msgspec.json.encode(_MARK)


class Call:
    """One tool call of an answer, as far as it was said."""

    def __init__(self, piece: ToolDelta, position: int) -> None:
        self.position = position
        self.id = piece.id or f"call_{secrets.token_hex(12)}"
        self.name = piece.name or ""
        self.fragments: list[str] = []

    @property
    def arguments(self) -> str:
        return "".join(self.fragments)


class Answer:
    """One choice, as far as it was said."""

    def __init__(self) -> None:
        self.begun = False
        self.texts: list[str] = []
        self.thoughts: list[str] = []
        self.calls: dict[int, Call] = {}
        self.logprobs: list[TokenLogprob] = []
        self.reason: FinishReason | None = None

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def reasoning(self) -> str:
        return "".join(self.thoughts)

    def add(self, delta: Delta) -> None:
        """Remembers what was said; calls are remembered by `call`."""
        if delta.text:
            self.texts.append(delta.text)
        if not delta.plain:
            if delta.reasoning:
                self.thoughts.append(delta.reasoning)
            self.logprobs += delta.logprobs

    def call(self, piece: ToolDelta) -> Call:
        """The call this piece belongs to, with the piece added; a new one has no fragment before.

        Engines count calls in their own ways; here they are numbered as they come.
        """
        call = self.calls.get(piece.call)
        if call is None:
            call = self.calls[piece.call] = Call(piece, len(self.calls))
        call.fragments.append(piece.arguments)
        return call

    def finish(self, reason: FinishReason) -> FinishReason:
        """Sets and returns the finish reason, which engines disagree on when tools were called."""
        if reason != "length":
            reason = "tool_calls" if self.calls else "stop"
        self.reason = reason
        return reason


class Reply(ABC):
    """Collects what the engine says about one request.

    `feed` takes engine events and returns the bytes to stream; a client that wants the whole reply
    ignores them and calls `whole` at the end. Either way the order and the completeness are checked
    in one place: nothing follows a choice's finish reason, and only a reply whose every choice
    finished may end well.
    """

    prefix: ClassVar[str]

    def __init__(self, request: Generation, fingerprint: str) -> None:
        self.id = self.prefix + secrets.token_hex(16)
        self.created = int(time.time())
        self.model = request.model
        self.fingerprint = fingerprint
        self.usage: Usage | None = None
        self.answers = [Answer() for _ in range(request.n)]
        self._stream = request.stream
        self._one_call = request.one_call
        self._encoder = msgspec.json.Encoder()

    @property
    def finished(self) -> bool:
        """Whether every choice has its finish reason."""
        return all(answer.reason is not None for answer in self.answers)

    def feed(self, events: list[EngineEvent]) -> bytes:
        """The contract's bytes for these events; empty when they say nothing a client sees."""
        out: list[bytes] = []
        for event in events:
            if event.usage is not None:
                self.usage = event.usage
            for delta in event.deltas:
                if delta.index >= len(self.answers):
                    continue
                answer = self.answers[delta.index]
                if answer.reason is not None:
                    continue
                if delta.tools and self._one_call:
                    first = next(iter(answer.calls), delta.tools[0].call)
                    delta.tools = [piece for piece in delta.tools if piece.call == first]
                if self._stream:
                    self._write(out, answer, delta)
                else:
                    self._keep(answer, delta)
        return b"".join(out)

    def _keep(self, answer: Answer, delta: Delta) -> None:
        """Remembers it for `whole`."""
        answer.add(delta)
        for piece in delta.tools:
            answer.call(piece)
        if delta.finish_reason is not None:
            answer.finish(delta.finish_reason)

    @abstractmethod
    def _write(self, out: list[bytes], answer: Answer, delta: Delta) -> None:
        """Appends the events that tell this delta, and tells `answer` what was said."""

    @abstractmethod
    def end(self) -> bytes:
        """The bytes that end a stream well. Raises `ApiError` when the engine stopped too early."""

    @abstractmethod
    def whole(self) -> bytes:
        """The whole reply as JSON. Raises `ApiError` when the engine stopped too early."""

    def checked_usage(self) -> Usage:
        """Raises `ApiError` when the engine stopped too early."""
        if not self.finished or self.usage is None:
            raise engine_error("The engine ended its answer too early; ask again.")
        return self.usage

    def encode(self, chunk: msgspec.Struct) -> bytes:
        return sse.event(self._encoder.encode(chunk))


class ChunkReply(Reply):
    """What the two completion endpoints share: chunks of one shape, then usage, then `[DONE]`."""

    def __init__(self, request: Generation, fingerprint: str) -> None:
        super().__init__(request, fingerprint)
        self._asked_usage = request.include_usage
        # OpenAI: when usage is asked for, every event before the last carries `"usage": null`.
        self._no_usage: msgspec.UnsetType | None = None if self._asked_usage else msgspec.UNSET
        # What stands before and after the text in the plain events of a choice.
        self._frames: dict[int, tuple[bytes, bytes]] = {}

    def _write(self, out: list[bytes], answer: Answer, delta: Delta) -> None:
        index = delta.index
        if not answer.begun:
            answer.begun = True
            opening = self._opening(index)
            if opening is not None:
                out.append(opening)
        if not delta.plain:
            out.append(self._said(answer, delta))
        elif delta.text:
            # The rest of the event is the same for every token: encoding it once saves half.
            before, after = self._frames.get(index) or self._frame(index)
            out.append(before + self._encoder.encode(delta.text) + after)
        if delta.finish_reason is not None:
            out.append(self._finish(index, answer.finish(delta.finish_reason)))

    def _frame(self, index: int) -> tuple[bytes, bytes]:
        before, after = self._text(index, _MARK).split(_ENCODED_MARK)
        self._frames[index] = before, after
        return before, after

    def end(self) -> bytes:
        usage = self.checked_usage()
        return (self._usage(usage) if self._asked_usage else b"") + sse.DONE

    @abstractmethod
    def _opening(self, index: int) -> bytes | None:
        """The event before a choice's first word, if the endpoint has one."""

    @abstractmethod
    def _text(self, index: int, text: str) -> bytes:
        """The event of a delta that is nothing but text."""

    @abstractmethod
    def _said(self, answer: Answer, delta: Delta) -> bytes:
        """The event of any other delta."""

    @abstractmethod
    def _finish(self, index: int, reason: FinishReason) -> bytes: ...

    @abstractmethod
    def _usage(self, usage: Usage) -> bytes: ...
