"""What an engine said, in words no engine owns: the step between a dialect and the contract."""

from __future__ import annotations

from typing import Literal

import msgspec

FinishReason = Literal["stop", "length"]


class Usage(msgspec.Struct):
    """Tokens of one request, as the engine's tokenizer counted them."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Delta(msgspec.Struct):
    """Some text of one choice, and why it ended if it did."""

    index: int
    text: str
    finish_reason: FinishReason | None = None


class EngineEvent(msgspec.Struct):
    """One event of an engine's stream. `done` is the dialect's own end mark."""

    deltas: list[Delta] = []
    usage: Usage | None = None
    done: bool = False
