"""From engine events to the contract's reply, whole or streamed: one order of events for all."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from typing import ClassVar

import msgspec

from serving.contract import sse
from serving.contract.errors import engine_error
from serving.contract.events import EngineEvent, FinishReason, Usage

#: Stands for the text while its event is cut in two; no id or model address can hold it.
_MARK = "\x00"
_ENCODED_MARK = msgspec.json.encode(_MARK)


class Reply(ABC):
    """Collects what the engine says about one request.

    `feed` takes engine events and returns the bytes to stream; a client that wants the whole reply
    ignores them and calls `whole` at the end. Either way the order and the completeness are checked
    in one place: nothing follows a choice's finish reason, and only a reply whose every choice
    finished may end with `[DONE]`.
    """

    prefix: ClassVar[str]

    def __init__(self, model: str, fingerprint: str, *, n: int, stream: bool, usage: bool) -> None:
        self.id = self.prefix + uuid.uuid4().hex
        self.created = int(time.time())
        self.model = model
        self.fingerprint = fingerprint
        self.usage: Usage | None = None
        self._stream = stream
        self._asked_usage = usage
        # OpenAI: when usage is asked for, every event before the last carries `"usage": null`.
        self._no_usage: msgspec.UnsetType | None = None if usage else msgspec.UNSET
        # What stands before and after the text in the events of a choice that has begun.
        self._frames: list[tuple[bytes, bytes] | None] = [None] * n
        self._texts: list[list[str]] = [[] for _ in range(n)]
        self._reasons: list[FinishReason | None] = [None] * n
        self._encoder = msgspec.json.Encoder()

    @property
    def finished(self) -> bool:
        """Whether every choice has its finish reason."""
        return None not in self._reasons

    def feed(self, events: list[EngineEvent]) -> bytes:
        """The contract's bytes for these events; empty when they say nothing a client sees."""
        out: list[bytes] = []
        for event in events:
            if event.usage is not None:
                self.usage = event.usage
            for delta in event.deltas:
                index = delta.index
                if index >= len(self._reasons) or self._reasons[index] is not None:
                    continue
                if self._stream:
                    self._write(out, index, delta.text, delta.finish_reason)
                elif delta.text:
                    self._texts[index].append(delta.text)
                if delta.finish_reason is not None:
                    self._reasons[index] = delta.finish_reason
        return b"".join(out)

    def _write(self, out: list[bytes], index: int, text: str, reason: FinishReason | None) -> None:
        frame = self._frames[index]
        if frame is None:
            before, after = self._text(index, _MARK).split(_ENCODED_MARK)
            frame = self._frames[index] = before, after
            opening = self._opening(index)
            if opening is not None:
                out.append(opening)
        if text:  # the rest of the event is the same for every token: encoding it once saves half
            before, after = frame
            out.append(before + self._encoder.encode(text) + after)
        if reason is not None:
            out.append(self._finish(index, reason))

    def end(self) -> bytes:
        """The bytes that end a stream well. Raises `ApiError` when the engine stopped too early."""
        usage = self._checked_usage()
        return (self._usage(usage) if self._asked_usage else b"") + sse.DONE

    def whole(self) -> bytes:
        """The whole reply as JSON. Raises `ApiError` when the engine stopped too early."""
        usage = self._checked_usage()
        reasons = [reason for reason in self._reasons if reason is not None]
        return self._whole(["".join(parts) for parts in self._texts], reasons, usage)

    def _checked_usage(self) -> Usage:
        if not self.finished or self.usage is None:
            raise engine_error("The engine ended its answer too early; ask again.")
        return self.usage

    def encode(self, chunk: msgspec.Struct) -> bytes:
        return sse.event(self._encoder.encode(chunk))

    @abstractmethod
    def _opening(self, index: int) -> bytes | None:
        """The event before a choice's first text, if the endpoint has one."""

    @abstractmethod
    def _text(self, index: int, text: str) -> bytes: ...

    @abstractmethod
    def _finish(self, index: int, reason: FinishReason) -> bytes: ...

    @abstractmethod
    def _usage(self, usage: Usage) -> bytes: ...

    @abstractmethod
    def _whole(self, texts: list[str], reasons: list[FinishReason], usage: Usage) -> bytes: ...
