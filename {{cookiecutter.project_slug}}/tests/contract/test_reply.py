"""The order and the completeness of a reply, whatever order the engine speaks in."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.contract.chat import ChatReply
from serving.contract.completions import CompletionReply
from serving.contract.errors import ApiError
from serving.contract.events import Delta, EngineEvent, FinishReason, Usage
from serving.contract.reply import Reply
from serving.contract.sse import EventReader

USAGE = Usage(3, 2, 5)


def reply(kind: type[Reply] = ChatReply, *, n: int = 1, stream: bool = True, usage: bool = False):  # type: ignore[no-untyped-def]
    return kind("chat", "chat:3", n=n, stream=stream, usage=usage)


def says(text: str, reason: FinishReason | None = None, index: int = 0) -> EngineEvent:
    return EngineEvent([Delta(index, text, reason)])


def spent() -> EngineEvent:
    return EngineEvent(usage=USAGE)


def chunks(stream: bytes) -> list[Any]:
    """The JSON of every event, and "[DONE]" as it is."""
    return [
        "[DONE]" if data == b"[DONE]" else json.loads(data) for data in EventReader().feed(stream)
    ]


def shape(stream: bytes) -> list[Any]:
    """(index, delta or text, finish reason) of every event with a choice."""
    return [
        (choice["index"], choice.get("delta", choice.get("text")), choice["finish_reason"])
        for chunk in chunks(stream)
        if chunk != "[DONE]"
        for choice in chunk["choices"]
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
    assert last["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
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
    kind: type[Reply], end: str, events: list[EngineEvent], n: int
) -> None:
    r = reply(kind, n=n, stream=end == "end")
    r.feed(events)
    with pytest.raises(ApiError) as caught:
        getattr(r, end)()
    assert caught.value.status == 502


def test_a_whole_chat_reply_has_all_fields_an_sdk_reads() -> None:
    r = reply(stream=False)
    assert r.feed([says("Hel"), says("lo", "stop"), spent()]) == b""
    body = json.loads(r.whole())
    assert body == {
        "id": r.id,
        "object": "chat.completion",
        "created": r.created,
        "model": "chat",
        "system_fingerprint": "chat:3",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello", "refusal": None},
                "finish_reason": "stop",
                "logprobs": None,
            }
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }


def test_a_completion_stream_has_text_and_no_role() -> None:
    r = reply(CompletionReply, usage=True)
    stream = r.feed([says("Hel"), says("lo", "length"), spent()]) + r.end()
    assert shape(stream) == [(0, "Hel", None), (0, "lo", None), (0, "", "length")]
    assert chunks(stream)[0]["object"] == "text_completion"
    assert chunks(stream)[0]["usage"] is None
    assert chunks(stream)[-2]["usage"]["total_tokens"] == 5


def test_a_whole_completion_keeps_the_choices_in_order() -> None:
    r = reply(CompletionReply, n=2, stream=False)
    r.feed([says("b", "stop", index=1), says("a", "length", index=0), spent()])
    body = json.loads(r.whole())
    assert [(c["index"], c["text"], c["finish_reason"]) for c in body["choices"]] == [
        (0, "a", "length"),
        (1, "b", "stop"),
    ]


DELTAS = st.builds(
    Delta,
    index=st.integers(0, 2),
    text=st.text(max_size=4),
    finish_reason=st.sampled_from([None, None, "stop", "length"]),
)


@given(st.lists(st.lists(DELTAS, max_size=3).map(EngineEvent), max_size=20))
def test_whatever_an_engine_sends_each_choice_is_role_content_finish_and_then_silence(
    events: list[EngineEvent],
) -> None:
    said = shape(reply(n=2).feed(events))
    for index in (0, 1):
        mine = [(delta, reason) for i, delta, reason in said if i == index]
        if mine:
            assert mine[0] == ({"role": "assistant", "content": ""}, None)
        assert all(set(delta) == {"content"} and delta["content"] for delta, r in mine[1:] if not r)
        assert [r is None for _, r in mine[:-1]] == [True] * (len(mine) - 1 if mine else 0)


@given(st.lists(st.lists(DELTAS, max_size=3).map(EngineEvent), max_size=20))
def test_the_whole_reply_says_what_the_stream_says(events: list[EngineEvent]) -> None:
    closing = EngineEvent([Delta(0, "", "stop"), Delta(1, "", "stop")], USAGE)
    streamed, whole = reply(n=2), reply(n=2, stream=False)
    stream = shape(streamed.feed([*events, closing]) + streamed.end())
    whole.feed([*events, closing])
    for choice in json.loads(whole.whole())["choices"]:
        mine = [(d, r) for i, d, r in stream if i == choice["index"]]
        assert "".join(d.get("content", "") for d, _ in mine) == choice["message"]["content"]
        assert mine[-1][1] == choice["finish_reason"]
