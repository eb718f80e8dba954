"""What an engine says, and what a client reads, in the tests of replies."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from serving.contract.events import Delta, EngineEvent, FinishReason, ToolDelta, Usage
from serving.contract.reply import Reply
from serving.contract.sse import EventReader

USAGE = Usage(3, 2, 5)
#: `USAGE` as a client reads it.
USAGE_JSON = {
    "prompt_tokens": 3,
    "completion_tokens": 2,
    "total_tokens": 5,
    "prompt_tokens_details": {"cached_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 0},
}

TEXTS = st.text(max_size=4)


def deltas(
    indexes: SearchStrategy[int], ids: SearchStrategy[str | None], **more: SearchStrategy[Any]
) -> SearchStrategy[Delta]:
    """Whatever an engine may say: text, thoughts and pieces of calls in any order."""
    tools = st.builds(
        ToolDelta,
        call=st.integers(0, 2),
        arguments=TEXTS,
        name=st.sampled_from([None, "f", "g"]),
        id=ids,
    )
    return st.builds(
        Delta,
        index=indexes,
        text=TEXTS,
        finish_reason=st.sampled_from([None, None, None, "stop", "length", "tool_calls"]),
        reasoning=st.one_of(st.just(""), TEXTS),
        tools=st.one_of(st.just([]), st.lists(tools, max_size=3)),
        **more,
    )


def says(text: str, reason: FinishReason | None = None, index: int = 0) -> EngineEvent:
    return EngineEvent([Delta(index, text, reason)])


def spent() -> EngineEvent:
    return EngineEvent(usage=USAGE)


def chunks(stream: bytes) -> list[Any]:
    """The JSON of every event, and "[DONE]" as it is."""
    return [
        "[DONE]" if data == b"[DONE]" else json.loads(data) for data in EventReader().feed(stream)
    ]


def choices(stream: bytes) -> list[dict[str, Any]]:
    """The choice of every event that has one."""
    return [choice for chunk in chunks(stream) if chunk != "[DONE]" for choice in chunk["choices"]]


def streamed(reply: Reply, *events: EngineEvent) -> list[dict[str, Any]]:
    """The choices of a streamed reply, whose events come one by one."""
    return choices(b"".join(reply.feed([event]) for event in [*events, spent()]) + reply.end())


def whole(reply: Reply, *events: EngineEvent) -> list[dict[str, Any]]:
    """The choices of a reply that is not streamed."""
    assert reply.feed([*events, spent()]) == b""
    read: list[dict[str, Any]] = json.loads(reply.whole())["choices"]
    return read
