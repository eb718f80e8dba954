"""What a chat request may hold, and what its reply looks like."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import ValidationError
from replies import USAGE_JSON, chunks, says, spent, streamed, whole

from serving.contract.chat import TAKEN_VARIABLES, ChatReply, ChatRequest
from serving.contract.errors import ApiError, from_validation
from serving.contract.events import (
    Delta,
    EngineEvent,
    FinishReason,
    TokenLogprob,
    ToolDelta,
    TopLogprob,
)


def parse(**fields: Any) -> ChatRequest:
    body = {"model": "chat", "messages": [{"role": "user", "content": "Hi"}], **fields}
    return ChatRequest.model_validate_json(json.dumps(body))


def refusal(**fields: Any) -> ApiError:
    with pytest.raises(ValidationError) as caught:
        parse(**fields)
    return from_validation(caught.value, ChatRequest)


@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        ({}, None),
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 7}, 7),
        ({"max_tokens": 5, "max_completion_tokens": 7}, 7),
        ({"max_tokens": None}, None),
    ],
)
def test_the_newer_name_of_the_token_limit_wins(fields: dict[str, Any], limit: int | None) -> None:
    assert parse(**fields).token_limit == limit


@pytest.mark.parametrize(
    "fields",
    [
        {"audio": {"voice": "alloy", "format": "wav"}},
        {"function_call": {"name": "f"}},
        {"functions": [{"name": "f"}]},
        {"modalities": ["text", "audio"]},
        {"prediction": {"type": "content", "content": "a"}},
        {"verbosity": "low"},
        {"web_search_options": {}},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_what_the_contract_does_not_offer_is_refused_and_not_ignored(
    fields: dict[str, Any],
) -> None:
    error = refusal(**fields)
    assert (error.code, error.param) == ("unsupported_by_engine", next(iter(fields)))
    assert set(fields) <= set(ChatRequest.NOT_OFFERED)


TOOLS = [{"type": "function", "function": {"name": "f"}}]


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_object"}},
        {"tools": TOOLS},
        {"tools": TOOLS, "tool_choice": "required"},
    ],
)
def test_an_answer_with_a_form_of_its_own_has_its_own_end(fields: dict[str, Any]) -> None:
    error = refusal(ignore_eos=True, **fields)
    assert (error.status, error.param) == (400, "ignore_eos")
    assert parse(ignore_eos=False, **fields).needs == ["chat", *fields]


@pytest.mark.parametrize(
    "fields",
    [{"response_format": {"type": "text"}}, {"tools": []}, {"tools": TOOLS, "tool_choice": "none"}],
)
def test_one_that_is_free_may_go_on_to_its_limit(fields: dict[str, Any]) -> None:
    assert parse(ignore_eos=True, max_tokens=5, **fields).needs == ["chat", "ignore_eos"]


def test_fields_that_ask_for_nothing_are_accepted() -> None:
    """What popular clients send whether they use it or not."""
    request = parse(
        n=None,
        stream=None,
        stream_options={"include_usage": None},
        tools=[],
        tool_choice="auto",
        parallel_tool_calls=True,
        functions=None,
        function_call="auto",
        response_format={"type": "text"},
        modalities=["text"],
        reasoning_effort=None,
        chat_template_kwargs={},
        logit_bias={},
        logprobs=False,
        top_logprobs=None,
        top_k=-1,
        priority=0,
        seed=-1,
        store=False,
        metadata={"team": "search"},
        service_tier="auto",
        safety_identifier="abc",
        prompt_cache_key="abc",
    )
    assert request.asked() == {"seed": -1}


@pytest.mark.parametrize(
    "fields",
    [
        {"logprobs": True},
        {"reasoning_effort": "none"},
        {"reasoning_effort": "xhigh"},
        {"chat_template_kwargs": {"enable_thinking": False, "depth": 3, "share": 0.5, "as": "x"}},
        {"logit_bias": {"0": -100, "999999999": 0.5}},
        {"priority": -7},
    ],
    ids=str,
)
def test_a_field_that_not_every_engine_has_is_asked_of_the_engine(fields: dict[str, Any]) -> None:
    request = parse(**fields)
    assert request.asked() == fields
    assert request.needs == ["chat", *fields]


def test_rivals_are_named_only_beside_probabilities() -> None:
    error = refusal(top_logprobs=2)
    assert (error.status, error.param) == (400, "top_logprobs")
    assert "logprobs: true" in error.message
    assert refusal(top_logprobs=2, logprobs=False).param == "top_logprobs"
    assert refusal(top_logprobs=21, logprobs=True).param == "top_logprobs"
    assert parse(top_logprobs=0).asked() == {}
    assert parse(top_logprobs=20, logprobs=True).asked() == {"logprobs": True}


@pytest.mark.parametrize("name", sorted(TAKEN_VARIABLES))
def test_the_templates_own_variables_are_not_the_clients_to_set(name: str) -> None:
    error = refusal(chat_template_kwargs={"fine": 1, name: 1})
    assert (error.status, error.param) == (400, f"chat_template_kwargs.{name}")


@pytest.mark.parametrize("name", ["", "Upper", "a b", "_private", "__class__", "a.b", "x" * 65])
def test_a_template_variable_is_a_plain_name(name: str) -> None:
    error = refusal(chat_template_kwargs={name: 1})
    assert (error.status, error.param) == (400, f"chat_template_kwargs.{name}")


@pytest.mark.parametrize("value", [None, [1], {"a": 1}])
def test_a_template_variable_has_a_plain_value(value: Any) -> None:
    error = refusal(chat_template_kwargs={"x": value})
    assert (error.status, error.param) == (400, "chat_template_kwargs.x")


def test_usage_is_included_only_when_the_stream_options_say_so() -> None:
    assert not parse().include_usage
    assert not parse(stream_options={}).include_usage
    assert not parse(stream_options=None).include_usage
    assert parse(stream_options={"include_usage": True}).include_usage


def reply(**fields: Any) -> ChatReply:
    return ChatReply(parse(**fields), "chat:3")


def event(text: str = "", reason: FinishReason | None = None, **said: Any) -> EngineEvent:
    return EngineEvent([Delta(0, text, reason, **said)])


def call(number: int, arguments: str = "", **said: Any) -> EngineEvent:
    return event(tools=[ToolDelta(number, arguments, **said)])


WEATHER = [
    call(0, name="get_weather", id="call_1"),
    call(0, '{"city": '),
    call(0, '"Paris"}'),
    event("", "tool_calls"),
]


def test_a_whole_reply_has_all_fields_an_sdk_reads() -> None:
    r = reply()
    assert r.feed([says("Hel"), says("lo", "stop"), spent()]) == b""
    assert json.loads(r.whole()) == {
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
        "usage": USAGE_JSON,
    }


def test_thoughts_stream_after_the_role_and_before_the_words() -> None:
    told = streamed(
        reply(stream=True),
        event(reasoning="France,"),
        event(reasoning=" so"),
        says("Paris", "stop"),
    )
    assert [choice["delta"] for choice in told] == [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "France,"},
        {"reasoning_content": " so"},
        {"content": "Paris"},
        {},
    ]
    assert [choice["finish_reason"] for choice in told] == [None] * 4 + ["stop"]


def test_a_whole_reply_keeps_thoughts_and_words_apart() -> None:
    (choice,) = whole(
        reply(), event(reasoning="So"), event("Pa", reasoning="!"), says("ris", "stop")
    )
    assert choice["message"] == {
        "role": "assistant",
        "content": "Paris",
        "refusal": None,
        "reasoning_content": "So!",
    }


def test_thoughts_that_used_up_the_answer_leave_empty_words() -> None:
    (choice,) = whole(reply(), event(reasoning="So"), says("", "length"))
    assert (choice["message"]["content"], choice["finish_reason"]) == ("", "length")


def test_a_calls_first_event_has_its_id_type_and_name_and_each_has_arguments() -> None:
    told = streamed(reply(stream=True), *WEATHER)
    assert [choice["delta"] for choice in told] == [
        {"role": "assistant", "content": ""},
        {
            "tool_calls": [
                {
                    "index": 0,
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "get_weather", "arguments": ""},
                }
            ]
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"city": '}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '"Paris"}'}}]},
        {},
    ]
    assert told[-1]["finish_reason"] == "tool_calls"


def test_an_answer_that_is_nothing_but_calls_has_null_for_its_words() -> None:
    (choice,) = whole(reply(), *WEATHER)
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
            }
        ],
    }
    assert choice["finish_reason"] == "tool_calls"


def test_words_before_a_call_stay() -> None:
    (choice,) = whole(reply(), says("I look."), *WEATHER)
    assert choice["message"]["content"] == "I look."
    assert len(choice["message"]["tool_calls"]) == 1


def test_a_call_without_an_id_gets_one_of_its_own() -> None:
    events = [call(0, "{}", name="f"), call(1, "{}", name="g"), event("", "tool_calls")]
    (choice,) = whole(reply(), *events)
    ids = [made["id"] for made in choice["message"]["tool_calls"]]
    assert all(made.startswith("call_") for made in ids)
    assert len(set(ids)) == 2


def test_calls_are_numbered_as_they_come_whatever_the_engine_counts_from() -> None:
    events = [call(3, "{", name="f", id="a"), call(5, "{}", name="g", id="b"), call(3, "}")]
    told = streamed(reply(stream=True), *events, event("", "tool_calls"))
    pieces = [choice["delta"]["tool_calls"][0] for choice in told[1:-1]]
    assert [(piece["index"], piece["function"]["arguments"]) for piece in pieces] == [
        (0, "{"),
        (1, "{}"),
        (0, "}"),
    ]


@pytest.mark.parametrize("stream", [True, False])
def test_when_one_call_is_wanted_the_first_passes_and_no_trace_of_the_others(
    stream: bool,
) -> None:
    both = event(tools=[ToolDelta(2, "{", "f", "a"), ToolDelta(3, "{", "g", "b")])
    later = [call(3, "}"), call(2, "}"), call(4, "{}", name="h", id="c"), event("", "stop")]
    wanted = reply(stream=stream, parallel_tool_calls=False)
    if stream:
        told = streamed(wanted, both, *later)
        pieces = [piece for choice in told for piece in choice["delta"].get("tool_calls", [])]
        assert [piece["function"]["arguments"] for piece in pieces] == ["{", "}"]
        assert pieces[0]["id"] == "a"
        assert [choice["delta"] for choice in told].count({}) == 1  # the finish
    else:
        (told_whole,) = whole(wanted, both, *later)
        (made,) = told_whole["message"]["tool_calls"]
        assert made["function"] == {"name": "f", "arguments": "{}"}


def token(text: str, *rivals: str) -> TokenLogprob:
    top = [TopLogprob(rival, -2.5, list(rival.encode())) for rival in rivals]
    return TokenLogprob(text, -0.5, list(text.encode()), top)


def token_json(text: str, *rivals: str) -> dict[str, Any]:
    def one(text: str, logprob: float) -> dict[str, Any]:
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    return {**one(text, -0.5), "top_logprobs": [one(rival, -2.5) for rival in rivals]}


def test_probabilities_come_in_the_events_of_their_words_and_also_without_words() -> None:
    told = streamed(
        reply(stream=True, logprobs=True, top_logprobs=1),
        event(logprobs=[token("")]),  # the first bytes of a character
        event("こ", logprobs=[token("こ", "に")]),
        event("", "stop", logprobs=[token("<|end|>")]),
    )
    assert [(choice["delta"], choice["logprobs"]) for choice in told] == [
        ({"role": "assistant", "content": ""}, None),
        ({}, {"content": [token_json("")], "refusal": None}),
        ({"content": "こ"}, {"content": [token_json("こ", "に")], "refusal": None}),
        ({}, {"content": [token_json("<|end|>")], "refusal": None}),
        ({}, None),
    ]
    assert [choice["finish_reason"] for choice in told] == [None] * 4 + ["stop"]


def test_a_whole_reply_has_the_probabilities_of_all_its_tokens() -> None:
    events = [
        event("Hel", logprobs=[token("Hel")]),
        event("lo", "stop", logprobs=[token("lo", "p")]),
    ]
    (choice,) = whole(reply(logprobs=True), *events)
    assert choice["logprobs"] == {
        "content": [token_json("Hel"), token_json("lo", "p")],
        "refusal": None,
    }
    (silent,) = whole(reply(logprobs=True), says("", "stop"))
    assert silent["logprobs"] == {"content": [], "refusal": None}


def test_the_sdk_reads_every_part_of_a_reply() -> None:
    events = [
        event(reasoning="So", logprobs=[token("So")]),
        event("Hi", logprobs=[token("Hi", "Ho")]),
        *WEATHER,
    ]
    r = reply(logprobs=True)
    r.feed([*events, spent()])
    read = ChatCompletion.model_validate_json(r.whole(), strict=True)
    made = (read.choices[0].message.tool_calls or [])[0]
    assert made.type == "function" and made.function.name == "get_weather"
    assert json.loads(read.model_dump_json(exclude_unset=True)) == json.loads(r.whole())
    s = reply(logprobs=True, stream=True, stream_options={"include_usage": True})
    *told, _ = chunks(s.feed([*events, spent()]) + s.end())
    for chunk in told:
        parsed = ChatCompletionChunk.model_validate(chunk, strict=True)
        assert parsed.model_dump(exclude_unset=True) == chunk
