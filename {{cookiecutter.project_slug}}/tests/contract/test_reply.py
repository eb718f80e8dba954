"""The order and the completeness of a reply, whatever order the engine speaks in."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from replies import USAGE, USAGE_JSON, choices, chunks, deltas, says, spent

from serving.contract.chat import ChatReply, ChatRequest
from serving.contract.completions import CompletionReply, CompletionRequest
from serving.contract.errors import ApiError
from serving.contract.events import Delta, EngineEvent, FinishReason, TokenLogprob, ToolDelta
from serving.contract.reply import ChunkReply, Reply


def reply(
    kind: type[ChunkReply] = ChatReply, *, n: int = 1, stream: bool = True, usage: bool = False
) -> Reply:
    fields: dict[str, Any] = {
        "model": "chat",
        "n": n,
        "stream": stream,
        "stream_options": {"include_usage": usage},
    }
    if kind is CompletionReply:
        return CompletionReply(CompletionRequest(prompt="Hi", **fields), "chat:3")
    return ChatReply(chat(**fields), "chat:3")


def chat(**fields: Any) -> ChatRequest:
    messages = [{"role": "user", "content": "Hi"}]
    return ChatRequest.model_validate({"model": "chat", "messages": messages, **fields})


def shape(stream: bytes) -> list[Any]:
    """(index, delta or text, finish reason) of every event with a choice."""
    return [
        (choice["index"], choice.get("delta", choice.get("text")), choice["finish_reason"])
        for choice in choices(stream)
    ]


def test_a_chat_stream_is_role_then_content_then_one_finish_then_done() -> None:
    r = reply()
    stream = r.feed([says("Hel"), says("lo")]) + r.feed([says("", "stop"), spent()]) + r.end()
    assert shape(stream) == [
        (0, {"role": "assistant", "content": ""}, None),
        (0, {"content": "Hel"}, None),
        (0, {"content": "lo"}, None),
        (0, {}, "stop"),
    ]
    assert stream.endswith(b"data: [DONE]\n\n")


def test_every_chunk_of_one_answer_carries_the_same_identity() -> None:
    r = reply(usage=True)
    stream = r.feed([says("a"), says("b", "length"), spent()]) + r.end()
    heads = {
        (c["id"], c["created"], c["model"], c["system_fingerprint"], c["object"])
        for c in chunks(stream)
        if c != "[DONE]"
    }
    assert heads == {(r.id, r.created, "chat", "chat:3", "chat.completion.chunk")}
    assert r.id.startswith("chatcmpl-")


def test_two_answers_have_two_ids() -> None:
    assert reply().id != reply().id


def test_text_and_finish_that_come_in_one_event_become_two() -> None:
    assert shape(reply().feed([says("Hello", "length")]))[1:] == [
        (0, {"content": "Hello"}, None),
        (0, {}, "length"),
    ]


def test_nothing_follows_a_finish_reason() -> None:
    r = reply()
    r.feed([says("a", "stop")])
    assert r.feed([says("b"), says("", "length")]) == b""
    late = Delta(0, "", reasoning="b", tools=[ToolDelta(0, "{}", "f", "x")])
    assert r.feed([EngineEvent([late])]) == b""


def test_an_empty_answer_still_has_its_role_and_its_finish() -> None:
    r = reply()
    assert shape(r.feed([says("", "stop"), spent()]) + r.end()) == [
        (0, {"role": "assistant", "content": ""}, None),
        (0, {}, "stop"),
    ]


def test_each_choice_opens_with_its_own_role_once() -> None:
    r = reply(n=2)
    stream = r.feed([says("a", index=1), says("b", index=0), says("c", "stop", index=1)])
    stream += r.feed([says("d", "stop"), spent()]) + r.end()
    roles = [index for index, delta, _ in shape(stream) if "role" in delta]
    assert sorted(roles) == [0, 1]
    assert [index for index, _, reason in shape(stream) if reason] == [1, 0]


def test_a_choice_nobody_asked_for_is_dropped() -> None:
    assert reply(n=1).feed([says("stray", index=1)]) == b""


def test_usage_comes_last_and_only_if_asked_with_null_before_it() -> None:
    r = reply(usage=True)
    *before, last, done = chunks(r.feed([says("a", "stop"), spent()]) + r.end())
    assert done == "[DONE]"
    assert last["choices"] == []
    assert last["usage"] == USAGE_JSON
    assert [chunk["usage"] for chunk in before] == [None] * len(before)


def test_without_asking_no_chunk_has_a_usage_key() -> None:
    r = reply()
    *events, _ = chunks(r.feed([says("a", "stop"), spent()]) + r.end())
    assert not any("usage" in event for event in events)


@pytest.mark.parametrize("kind", [ChatReply, CompletionReply])
@pytest.mark.parametrize("end", ["end", "whole"])
@pytest.mark.parametrize(
    ("events", "n"),
    [
        ([], 1),
        ([says("a"), spent()], 1),
        ([says("a", "stop")], 1),
        ([says("a", "stop"), spent()], 2),
    ],
    ids=["nothing", "no finish", "no usage", "one choice of two"],
)
def test_an_incomplete_answer_never_ends_as_if_it_were_complete(
    kind: type[ChunkReply], end: str, events: list[EngineEvent], n: int
) -> None:
    r = reply(kind, n=n, stream=end == "end")
    r.feed(events)
    with pytest.raises(ApiError) as caught:
        getattr(r, end)()
    assert caught.value.status == 502


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("said", "calls", "told"),
    [
        ("stop", True, "tool_calls"),  # vLLM, when the request named the function to call
        ("tool_calls", True, "tool_calls"),
        ("length", True, "length"),
        ("stop", False, "stop"),
        ("tool_calls", False, "stop"),
        ("length", False, "length"),
    ],
)
def test_the_finish_reason_is_tool_calls_just_when_there_are_calls_that_nothing_cut(
    said: FinishReason, calls: bool, told: str, stream: bool
) -> None:
    r = reply(stream=stream)
    piece = [ToolDelta(0, "{}", "f", "x")] if calls else []
    data = r.feed([EngineEvent([Delta(0, "", said, tools=piece)]), spent()])
    got = choices(data) if stream else json.loads(r.whole())["choices"]
    assert got[-1]["finish_reason"] == told


DELTAS = deltas(st.integers(0, 2), st.sampled_from([None, "x", "y"]))
EVENTS = st.lists(st.lists(DELTAS, max_size=3).map(EngineEvent), max_size=20)


@given(EVENTS)
def test_whatever_an_engine_sends_each_choice_is_role_then_parts_then_finish_then_silence(
    events: list[EngineEvent],
) -> None:
    said = shape(reply(n=2).feed(events))
    assert {index for index, _, _ in said} <= {0, 1}
    for index in (0, 1):
        mine = [(delta, reason) for i, delta, reason in said if i == index]
        if mine:
            assert mine[0] == ({"role": "assistant", "content": ""}, None)
        for delta, reason in mine[1:]:
            assert (delta == {}) == (reason is not None)
            assert set(delta) <= {"content", "reasoning_content", "tool_calls"}
            assert all(delta.values())
        assert [r is None for _, r in mine[:-1]] == [True] * (len(mine) - 1 if mine else 0)


def collected(events: list[Any], index: int) -> dict[str, Any]:
    """One choice of a chat stream, put together as an SDK does."""
    message: dict[str, Any] = {"content": "", "reasoning_content": "", "tool_calls": []}
    reason = None
    for at, delta, finish in events:
        if at != index:
            continue
        for part in ("content", "reasoning_content"):
            message[part] += delta.get(part, "")
        for piece in delta.get("tool_calls", []):
            if piece["index"] == len(message["tool_calls"]):
                message["tool_calls"].append({"id": piece["id"], "type": piece["type"]})
                message["tool_calls"][-1]["function"] = dict(piece["function"])
            else:
                assert set(piece) == {"index", "function"}
                assert set(piece["function"]) == {"arguments"}
                call = message["tool_calls"][piece["index"]]
                call["function"]["arguments"] += piece["function"]["arguments"]
        reason = reason or finish
    return {**message, "finish_reason": reason}


CLOSING = EngineEvent([Delta(0, "", "stop"), Delta(1, "", "stop")], USAGE)


@given(EVENTS, st.booleans())
def test_the_whole_reply_says_what_the_stream_says(events: list[EngineEvent], one: bool) -> None:
    wanted = {"n": 2, "parallel_tool_calls": not one}
    stream, whole = (ChatReply(chat(stream=way, **wanted), "chat:3") for way in (True, False))
    # A call whose id the engine does not say gets one from us, another each time.
    for event in events:
        for delta in event.deltas:
            for piece in delta.tools:
                piece.id = piece.id or "z"
    copies = [EngineEvent([Delta(**fields(d)) for d in event.deltas]) for event in events]
    told = shape(stream.feed([*events, CLOSING]) + stream.end())
    whole.feed([*copies, CLOSING])
    for choice in json.loads(whole.whole())["choices"]:
        message = choice["message"]
        assert collected(told, choice["index"]) == {
            "content": message["content"] or "",
            "reasoning_content": message.get("reasoning_content", ""),
            "tool_calls": message.get("tool_calls", []),
            "finish_reason": choice["finish_reason"],
        }
        assert len(message.get("tool_calls", [])) <= (1 if one else 3)


def fields(delta: Delta) -> dict[str, Any]:
    return {name: getattr(delta, name) for name in delta.__struct_fields__}


CALLS = [
    ("get_weather", '{"city": "Paris", "days": [1, 2]}'),
    ("get_time", '{"zone": "CET"}'),
    ("noop", ""),
]


@given(
    st.lists(st.lists(st.integers(0, 40), max_size=5), min_size=3, max_size=3),
    st.sampled_from([0, 1, 7]),
    st.booleans(),
)
def test_however_calls_are_cut_into_fragments_the_same_calls_come_out(
    cuts: list[list[int]], first: int, together: bool
) -> None:
    """Engines count calls from where they like, and send one or several fragments an event."""
    pieces: list[ToolDelta] = []
    for at, ((name, arguments), marks) in enumerate(zip(CALLS, cuts, strict=True)):
        edges = [0, *sorted(min(mark, len(arguments)) for mark in marks), len(arguments)]
        fragments = [arguments[a:b] for a, b in pairwise(edges)]
        pieces.append(ToolDelta(first + at, fragments[0], name, f"call_{at}"))
        pieces += [ToolDelta(first + at, fragment) for fragment in fragments[1:]]
    groups = [pieces] if together else [[piece] for piece in pieces]
    events = [EngineEvent([Delta(0, "", tools=group)]) for group in groups]
    r = reply()
    told = collected(shape(r.feed([*events, says("", "stop"), spent()]) + r.end()), 0)
    assert told["tool_calls"] == [
        {
            "id": f"call_{at}",
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }
        for at, (name, arguments) in enumerate(CALLS)
    ]
    assert told["finish_reason"] == "tool_calls"


@given(st.lists(st.sampled_from(["こ", "", "a\u0000b", '"', "\\", "\u2028", "💡"]), max_size=8))
def test_any_text_is_the_same_after_it_was_streamed(texts: list[str]) -> None:
    plain, verbose = reply(), ChatReply(chat(stream=True, logprobs=True), "chat:3")
    said = [says(text) for text in texts]
    noted = [EngineEvent([Delta(0, text, logprobs=[TokenLogprob("", 0.0)])]) for text in texts]
    for r, events in ((plain, said), (verbose, noted)):
        told = shape(r.feed([*events, says("", "stop"), spent()]) + r.end())
        assert collected(told, 0)["content"] == "".join(texts)
