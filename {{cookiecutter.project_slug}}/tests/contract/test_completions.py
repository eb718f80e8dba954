"""What a text completion request may hold, and what its reply looks like."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import Completion
from pydantic import ValidationError
from replies import USAGE_JSON, chunks, says, spent, streamed, whole

from serving.contract.completions import CompletionReply, CompletionRequest
from serving.contract.errors import from_validation
from serving.contract.events import Delta, EngineEvent, FinishReason, TokenLogprob, TopLogprob


def parse(**fields: Any) -> CompletionRequest:
    return CompletionRequest.model_validate_json(
        json.dumps({"model": "chat", "prompt": "Hi", **fields})
    )


@pytest.mark.parametrize(
    ("fields", "limit"), [({}, 16), ({"max_tokens": 5}, 5), ({"max_tokens": None}, None)]
)
def test_sixteen_tokens_are_the_default_as_openai_has_it_and_null_lifts_it(
    fields: dict[str, Any], limit: int | None
) -> None:
    assert parse(**fields).token_limit == limit


@pytest.mark.parametrize("prompt", ["", None, 5, ["a", "b"], [1, 2]])
def test_a_prompt_is_one_text_that_is_not_empty(prompt: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        parse(prompt=prompt)
    assert from_validation(caught.value, CompletionRequest).param == "prompt"


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("messages", [], "unknown_field"),
        ("max_completion_tokens", 5, "unknown_field"),
        ("tools", [], "unknown_field"),
        ("response_format", {"type": "text"}, "unknown_field"),
        ("best_of", 2, "unsupported_by_engine"),
        ("suffix", "end", "unsupported_by_engine"),
        ("echo", "yes", "invalid_request"),
        ("logprobs", True, "invalid_request"),
        ("logprobs", 21, "invalid_request"),
    ],
)
def test_fields_of_chat_and_of_older_apis_are_refused_by_name(
    field: str, value: Any, code: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        parse(**{field: value})
    refusal = from_validation(caught.value, CompletionRequest)
    assert (refusal.status, refusal.code, refusal.param) == (400, code, field)


def test_a_list_of_one_prompt_is_a_prompt() -> None:
    assert parse(prompt=["Once"]).prompt == "Once"


@pytest.mark.parametrize(
    ("fields", "needs"),
    [
        ({}, []),
        ({"best_of": 1, "suffix": "", "logprobs": None, "echo": False}, []),
        ({"echo": True}, []),
        ({"logprobs": 0}, ["logprobs"]),
        ({"logprobs": 5, "echo": False}, ["logprobs"]),
        ({"logprobs": 0, "echo": True}, ["logprobs", "echo_logprobs"]),
    ],
    ids=str,
)
def test_an_echo_is_a_capability_only_with_the_probabilities_of_the_prompt(
    fields: dict[str, Any], needs: list[str]
) -> None:
    assert parse(**fields).needs == ["completions", *needs]


def reply(**fields: Any) -> CompletionReply:
    return CompletionReply(parse(**fields), "chat:3")


def test_a_stream_has_text_and_no_role() -> None:
    r = reply(stream=True, stream_options={"include_usage": True})
    *events, last, done = chunks(r.feed([says("Hel"), says("lo", "length"), spent()]) + r.end())
    assert [chunk["choices"] for chunk in events] == [
        [{"index": 0, "text": text, "finish_reason": reason, "logprobs": None}]
        for text, reason in (("Hel", None), ("lo", None), ("", "length"))
    ]
    assert {chunk["object"] for chunk in events} == {"text_completion"}
    assert {chunk["usage"] for chunk in events} == {None}
    assert (last["choices"], last["usage"], done) == ([], USAGE_JSON, "[DONE]")


def test_a_whole_completion_keeps_the_choices_in_order() -> None:
    told = whole(reply(n=2), says("b", "stop", index=1), says("a", "length", index=0))
    assert [(c["index"], c["text"], c["finish_reason"]) for c in told] == [
        (0, "a", "length"),
        (1, "b", "stop"),
    ]


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("stream", [True, False])
def test_each_choice_begins_with_its_echo_although_the_engine_says_none(
    n: int, stream: bool
) -> None:
    events = [says(" there", index=index) for index in reversed(range(n))]
    events += [says("!", "length", index=index) for index in range(n)]
    r = reply(prompt="Hello", echo=True, n=n, stream=stream)
    told = (streamed if stream else whole)(r, *events)
    for index in range(n):
        texts = [choice["text"] for choice in told if choice["index"] == index]
        assert "".join(texts) == "Hello there!"
        assert not stream or texts[0] == "Hello"


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_of_no_words_is_still_echoed(stream: bool) -> None:
    r = reply(prompt="Hello", echo=True, stream=stream)
    told = (streamed if stream else whole)(r, EngineEvent(), says("", "stop"))
    assert "".join(choice["text"] for choice in told) == "Hello"


def test_an_echo_waits_for_the_first_token() -> None:
    r = reply(prompt="Hello", echo=True, stream=True)
    assert r.feed([EngineEvent()]) == b""
    assert chunks(r.feed([says("!")]))[0]["choices"][0]["text"] == "Hello"


def test_an_echo_with_probabilities_is_said_by_the_engine_and_not_twice() -> None:
    r = reply(prompt="Hello", echo=True, logprobs=0)
    (choice,) = whole(r, event("Hello!", "length", ("Hello", None), ("!", -0.5)))
    assert choice["text"] == "Hello!"


def event(text: str, reason: FinishReason | None, *tokens: tuple[str, float | None]) -> EngineEvent:
    logprobs = [
        TokenLogprob(said, logprob, top_logprobs=[TopLogprob("x", -2.5)])
        for said, logprob in tokens
    ]
    return EngineEvent([Delta(0, text, reason, logprobs=logprobs)])


ECHOED = [
    event("The capital of", None, ("The", None), (" capital", -0.03), (" of", -0.25)),
    event(" Fran", None, (" Fran", -2.0)),
    event("ce", "length", ("ce", -0.5)),
]


def test_probabilities_are_lists_beside_each_other_with_the_place_of_each_token() -> None:
    (choice,) = whole(reply(echo=True, logprobs=1), *ECHOED)
    assert choice["logprobs"] == {
        "tokens": ["The", " capital", " of", " Fran", "ce"],
        "token_logprobs": [None, -0.03, -0.25, -2.0, -0.5],
        "top_logprobs": [None, *[{"x": -2.5}] * 4],
        "text_offset": [0, 3, 11, 14, 19],
    }


def test_the_places_count_on_over_the_events_of_a_stream() -> None:
    told = streamed(reply(echo=True, logprobs=1, stream=True), *ECHOED)
    assert [choice["logprobs"] and choice["logprobs"]["text_offset"] for choice in told] == [
        [0, 3, 11],
        [14],
        [19],
        None,
    ]
    assert told[1]["logprobs"] == {
        "tokens": [" Fran"],
        "token_logprobs": [-2.0],
        "top_logprobs": [{"x": -2.5}],
        "text_offset": [14],
    }


def test_each_choice_counts_its_own_places() -> None:
    tokens = [TokenLogprob("ab", -0.5)]
    events = [EngineEvent([Delta(i, "ab", logprobs=tokens)]) for i in (0, 1, 1, 0)]
    ends = [says("", "stop", index=index) for index in (0, 1)]
    told = streamed(reply(logprobs=0, n=2, stream=True), *events, *ends)
    assert [choice["logprobs"]["text_offset"] for choice in told[:4]] == [[0], [0], [2], [2]]


def test_without_asking_there_are_no_probabilities() -> None:
    (choice,) = whole(reply(), says("a", "stop"))
    assert choice["logprobs"] is None


@given(st.lists(st.lists(st.text(max_size=5), max_size=4), max_size=6))
def test_each_token_stands_at_its_place_however_the_tokens_share_events(
    groups: list[list[str]],
) -> None:
    events = [event("".join(group), None, *[(text, -0.5) for text in group]) for group in groups]
    (choice,) = whole(reply(logprobs=0), *events, says("", "stop"))
    got = choice["logprobs"]
    assert got["tokens"] == [text for group in groups for text in group]
    for text, place in zip(got["tokens"], got["text_offset"], strict=True):
        assert choice["text"][place : place + len(text)] == text


def test_the_sdk_reads_every_part_of_a_reply() -> None:
    r = reply(logprobs=1)
    r.feed([*ECHOED[1:], spent()])
    body = r.whole()
    read = Completion.model_validate_json(body, strict=True)
    assert read.model_dump(exclude_unset=True) == json.loads(body)
