"""What engines send, read into words no engine owns. Events named after an engine are its own
words: vLLM 0.32's and SGLang 0.5.21's."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.contract.errors import ApiError
from serving.contract.events import (
    CachedTokens,
    Delta,
    EngineEvent,
    ReasoningTokens,
    TokenLogprob,
    ToolDelta,
    TopLogprob,
    Usage,
)
from serving.engines.dialect import EngineRefused, StreamDecoder, VectorDecoder


def read(data: str | bytes) -> EngineEvent:
    return StreamDecoder().decode(data.encode() if isinstance(data, str) else data)


def event(**fields: Any) -> EngineEvent:
    return read(json.dumps(fields))


def choice(**fields: Any) -> list[Delta]:
    return event(choices=[{"index": 0, **fields}]).deltas


VLLM_OPENING = (
    '{"id":"chatcmpl-8","object":"chat.completion.chunk","created":1795469814,"model":"model",'
    '"choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,'
    '"finish_reason":null}],"prompt_token_ids":null,"prompt_text":null}'
)
SGLANG_OPENING = (
    '{"id":"199c","object":"chat.completion.chunk","created":1795470629,"model":"model",'
    '"choices":[{"index":0,"delta":{"reasoning_content":null,"role":"assistant","content":""},'
    '"logprobs":null,"finish_reason":null,"matched_stop":null}]}'
)
SGLANG_WORD = (
    '{"id":"dcc5","object":"chat.completion.chunk","created":1795470785,"model":"model",'
    '"choices":[{"index":0,"delta":{"role":null,"content":"The","reasoning_content":null,'
    '"tool_calls":null},"logprobs":null,"finish_reason":null,"matched_stop":null}],"usage":null}'
)
VLLM_END = (
    '{"id":"chatcmpl-8","object":"chat.completion.chunk","created":1795469814,"model":"model",'
    '"choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop","stop_reason":null,'
    '"token_ids":null}]}'
)


@pytest.mark.parametrize("data", [VLLM_OPENING, SGLANG_OPENING], ids=["vllm", "sglang"])
def test_an_opening_that_says_only_the_role_says_nothing(data: str) -> None:
    assert read(data) == EngineEvent()


def test_chat_and_text_events_become_deltas() -> None:
    assert read(SGLANG_WORD) == EngineEvent([Delta(0, "The")])
    assert event(choices=[{"index": 1, "delta": {"content": "a"}}]).deltas == [Delta(1, "a")]
    assert event(choices=[{"index": 0, "text": "b"}]).deltas == [Delta(0, "b")]
    assert event(choices=[{"text": "b"}]).deltas == [Delta(0, "b")]


def test_several_choices_may_share_an_event() -> None:
    both = [{"index": index, "delta": {"content": text}} for index, text in ((1, "b"), (0, "a"))]
    assert event(choices=both).deltas == [Delta(1, "b"), Delta(0, "a")]


def test_what_only_one_engine_says_is_left_out() -> None:
    only = {"stop_reason": 2, "matched_stop": 2, "token_ids": [5], "routed_experts": None}
    said: dict[str, Any] = {"role": "assistant", "content": "a", "annotations": []}
    got = event(id="x", metadata={"a": 1}, metrics={}, choices=[{"delta": said, **only}])
    assert got == EngineEvent([Delta(0, "a")])


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("tool_calls", "tool_calls"),
        ("function_call", "tool_calls"),
    ],
)
def test_a_finish_reason_is_told_in_the_contracts_words(said: str, told: str) -> None:
    (delta,) = choice(delta={}, finish_reason=said)
    assert (delta.text, delta.finish_reason) == ("", told)
    assert read(VLLM_END).deltas == [Delta(0, "", "stop")]


@pytest.mark.parametrize("reason", ["abort", "error", "eaten", ""])
def test_an_answer_that_stopped_without_finishing_is_an_error(reason: str) -> None:
    with pytest.raises(ApiError) as failure:
        choice(delta={}, finish_reason=reason)
    assert (failure.value.status, failure.value.code) == (502, "engine_error")


def test_the_end_mark_is_no_text() -> None:
    assert read("[DONE]") == EngineEvent(done=True)


VLLM_THOUGHT = (
    '{"id":"chatcmpl-8","object":"chat.completion.chunk","created":1795469814,"model":"model",'
    '"choices":[{"index":0,"delta":{"reasoning":"Hello"},"logprobs":null,"finish_reason":null,'
    '"token_ids":null}]}'
)


def test_thoughts_are_read_under_either_name() -> None:
    assert read(VLLM_THOUGHT).deltas == [Delta(0, "", reasoning="Hello")]
    assert choice(delta={"reasoning_content": "Hm", "content": None}) == [
        Delta(0, "", reasoning="Hm")
    ]
    both = choice(delta={"reasoning_content": "Hm", "reasoning": "Hm", "content": "So"})
    assert both == [Delta(0, "So", reasoning="Hm")]


VLLM_CALL = (
    '{"id":"chatcmpl-a","object":"chat.completion.chunk","created":1795468724,"model":"model",'
    '"choices":[{"index":0,"delta":{"content":null,"tool_calls":[{"id":'
    '"chatcmpl-tool-a092fe464f0c623f","type":"function","index":0,"function":{"name":'
    '"get_weather"}}]},"logprobs":null,"finish_reason":null,"token_ids":null}]}'
)
VLLM_ARGUMENTS = (
    '{"id":"chatcmpl-a","object":"chat.completion.chunk","created":1795468724,"model":"model",'
    '"choices":[{"index":0,"delta":{"content":null,"tool_calls":[{"index":0,"function":'
    '{"arguments":"ru"}}]},"logprobs":null,"finish_reason":null,"token_ids":null}]}'
)
SGLANG_CALL = (
    '{"id":"0db5","object":"chat.completion.chunk","created":1795470792,"model":"model",'
    '"choices":[{"index":0,"delta":{"role":null,"content":null,"reasoning_content":null,'
    '"tool_calls":[{"id":"call_ebbb00352eda4fb2b09ff80d","index":0,"type":"function","function":'
    '{"name":"get_weather","arguments":""}}]},"logprobs":null,"finish_reason":null,'
    '"matched_stop":null}],"usage":null}'
)
SGLANG_ARGUMENTS = (
    '{"id":"0db5","object":"chat.completion.chunk","created":1795470794,"model":"model",'
    '"choices":[{"index":0,"delta":{"role":null,"content":null,"reasoning_content":null,'
    '"tool_calls":[{"id":null,"index":0,"type":"function","function":{"name":null,'
    '"arguments":"\\":"}}]},"logprobs":null,"finish_reason":null,"matched_stop":null}],"usage":null}'
)


@pytest.mark.parametrize(
    ("data", "piece"),
    [
        (VLLM_CALL, ToolDelta(0, "", "get_weather", "chatcmpl-tool-a092fe464f0c623f")),
        (VLLM_ARGUMENTS, ToolDelta(0, "ru")),
        (SGLANG_CALL, ToolDelta(0, "", "get_weather", "call_ebbb00352eda4fb2b09ff80d")),
        (SGLANG_ARGUMENTS, ToolDelta(0, '":')),
    ],
    ids=["vllm's first", "vllm's next", "sglang's first", "sglang's next"],
)
def test_a_piece_of_a_call_is_read_as_either_engine_sends_it(data: str, piece: ToolDelta) -> None:
    assert read(data).deltas == [Delta(0, "", tools=[piece])]


def test_whole_calls_in_one_event_are_counted_by_their_place_unless_they_count_themselves() -> None:
    calls = [{"id": name, "function": {"name": name, "arguments": "{}"}} for name in "ab"]
    (delta,) = choice(delta={"tool_calls": calls})
    assert delta.tools == [ToolDelta(0, "{}", "a", "a"), ToolDelta(1, "{}", "b", "b")]
    (delta,) = choice(delta={"tool_calls": [{"index": 4, "function": None}, {"index": 0}]})
    assert [piece.call for piece in delta.tools] == [4, 0]


VLLM_HALF = (
    '{"id":"chatcmpl-9","object":"chat.completion.chunk","created":1795468163,"model":"model",'
    '"choices":[{"index":0,"delta":{},"logprobs":{"content":[{"token":"","logprob":-0.0007,'
    '"bytes":[],"top_logprobs":[{"token":"","logprob":-0.0007,"bytes":[]},{"token":" am",'
    '"logprob":-8.8,"bytes":[32,97,109]}]}]},"finish_reason":null,"token_ids":null}]}'
)
SGLANG_HALF = (
    '{"id":"199c","object":"chat.completion.chunk","created":1795470629,"model":"model",'
    '"choices":[{"index":0,"delta":{"reasoning_content":null},"logprobs":{"content":[{"token":'
    '"\ufffd","bytes":[227],"logprob":-0.0007,"top_logprobs":[{"token":"\ufffd","bytes":[227],'
    '"logprob":-0.0007},{"token":" am","bytes":[32,97,109],"logprob":-8.8}]}]},'
    '"finish_reason":null,"matched_stop":null}]}'
)


@pytest.mark.parametrize(
    ("data", "token", "given_bytes"),
    [(VLLM_HALF, "", []), (SGLANG_HALF, "\ufffd", [227])],
    ids=["vllm", "sglang"],
)
def test_the_probability_of_half_a_character_is_read_although_it_has_no_text(
    data: str, token: str, given_bytes: list[int]
) -> None:
    rivals = [
        TopLogprob(token, -0.0007, given_bytes),
        TopLogprob(" am", -8.8, [32, 97, 109]),
    ]
    logprob = TokenLogprob(token, -0.0007, given_bytes, rivals)
    assert read(data).deltas == [Delta(0, "", logprobs=[logprob])]


@given(st.text(), st.text())
def test_bytes_an_engine_leaves_out_are_those_of_the_text(token: str, rival: str) -> None:
    said = {
        "token": token,
        "logprob": -1.5,
        "top_logprobs": [{"token": rival, "logprob": -2.5, "bytes": None}],
    }
    (delta,) = choice(delta={"content": "a"}, logprobs={"content": [said]})
    (got,) = delta.logprobs
    assert bytes(got.bytes or []) == token.encode()
    assert bytes(got.top_logprobs[0].bytes or []) == rival.encode()


VLLM_ECHO = (
    '{"id":"cmpl-a","object":"text_completion","created":1795468191,"model":"model","choices":'
    '[{"index":0,"text":"The capital of Ch","logprobs":{"text_offset":[0,3,11,14],'
    '"token_logprobs":[null,-0.03,-0.25,-2.2],"tokens":["The"," capital"," of"," Ch"],'
    '"top_logprobs":[null,{" capital":-0.03},{" of":-0.25},{" Ch":-2.2," R":-2.0}]},'
    '"finish_reason":"length","stop_reason":null,"prompt_token_ids":[302,291,276],'
    '"token_ids":null}]}'
)
SGLANG_ECHO = (
    '{"id":"29db","object":"text_completion","created":1795470637,"model":"model","choices":'
    '[{"index":0,"text":"The capital of Ch","logprobs":{"text_offset":[-1,-1,-1,-1],'
    '"token_logprobs":[null,-0.03,-0.25,-2.2],"tokens":["The"," capital"," of"," Ch"],'
    '"top_logprobs":[null,{" capital":-0.03},{" of":-0.25},{" Ch":-2.2," R":-2.0}]},'
    '"finish_reason":"length","matched_stop":null}],"usage":null}'
)


@pytest.mark.parametrize("data", [VLLM_ECHO, SGLANG_ECHO], ids=["vllm", "sglang"])
def test_the_older_shape_of_probabilities_is_read_token_by_token(data: str) -> None:
    (delta,) = read(data).deltas
    assert (delta.text, delta.finish_reason) == ("The capital of Ch", "length")
    assert delta.logprobs == [
        TokenLogprob("The", None),
        TokenLogprob(" capital", -0.03, top_logprobs=[TopLogprob(" capital", -0.03)]),
        TokenLogprob(" of", -0.25, top_logprobs=[TopLogprob(" of", -0.25)]),
        TokenLogprob(" Ch", -2.2, top_logprobs=[TopLogprob(" Ch", -2.2), TopLogprob(" R", -2.0)]),
    ]


@pytest.mark.parametrize("tops", [{}, {"top_logprobs": None}, {"top_logprobs": []}], ids=str)
def test_the_older_shape_may_name_no_rivals(tops: dict[str, Any]) -> None:
    (delta,) = choice(
        text="ab", logprobs={"tokens": ["a", "b"], "token_logprobs": [-1, -2], **tops}
    )
    assert delta.logprobs == [TokenLogprob("a", -1), TokenLogprob("b", -2)]


@pytest.mark.parametrize("logprobs", [{}, {"content": None}, {"content": []}, {"tokens": None}])
def test_empty_probabilities_are_none(logprobs: dict[str, Any]) -> None:
    assert choice(delta={"content": "a"}, logprobs=logprobs) == [Delta(0, "a")]


VLLM_USAGE = (
    '{"id":"chatcmpl-8","object":"chat.completion.chunk","created":1795469814,"model":"model",'
    '"choices":[],"usage":{"prompt_tokens":4,"total_tokens":13,"completion_tokens":9,'
    '"prompt_tokens_details":{"cached_tokens":2,"created_cache_tokens":0},'
    '"completion_tokens_details":{"reasoning_tokens":0}},"system_fingerprint":"vllm-0.32.0-f21e"}'
)
SGLANG_USAGE = (
    '{"id":"45cc","object":"text_completion","created":1795470637,"model":"model","choices":[],'
    '"usage":{"prompt_tokens":3,"total_tokens":4,"completion_tokens":1,"prompt_tokens_details":'
    '{"cached_tokens":2},"reasoning_tokens":0}}'
)


@pytest.mark.parametrize(
    ("data", "usage"),
    [
        (VLLM_USAGE, Usage(4, 9, 13, CachedTokens(2))),
        (SGLANG_USAGE, Usage(3, 1, 4, CachedTokens(2))),
    ],
    ids=["vllm", "sglang"],
)
def test_usage_is_read_with_what_was_cached(data: str, usage: Usage) -> None:
    assert read(data) == EngineEvent(usage=usage)


@pytest.mark.parametrize(
    "details", [{}, {"prompt_tokens_details": None}, {"prompt_tokens_details": {}}], ids=str
)
def test_where_an_engine_says_nothing_of_its_cache_nothing_was_cached(
    details: dict[str, Any],
) -> None:
    spent = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3, **details}
    assert event(choices=[], usage=spent).usage == Usage(1, 2, 3, CachedTokens(0))
    cached = {**spent, "prompt_tokens_details": {"cached_tokens": None}}
    assert event(choices=[], usage=cached).usage == Usage(1, 2, 3, CachedTokens(0))


def test_usage_may_come_with_the_last_words() -> None:
    got = event(
        choices=[{"delta": {"content": "a"}, "finish_reason": "stop"}],
        usage={"prompt_tokens": 1, "completion_tokens": None},
    )
    assert got == EngineEvent([Delta(0, "a", "stop")], Usage(1, 0, 1))


@pytest.mark.parametrize(
    ("told", "reasoned"),
    [
        ({}, 2),
        ({"reasoning_tokens": 0}, 2),  # SGLang's, not counted
        ({"reasoning_tokens": 3}, 3),
        ({"completion_tokens_details": {"reasoning_tokens": 4}}, 4),
        ({"completion_tokens_details": {"reasoning_tokens": None}}, 2),
        ({"completion_tokens_details": None, "reasoning_tokens": None}, 2),
        ({"completion_tokens_details": {"reasoning_tokens": 99}}, 5),
    ],
    ids=str,
)
def test_thoughts_are_counted_by_the_engine_or_else_by_their_pieces(
    told: dict[str, Any], reasoned: int
) -> None:
    decoder = StreamDecoder()
    for delta in ({"reasoning": "Hm"}, {"reasoning_content": "\n"}, {"content": "Yes"}):
        decoder.decode(json.dumps({"choices": [{"delta": delta}]}).encode())
    usage = {"prompt_tokens": 1, "completion_tokens": 5, **told}
    got = decoder.decode(json.dumps({"choices": [], "usage": usage}).encode()).usage
    assert got == Usage(1, 5, 6, completion_tokens_details=ReasoningTokens(reasoned))


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": -1},
        {"prompt_tokens": 1, "completion_tokens": 2**31},
        {"prompt_tokens": 1, "reasoning_tokens": -1},
        {"prompt_tokens": 1, "prompt_tokens_details": {"cached_tokens": 10**30}},
        {"completion_tokens": 1},
    ],
    ids=str,
)
def test_a_count_that_no_ledger_holds_is_garbled(usage: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as failure:
        event(choices=[], usage=usage)
    assert failure.value.code == "engine_error"


def counting(*events: tuple[int, int]) -> StreamDecoder:
    """What has read one event for each choice and what that one has taken."""
    decoder = StreamDecoder(counts_on=True)
    for index, taken in events:
        usage = {"prompt_tokens": 7, "completion_tokens": taken, "total_tokens": 7 + taken}
        said = {"choices": [{"index": index, "delta": {"content": "a"}}], "usage": usage}
        assert decoder.decode(json.dumps(said).encode()) == EngineEvent([Delta(index, "a")])
    return decoder


def test_what_was_counted_so_far_is_known_while_an_answer_comes() -> None:
    assert counting().counted() is None
    assert counting((0, 0)).counted() == Usage(7, 0, 7)
    assert counting((0, 1), (0, 4)).counted() == Usage(7, 4, 11)


def test_choices_count_their_own_tokens_after_one_prompt() -> None:
    assert counting((0, 1), (1, 2), (0, 3), (1, 3)).counted() == Usage(7, 6, 13)


def test_the_count_of_the_whole_answer_comes_alone() -> None:
    decoder = counting((0, 1), (1, 1))
    usage = {"prompt_tokens": 7, "completion_tokens": 9, "total_tokens": 16}
    got = decoder.decode(json.dumps({"choices": [], "usage": usage}).encode())
    assert got == EngineEvent(usage=Usage(7, 9, 16))


VLLM_REFUSES = (
    '{"error": {"message": "Grammar error: Invalid type: banana", "type": "BadRequestError",'
    ' "param": null, "code": 400}}'
)
SGLANG_REFUSES = (
    '{"error": {"object": "error", "message": "Failed to compile json grammar: [21:52:25]'
    ' /project/cpp/json_schema_converter.cc:2999: Unsupported type \\"banana\\"\\n",'
    ' "type": "BAD_REQUEST", "param": null, "code": 400}}'
)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (VLLM_REFUSES, 400),
        (SGLANG_REFUSES, 400),
        ('{"error": {"message": "CUDA error", "code": 500}}', 500),
        ('{"error": {"message": "busy", "code": 503}, "choices": []}', 503),
        ('{"error": {"message": "no code"}}', 500),
        ('{"error": {"code": "internal_error"}}', 500),
        ('{"error": {"code": 7}}', 500),
        ('{"error": "Unauthorized"}', 500),
        ('{"error": ["a"]}', 500),
    ],
    ids=["vllm", "sglang", "500", "503", "no code", "a name", "no status", "a text", "a list"],
)
def test_an_error_within_a_stream_keeps_its_status_and_its_words_for_the_engines_module(
    data: str, status: int
) -> None:
    with pytest.raises(EngineRefused) as caught:
        read(data)
    assert (caught.value.status, caught.value.body) == (status, data.encode())
    assert str(status) in str(caught.value)
    assert "banana" not in str(caught.value)


def test_no_error_is_no_error() -> None:
    assert event(error=None, choices=[{"delta": {"content": "a"}}]).deltas == [Delta(0, "a")]


@pytest.mark.parametrize(
    "data",
    [
        b"not json",
        b"[]",
        b'{"choices": {}}',
        b'{"choices": null}',
        b'{"choices": [{"index": "0"}]}',
        b'{"choices": [{"delta": {"content": 5}}]}',
        b'{"choices": [{"delta": {"tool_calls": {}}}]}',
        b'{"choices": [{"delta": {"tool_calls": [{"function": {"arguments": {}}}]}}]}',
        b'{"choices": [{"text": "a", "logprobs": {"content": [{"token": "a"}]}}]}',
        b'{"choices": [{"text": "a", "logprobs": {"content": [{"token": 5, "logprob": 0}]}}]}',
        b'{"usage": {"completion_tokens": 1}}',
        b"\xff\xfe",
        b"",
    ],
)
def test_garbage_is_an_engine_error_that_repeats_none_of_it(data: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        read(data)
    assert (caught.value.status, caught.value.code) == (502, "engine_error")
    assert caught.value.message == "The engine sent a garbled event; ask again."


WORDS = st.sampled_from(
    ["choices", "index", "delta", "text", "content", "finish_reason", "tool_calls", "function"]
) | st.sampled_from(
    ["arguments", "logprobs", "tokens", "token_logprobs", "usage", "prompt_tokens", "error"]
)
VALUES = st.none() | st.booleans() | st.integers(-2, 600) | st.sampled_from(["", "a", "stop"])


@given(
    st.dictionaries(
        WORDS,
        st.recursive(
            VALUES,
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
        ),
    )
)
def test_whatever_an_engine_sends_is_read_or_one_of_two_errors(said: dict[str, Any]) -> None:
    got, status = EngineEvent(), 200
    try:
        got = read(json.dumps(said))
    except ApiError as error:
        status = error.status
    except EngineRefused as refused:
        status = refused.status
    assert status == 200 or 400 <= status < 600
    assert all(not delta.plain or delta.text or delta.finish_reason for delta in got.deltas)


def vectors(*given: tuple[int, list[float]], usage: dict[str, Any] | None = None) -> bytes:
    data = [{"index": at, "object": "embedding", "embedding": row} for at, row in given]
    spent = {
        "prompt_tokens": 12,
        "total_tokens": 12,
        "completion_tokens": 0,
        "prompt_tokens_details": None,
        "completion_tokens_details": None,
    }
    body = {"id": "embd-b0", "object": "list", "model": "model", "data": data}
    return json.dumps({**body, "usage": spent if usage is None else usage}).encode()


def test_vectors_come_in_the_order_of_the_inputs_as_little_endian_float32() -> None:
    got = VectorDecoder().decode(vectors((1, [0.5, -2.0]), (0, [1, 0.1])))
    assert got == EngineEvent(
        usage=Usage(12, 0, 12),
        done=True,
        vectors=[struct.pack("<2f", 1, 0.1), struct.pack("<2f", 0.5, -2.0)],
    )


def test_an_embedding_server_may_count_only_the_prompt() -> None:
    got = VectorDecoder().decode(vectors((0, [1.0]), usage={"prompt_tokens": 3, "total_tokens": 3}))
    assert got.usage == Usage(3, 0, 3)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not json",
        b"[]",
        b'{"data": []}',
        b'{"error": {"message": "no", "code": 400}}',
        b'{"data": [{"index": 0, "embedding": "AACAPw=="}], "usage": {"prompt_tokens": 1}}',
        b'{"data": [{"embedding": [1]}], "usage": {"prompt_tokens": 1}}',
        b'{"data": [{"index": 0, "embedding": [null]}], "usage": {"prompt_tokens": 1}}',
    ],
)
def test_an_answer_without_vectors_is_an_engine_error(data: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        VectorDecoder().decode(data)
    assert (caught.value.status, caught.value.code) == (502, "engine_error")


def test_blank_lines_around_a_thought_are_no_part_of_it_or_of_the_answer() -> None:
    decoder = StreamDecoder()
    pieces = [
        {"reasoning_content": "\n"},
        {"reasoning_content": "I add"},
        {"reasoning_content": " them.\n"},
        {"reasoning_content": "\nDone.\n"},
        {"content": "\n\n"},
        {"content": "12"},
        {"content": "\n\nYes."},
    ]
    deltas = [
        delta
        for piece in pieces
        for delta in decoder.decode(
            json.dumps({"choices": [{"index": 0, "delta": piece}]}).encode()
        ).deltas
    ]
    assert "".join(delta.reasoning for delta in deltas) == "I add them.\n\nDone."
    assert "".join(delta.text for delta in deltas) == "12\n\nYes."
