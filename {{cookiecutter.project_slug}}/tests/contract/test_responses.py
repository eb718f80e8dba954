"""Responses: the request as a chat, and the reply as items, whole or grown by events."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter, ValidationError
from replies import TEXTS, deltas, says, spent

from serving.contract.chat import ChatRequest
from serving.contract.errors import ApiError, from_validation
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
from serving.contract.response_reply import ResponseReply
from serving.contract.responses import ResponsesRequest

SDK_EVENT: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)
IMAGE = "data:image/png;base64,AA=="
TOOL = {"type": "function", "name": "get_weather", "parameters": {"type": "object"}}
SCHEMA = {"type": "json_schema", "name": "city", "schema": {"type": "object"}, "strict": True}


# The request.


def request(**fields: Any) -> ResponsesRequest:
    return ResponsesRequest.model_validate_json(
        json.dumps({"model": "chat", "input": "Hi", **fields})
    )


def user(content: Any = "Hi") -> dict[str, Any]:
    return {"role": "user", "content": content}


def called(call_id: str, arguments: str = "{}") -> dict[str, Any]:
    return {
        "type": "function_call",
        "call_id": call_id,
        "name": "get_weather",
        "arguments": arguments,
    }


def gave(call_id: str, output: str = "sunny") -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": output}


def messages(**fields: Any) -> list[dict[str, Any]]:
    return request(**fields).inner.plain_messages


def asked(**fields: Any) -> dict[str, Any]:
    return request(**fields).inner.asked()


def refused(**fields: Any) -> ApiError:
    """The error a client sees; raised by the request itself or by the chat it becomes."""
    with pytest.raises(ValidationError) as caught:
        _ = request(**fields).inner
    return from_validation(caught.value, ResponsesRequest)


def test_a_string_is_what_the_user_says() -> None:
    assert messages(input="Hello") == [user("Hello")]


def test_instructions_come_first_as_the_system_says_them() -> None:
    system = {"role": "system", "content": "Be brief."}
    assert messages(instructions="Be brief.", input="Hello") == [system, user("Hello")]
    assert messages(instructions="Be brief.", input=[user("Hello")]) == [system, user("Hello")]
    assert messages(instructions="", input="Hello") == [user("Hello")]


@pytest.mark.parametrize(
    ("role", "told"),
    [
        ("user", "user"),
        ("assistant", "assistant"),
        ("system", "system"),
        ("developer", "system"),
    ],
)
def test_a_message_item_keeps_its_role_whether_it_names_its_type_or_not(
    role: str, told: str
) -> None:
    item = {"role": role, "content": "Hi"}
    for written in (item, {**item, "type": "message"}):
        assert messages(input=[written]) == [{"role": told, "content": "Hi"}]


def test_text_parts_are_joined() -> None:
    parts = [{"type": "input_text", "text": "Hello "}, {"type": "input_text", "text": "world"}]
    assert messages(input=[user(parts)]) == [user("Hello world")]


def test_an_earlier_answer_is_taken_as_the_service_gave_it() -> None:
    part = {"type": "output_text", "text": "Paris", "annotations": [], "logprobs": []}
    item = {
        "type": "message",
        "id": "msg_1",
        "status": "completed",
        "role": "assistant",
        "content": [part],
    }
    assert messages(input=[user(), item]) == [user(), {"role": "assistant", "content": "Paris"}]


def test_an_image_stays_a_part_beside_the_text() -> None:
    parts = [
        {"type": "input_text", "text": "What is it?"},
        {"type": "input_image", "image_url": IMAGE, "detail": "low"},
    ]
    assert messages(input=[user(parts)]) == [
        user(
            [
                {"type": "text", "text": "What is it?"},
                {"type": "image_url", "image_url": {"url": IMAGE, "detail": "low"}},
            ]
        )
    ]
    assert request(input=[user(parts)]).inner.needs == ["chat", "image_url"]


@pytest.mark.parametrize("url", ["https://example.com/a.png", "file:///etc/passwd", "data:text/x,"])
def test_an_image_is_never_fetched_from_an_address(url: str) -> None:
    error = refused(input=[user([{"type": "input_image", "image_url": url}])])
    assert error.param == "input[0].content[0].image_url"
    assert "data:image/" in error.message


@pytest.mark.parametrize("role", ["system", "developer", "assistant"])
def test_only_users_show_images(role: str) -> None:
    item = {"role": role, "content": [{"type": "input_image", "image_url": IMAGE}]}
    error = refused(input=[user(), item])
    assert error.param == "input[1]"
    assert "only a message of the role user" in error.message


def function_call(call_id: str) -> dict[str, Any]:
    function = {"name": "get_weather", "arguments": "{}"}
    return {"id": call_id, "type": "function", "function": function}


def test_calls_made_together_are_one_message_and_outputs_are_the_tools() -> None:
    items = [user(), called("a"), called("b"), gave("a", "sunny"), gave("b", "rain")]
    assert messages(input=items) == [
        user(),
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [function_call("a"), function_call("b")],
        },
        {"role": "tool", "content": "sunny", "tool_call_id": "a"},
        {"role": "tool", "content": "rain", "tool_call_id": "b"},
    ]


def test_an_output_may_be_parts_of_text() -> None:
    parts = [{"type": "input_text", "text": text} for text in ("sun", "ny")]
    assert messages(input=[user(), called("a"), {**gave("a"), "output": parts}])[-1] == {
        "role": "tool",
        "content": "sunny",
        "tool_call_id": "a",
    }
    image = {"type": "input_image", "image_url": "data:image/png;base64,eA=="}
    error = refused(input=[user(), called("a"), {**gave("a"), "output": [*parts, image]}])
    assert error.param == "input[2].output[2].type"


def test_calls_belong_to_what_the_assistant_said_before_them() -> None:
    said = {"role": "assistant", "content": "Let me look."}
    assert messages(input=[user(), said, called("a")]) == [
        user(),
        {**said, "tool_calls": [function_call("a")]},
    ]


def test_calls_after_an_output_are_a_new_message() -> None:
    told = messages(input=[user(), called("a"), gave("a"), called("b"), gave("b")])
    assert [message["role"] for message in told] == ["user", *["assistant", "tool"] * 2]


def test_thoughts_are_dropped_and_part_no_calls() -> None:
    thought = {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"text": "Hm"}]}
    told = messages(input=[user(), thought, called("a"), thought, called("b")])
    assert [message["role"] for message in told] == ["user", "assistant"]
    assert "Hm" not in str(told)


def test_an_input_of_nothing_but_thoughts_is_refused() -> None:
    assert refused(input=[{"type": "reasoning", "summary": []}]).param == "input"


@pytest.mark.parametrize("arguments", ["[1]", "{", "5"])
def test_arguments_of_a_call_are_a_json_object(arguments: str) -> None:
    error = refused(input=[user(), called("a", arguments)])
    assert (error.param, error.code) == ("input[1].arguments", "invalid_request")
    assert "write a JSON object" in error.message


@pytest.mark.parametrize("form", [{"type": "text"}, None])
def test_plain_text_is_no_form(form: Any) -> None:
    assert asked(text={"format": form}) == {}
    assert asked(text={"format": form, "verbosity": None}) == {}


def test_the_answers_form_is_nested_as_chat_has_it() -> None:
    assert asked(text={"format": {"type": "json_object"}}) == {
        "response_format": {"type": "json_object"}
    }
    schema = {"name": "city", "schema": {"type": "object"}, "strict": True}
    assert asked(text={"format": SCHEMA}) == {
        "response_format": {"type": "json_schema", "json_schema": schema}
    }


def test_flat_tools_are_nested_without_what_was_left_out() -> None:
    bare = {"type": "function", "name": "noop"}
    assert asked(tools=[TOOL, bare])["tools"] == [
        {
            "type": "function",
            "function": {"name": "get_weather", "parameters": {"type": "object"}},
        },
        {"type": "function", "function": {"name": "noop"}},
    ]
    assert asked(tools=[]) == {}


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        ("auto", None),
        ("required", "required"),
        (
            {"type": "function", "name": "get_weather"},
            {"type": "function", "function": {"name": "get_weather"}},
        ),
    ],
)
def test_each_shape_of_tool_choice_becomes_chats(choice: Any, told: Any) -> None:
    fields = asked(tools=[TOOL], tool_choice=choice)
    assert fields.get("tool_choice") == told
    assert "tools" in fields


def test_tools_that_may_not_be_called_are_not_there() -> None:
    assert asked(tools=[TOOL], tool_choice="none") == {}


@pytest.mark.parametrize(
    ("fields", "wanted", "rivals"),
    [
        ({}, False, None),
        ({"include": []}, False, None),
        ({"top_logprobs": 0}, False, None),
        ({"include": ["message.output_text.logprobs"]}, True, None),
        ({"top_logprobs": 3}, True, 3),
        ({"top_logprobs": 3, "include": ["message.output_text.logprobs"]}, True, 3),
    ],
)
def test_logprobs_are_asked_for_by_include_or_by_their_number(
    fields: dict[str, Any], wanted: bool, rivals: int | None
) -> None:
    chat = request(**fields).inner
    assert (bool(chat.logprobs), chat.top_logprobs) == (wanted, rivals)
    assert ("logprobs" in chat.needs) == wanted


def test_all_other_options_reach_the_chat() -> None:
    chat = request(
        max_output_tokens=9,
        temperature=0.5,
        top_p=0.9,
        reasoning={"effort": "low"},
        parallel_tool_calls=False,
        stream=True,
        user="somebody",
    ).inner
    assert chat == ChatRequest.model_validate(
        {
            "model": "chat",
            "messages": [user()],
            "max_completion_tokens": 9,
            "temperature": 0.5,
            "top_p": 0.9,
            "reasoning_effort": "low",
            "parallel_tool_calls": False,
            "stream": True,
            "user": "somebody",
            "logprobs": False,
        }
    )
    assert chat.token_limit == 9
    assert chat.one_call


def test_null_asks_for_nothing() -> None:
    options = set(ResponsesRequest.model_fields) - {"model", "input"}
    nothing = options | set(ResponsesRequest.NOT_OFFERED) | ResponsesRequest.HINTS
    assert request(**dict.fromkeys(nothing)).inner == request().inner
    empty = {"text": {"format": None}, "reasoning": {"effort": None, "summary": None}}
    assert request(**empty).inner == request().inner


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("previous_response_id", "resp_1"),
        ("store", True),
        ("background", True),
        ("conversation", "conv_1"),
        ("truncation", "auto"),
        ("prompt", {"id": "pmpt_1"}),
        ("max_tool_calls", 1),
        ("context_management", [{"type": "compaction"}]),
    ],
)
def test_what_is_not_offered_is_refused_by_its_name(field: str, value: Any) -> None:
    error = refused(**{field: value})
    assert (error.status, error.code, error.param) == (400, "unsupported_by_engine", field)
    assert field in error.message


def test_saying_that_nothing_of_it_is_wanted_is_fine() -> None:
    plain = request(store=False, background=False, truncation="disabled", context_management=[])
    assert plain == request()


def test_hints_change_nothing() -> None:
    hints = {"metadata": {"a": "b"}, "prompt_cache_key": "k", "service_tier": "auto"}
    assert request(**hints, prompt_cache_retention="24h", safety_identifier="s") == request()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"input": [user(), {"type": "web_search_call"}]}, "input[1]"),
        ({"input": [user(), "Hi"]}, "input[1]"),
        ({"input": [{"role": "tool", "content": "Hi"}]}, "input[0].role"),
        ({"input": [user([{"type": "input_text"}])]}, "input[0].content[0].text"),
        ({"input": [user([{"type": "input_file"}])]}, "input[0].content[0].type"),
        ({"input": [{**gave("a"), "output": 5}]}, "input[0].output"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {**SCHEMA, "schema": {"type": "no"}}}}, "text.format.schema"),
        ({"text": {"format": {**SCHEMA, "name": "a b"}}}, "text.format.name"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"reasoning": {"effort": "enormous"}}, "reasoning.effort"),
        ({"reasoning": {"summary": "auto"}}, "reasoning.summary"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [TOOL, {**TOOL, "name": "a b"}]}, "tools[1].name"),
        ({"tools": [{**TOOL, "parameters": {"type": "no"}}]}, "tools[0].parameters"),
        ({"tools": [TOOL, TOOL]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "b"}}, "tool_choice"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice.type"),
        (
            {"tools": [TOOL], "tool_choice": "required", "text": {"format": SCHEMA}},
            "text.format",
        ),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"include": ["reasoning.encrypted_content"]}, "include[0]"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"response_format": {"type": "text"}}, "response_format"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_error_names_the_field_as_the_client_wrote_it(
    fields: dict[str, Any], param: str
) -> None:
    error = refused(**fields)
    assert (error.status, error.param) == (400, param)
    assert f"'{param}'" in error.message


@pytest.mark.parametrize(
    ("capability", "fields", "field"),
    [
        ("response_format", {"text": {"format": SCHEMA}}, "text.format"),
        ("reasoning_effort", {"reasoning": {"effort": "low"}}, "reasoning.effort"),
        ("logprobs", {"top_logprobs": 1}, "top_logprobs"),
        (
            "image_url",
            {"input": [user([{"type": "input_image", "image_url": IMAGE}])]},
            "input",
        ),
    ],
)
def test_a_capability_an_engine_may_lack_has_the_clients_own_name(
    capability: str, fields: dict[str, Any], field: str
) -> None:
    assert capability in request(**fields).inner.needs
    assert ResponsesRequest.FIELDS[capability] == field


def test_too_many_calls_in_a_row_are_an_error_in_the_input() -> None:
    error = refused(input=[user(), *(called(f"call_{i}") for i in range(129))])
    assert (error.param, error.code) == ("input", "invalid_request")


# The reply.


def reply(*, stream: bool = True, **fields: Any) -> ResponseReply:
    return ResponseReply(request(stream=stream, **fields), "chat:3")


def read(stream: bytes) -> list[dict[str, Any]]:
    """The events; the SDK's own types take each of them, and its name is its type."""
    events = []
    for block in stream.decode().split("\n\n")[:-1]:
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        parsed = SDK_EVENT.validate_python(event)
        assert parsed.type == event["type"]
        events.append(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def streamed(r: ResponseReply, *said: EngineEvent) -> list[dict[str, Any]]:
    return read(b"".join(r.feed([event]) for event in [*said, spent()]) + r.end())


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


def thinks(text: str) -> EngineEvent:
    return EngineEvent([Delta(0, "", reasoning=text)])


def calls(*pieces: ToolDelta, reason: FinishReason | None = None) -> EngineEvent:
    return EngineEvent([Delta(0, "", reason, tools=list(pieces))])


def noted(text: str, token: str, reasoning: str = "") -> EngineEvent:
    logprob = TokenLogprob(token, -0.5, [104], [TopLogprob("x", -1.0, [120])])
    return EngineEvent([Delta(0, text, reasoning=reasoning, logprobs=[logprob])])


START = ["created", "in_progress"]
TEXT_START = ["output_item.added", "content_part.added"]
TEXT_END = ["output_text.done", "content_part.done", "output_item.done"]
THOUGHT_END = ["reasoning_text.done", "content_part.done", "output_item.done"]
CALL_END = ["function_call_arguments.done", "output_item.done"]


def paris() -> list[EngineEvent]:
    """Two calls, the first in two fragments. New each time: a reply may change what it is fed."""
    return [
        calls(ToolDelta(0, '{"city"', "get_weather", "call_a")),
        calls(ToolDelta(0, ': "Paris"}')),
        calls(ToolDelta(1, "", "get_time", "call_b")),
        says("", "tool_calls"),
    ]


def test_a_stream_of_text_is_item_part_deltas_and_their_ends() -> None:
    events = streamed(reply(), says("Hel"), says("lo"), says("", "stop"))
    assert kinds(events) == [
        *START,
        *TEXT_START,
        *["output_text.delta"] * 2,
        *TEXT_END,
        "completed",
    ]
    assert [event["delta"] for event in events if "delta" in event] == ["Hel", "lo"]
    assert events[-4]["text"] == events[-3]["part"]["text"] == "Hello"
    item = events[2]["item"]
    assert (item["status"], item["content"]) == ("in_progress", [])
    assert events[-2]["item"]["status"] == "completed"
    assert {event["item_id"] for event in events if "item_id" in event} == {item["id"]}
    assert {event["output_index"] for event in events[2:-1]} == {0}


def test_a_stream_has_no_done_mark_after_its_last_event() -> None:
    r = reply()
    r.feed([says("a", "stop"), spent()])
    assert b"[DONE]" not in r.end()


def test_thoughts_are_an_item_of_their_own_before_the_text() -> None:
    events = streamed(reply(), thinks("Let me "), thinks("see"), says("Hi", "stop"))
    assert kinds(events) == [
        *START,
        *TEXT_START,
        *["reasoning_text.delta"] * 2,
        *THOUGHT_END,
        *TEXT_START,
        "output_text.delta",
        *TEXT_END,
        "completed",
    ]
    thought, message = events[-1]["response"]["output"]
    assert (thought["type"], thought["content"][0]["text"]) == ("reasoning", "Let me see")
    assert (message["type"], message["content"][0]["text"]) == ("message", "Hi")
    assert [event["output_index"] for event in events[2:-1]] == [0] * 7 + [1] * 6


def test_tool_calls_are_open_until_the_end_and_their_deltas_add_up() -> None:
    events = streamed(reply(tools=[TOOL]), says("Look:"), *paris())
    assert kinds(events) == [
        *START,
        *TEXT_START,
        "output_text.delta",
        *TEXT_END,
        "output_item.added",
        *["function_call_arguments.delta"] * 2,
        "output_item.added",
        *CALL_END,
        *CALL_END,
        "completed",
    ]
    deltas = [e["delta"] for e in events if e["type"].endswith("arguments.delta")]
    done = [e for e in events if e["type"].endswith("arguments.done")]
    assert "".join(deltas) == done[0]["arguments"] == '{"city": "Paris"}'
    assert [e["name"] for e in done] == ["get_weather", "get_time"]
    assert [e["output_index"] for e in done] == [1, 2]
    _, first, second = events[-1]["response"]["output"]
    assert (first["call_id"], first["arguments"]) == ("call_a", '{"city": "Paris"}')
    assert (second["call_id"], second["status"]) == ("call_b", "completed")
    added = [e["item"] for e in events if e["type"] == "response.output_item.added"]
    assert (added[1]["arguments"], added[1]["status"]) == ("", "in_progress")


def test_calls_may_grow_by_turns() -> None:
    pieces = [ToolDelta(7, "[", "f", "a"), ToolDelta(9, "{", "g", "b")]
    more = [ToolDelta(7, "]"), ToolDelta(9, "}")]
    events = streamed(reply(tools=[TOOL]), calls(*pieces), calls(*more, reason="tool_calls"))
    output = events[-1]["response"]["output"]
    assert [(item["name"], item["arguments"]) for item in output] == [("f", "[]"), ("g", "{}")]
    told = [(e["output_index"], e["delta"]) for e in events if "delta" in e]
    assert told == [(0, "["), (1, "{"), (0, "]"), (1, "}")]


def test_text_after_a_call_is_a_second_message() -> None:
    call = calls(ToolDelta(0, "{}", "f", "a"))
    events = streamed(reply(tools=[TOOL]), says("a"), call, says("b", "stop"))
    output = events[-1]["response"]["output"]
    assert [item["type"] for item in output] == ["message", "function_call", "message"]
    assert len({item["id"] for item in output}) == 3


def test_only_one_call_is_told_when_only_one_was_wanted() -> None:
    events = streamed(reply(tools=[TOOL], parallel_tool_calls=False), *paris())
    assert [item["call_id"] for item in events[-1]["response"]["output"]] == ["call_a"]


def test_an_empty_answer_is_a_message_of_nothing() -> None:
    events = streamed(reply(), says("", "stop"))
    assert kinds(events) == [*START, *TEXT_START, "output_text.delta", *TEXT_END, "completed"]
    (item,) = events[-1]["response"]["output"]
    assert item["content"][0]["text"] == ""


def test_an_answer_that_was_cut_is_incomplete_and_says_why() -> None:
    for said in ([says("Hel", "length")], [says("Hel"), says("", "length")]):
        events = streamed(reply(max_output_tokens=1), *said)
        assert kinds(events)[-2:] == ["output_item.done", "incomplete"]
        response = events[-1]["response"]
        assert response["status"] == "incomplete"
        assert response["incomplete_details"] == {"reason": "max_output_tokens"}
        assert response["output"][0]["status"] == events[-2]["item"]["status"] == "incomplete"
        assert response["max_output_tokens"] == 1


def test_what_was_done_before_the_cut_stays_complete() -> None:
    events = streamed(reply(), thinks("Hm"), says("Hel", "length"))
    output = events[-1]["response"]["output"]
    assert [item["status"] for item in output] == ["completed", "incomplete"]


def test_a_cut_tool_call_is_incomplete() -> None:
    events = streamed(
        reply(tools=[TOOL]), calls(ToolDelta(0, '{"ci', "f", "a")), says("", "length")
    )
    (item,) = events[-1]["response"]["output"]
    assert (item["status"], item["arguments"]) == ("incomplete", '{"ci')


def test_the_first_events_show_a_response_without_output_and_usage() -> None:
    events = streamed(reply(), says("a", "stop"))
    for event in events[:2]:
        response = event["response"]
        assert (response["status"], response["output"]) == ("in_progress", [])
        assert response["usage"] is response["incomplete_details"] is None
    identity = {
        (e["response"]["id"], e["response"]["created_at"]) for e in (*events[:2], events[-1])
    }
    assert len(identity) == 1
    assert events[0]["response"]["id"].startswith("resp_")


def test_usage_has_the_names_of_this_endpoint() -> None:
    r = reply(stream=False)
    spent = Usage(3, 2, 5, CachedTokens(1), ReasoningTokens(1))
    r.feed([says("a", "stop"), EngineEvent(usage=spent)])
    usage = json.loads(r.whole())["usage"]
    assert usage == {
        "input_tokens": 3,
        "input_tokens_details": {"cached_tokens": 1, "cache_write_tokens": 0},
        "output_tokens": 2,
        "output_tokens_details": {"reasoning_tokens": 1},
        "total_tokens": 5,
    }


def test_what_was_asked_stands_in_the_reply() -> None:
    fields: dict[str, Any] = {
        "instructions": "Be brief.",
        "max_output_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_logprobs": 2,
        "user": "somebody",
        "parallel_tool_calls": False,
        "reasoning": {"effort": "low"},
        "tools": [TOOL],
        "tool_choice": {"type": "function", "name": "get_weather"},
    }
    r = reply(stream=False, **fields)
    r.feed([says("a", "stop"), spent()])
    told = json.loads(r.whole())
    bare = {"description": None, "strict": None}
    assert {name: told[name] for name in fields} == {**fields, "tools": [{**TOOL, **bare}]}
    assert told["text"] == {"format": {"type": "text"}}
    assert (told["store"], told["object"], told["error"]) == (False, "response", None)
    Response.model_validate(told)


def test_the_form_that_was_asked_stands_in_the_reply() -> None:
    r = reply(stream=False, text={"format": SCHEMA})
    r.feed([says("{}", "stop"), spent()])
    told = json.loads(r.whole())
    assert told["text"] == {"format": SCHEMA}
    Response.model_validate(told)


ANSWERS = {
    "text": [says("Hel"), says("lo", "stop")],
    "thoughts": [thinks("Hm"), says("Hi", "stop")],
    "calls": [says("Look:"), *paris()],
    "nothing": [says("", "stop")],
    "cut": [says("Hel", "length")],
    "logprobs": [noted("h", "h"), says("", "stop")],
}


def without_ids(response: dict[str, Any]) -> dict[str, Any]:
    output = [{**item, "id": ""} for item in response["output"]]
    return {**response, "id": "", "created_at": 0, "output": output}


@pytest.mark.parametrize("said", ANSWERS.values(), ids=ANSWERS)
def test_the_whole_reply_is_the_response_of_the_streams_last_event(said: list[EngineEvent]) -> None:
    fields: dict[str, Any] = {"tools": [TOOL], "top_logprobs": 1}
    last = streamed(reply(**fields), *said)[-1]["response"]
    whole = reply(stream=False, **fields)
    assert whole.feed([*said, spent()]) == b""
    told = json.loads(whole.whole())
    assert without_ids(told) == without_ids(last)
    assert Response.model_validate(told).output_text == "".join(
        delta.text for event in said for delta in event.deltas
    )


@pytest.mark.parametrize("said", ANSWERS.values(), ids=ANSWERS)
@pytest.mark.parametrize("nulls", [True, False])
def test_the_output_can_be_sent_back_as_input(said: list[EngineEvent], nulls: bool) -> None:
    r = reply(stream=False, tools=[TOOL])
    r.feed([*said, spent()])
    response = Response.model_validate_json(r.whole())
    items = [item.model_dump(mode="json", exclude_unset=not nulls) for item in response.output]
    told = messages(input=[user(), *items])
    assert [message["role"] for message in told] == ["user", "assistant"]
    assert told[1]["content"] == response.output_text


@pytest.mark.parametrize("end", ["end", "whole"])
@pytest.mark.parametrize(
    "said",
    [[], [says("a"), spent()], [says("a", "stop")], [*paris()[:-1], spent()]],
    ids=["nothing", "no finish", "no usage", "open calls"],
)
def test_an_answer_that_broke_off_never_ends_as_if_it_were_complete(
    said: list[EngineEvent], end: str
) -> None:
    r = reply(stream=end == "end", tools=[TOOL])
    r.feed(said)
    with pytest.raises(ApiError) as caught:
        getattr(r, end)()
    assert caught.value.status == 502


def test_an_item_of_the_sdk_with_a_null_for_all_it_lacks_is_taken() -> None:
    message = {"role": "assistant", "content": "Hi", "phase": None, "status": None}
    assert messages(input=[user(), message]) == [user(), {"role": "assistant", "content": "Hi"}]
    assert refused(input=[user(), {"role": "user", "content": None}]).param == "input[1].content"
    assert refused(input=[user(), {**called("a"), "caller": "x"}]).param == "input[1].caller"


def test_nothing_follows_the_end() -> None:
    r = reply()
    r.feed([says("a", "stop")])
    assert r.feed([says("b"), *paris()]) == b""


def test_logprobs_come_with_their_deltas_and_once_more_with_the_part() -> None:
    events = streamed(reply(top_logprobs=1), noted("h", "h"), noted("i", "i"), says("", "stop"))
    deltas = [e for e in events if e["type"] == "response.output_text.delta"]
    assert [[p["token"] for p in e["logprobs"]] for e in deltas] == [["h"], ["i"]]
    assert deltas[0]["logprobs"][0]["top_logprobs"] == [
        {"token": "x", "logprob": -1.0, "bytes": [120]}
    ]
    (item,) = events[-1]["response"]["output"]
    assert [p["token"] for p in item["content"][0]["logprobs"]] == ["h", "i"]
    assert events[-4]["logprobs"] == item["content"][0]["logprobs"]


def test_half_a_character_keeps_its_logprobs() -> None:
    events = streamed(reply(top_logprobs=1), noted("", "a"), noted("💡", "b"), says("", "stop"))
    (item,) = events[-1]["response"]["output"]
    assert [p["token"] for p in item["content"][0]["logprobs"]] == ["a", "b"]
    assert item["content"][0]["text"] == "💡"


def test_logprobs_of_thoughts_and_calls_make_no_message() -> None:
    thoughts = [noted("", "a", "Hm"), noted("", "b"), noted("", "c", "so")]
    pieces = [*paris()[:1], noted("", "d"), *paris()[1:]]
    events = streamed(reply(tools=[TOOL], top_logprobs=1), *thoughts, noted("Hi", "e"), *pieces)
    thought, message, *rest = events[-1]["response"]["output"]
    assert thought["content"][0]["text"] == "Hmso"
    assert [p["token"] for p in message["content"][0]["logprobs"]] == ["e"]
    assert [item["type"] for item in rest] == ["function_call"] * 2


LOGPROBS = st.builds(TokenLogprob, token=TEXTS, logprob=st.just(-1.0), bytes=st.just([1]))
DELTAS = deltas(
    st.just(0),
    st.sampled_from(["x", "y"]),
    logprobs=st.one_of(st.just([]), st.lists(LOGPROBS, max_size=2)),
)
EVENTS = st.lists(st.lists(DELTAS, max_size=3).map(EngineEvent), max_size=12)


@given(EVENTS)
def test_whatever_an_engine_says_the_events_build_the_response(said: list[EngineEvent]) -> None:
    """Each item is added, grows and is done; what grew is what is there in the end."""
    events = streamed(reply(tools=[TOOL]), *said, says("", "stop"))
    output = events[-1]["response"]["output"]
    assert [e["item"] for e in events if e["type"] == "response.output_item.done"] == sorted(
        output, key=lambda item: item["type"] == "function_call"
    )
    added = [e["item"]["id"] for e in events if e["type"] == "response.output_item.added"]
    assert added == [item["id"] for item in output]
    for index, item in enumerate(output):
        own = [e for e in events if e.get("output_index") == index]
        assert {e["item_id"] for e in own if "item_id" in e} <= {item["id"]}
        assert own[0]["type"].endswith("item.added")
        assert own[-1]["type"].endswith("item.done")
        grown = "".join(e["delta"] for e in own if "delta" in e)
        called = item["type"] == "function_call"
        assert grown == (item["arguments"] if called else item["content"][0]["text"])
    Response.model_validate(events[-1]["response"])
