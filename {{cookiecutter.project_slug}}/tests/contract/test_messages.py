"""The messages of a conversation: what they may be, and how every engine gets them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionMessage, ChatCompletionMessageFunctionToolCall
from openai.types.chat.chat_completion_message_function_tool_call import Function
from pydantic import ValidationError

from serving.contract.chat import ChatRequest
from serving.contract.errors import ApiError, from_validation

PIXEL = "data:image/png;base64,iVBORw0KGgo="
WHY = {"role": "user", "content": "Why?"}


def parse(*messages: Any) -> ChatRequest:
    return ChatRequest.model_validate_json(json.dumps({"model": "chat", "messages": messages}))


def plain(*messages: Any) -> list[dict[str, Any]]:
    return parse(*messages).plain_messages


def refusal(*messages: Any) -> ApiError:
    with pytest.raises(ValidationError) as caught:
        parse(*messages)
    return from_validation(caught.value, ChatRequest)


def image(url: str = PIXEL, **fields: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **fields}}


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


def called(arguments: str) -> dict[str, Any]:
    """An earlier answer that called a tool."""
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def test_content_parts_are_one_text_and_developer_is_system() -> None:
    assert plain(
        {"role": "developer", "content": [text("Be brief.")]},
        {"role": "user", "content": [text("Hel"), text("lo")], "name": "ada"},
    ) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
    ]


@pytest.mark.parametrize("dumped", [True, False])
def test_the_sdks_own_answer_may_be_sent_back(dumped: bool) -> None:
    answer = ChatCompletionMessage(role="assistant", content="Paris.").model_dump(
        exclude_unset=not dumped
    )
    assert plain(answer, WHY)[0] == {"role": "assistant", "content": "Paris."}


@pytest.mark.parametrize("dumped", [True, False])
def test_the_sdks_own_tool_call_may_be_sent_back_with_what_the_tool_said(dumped: bool) -> None:
    call = ChatCompletionMessageFunctionToolCall(
        id="call_1", type="function", function=Function(name="f", arguments='{"a": 1}')
    )
    answer = ChatCompletionMessage(role="assistant", content=None, tool_calls=[call])
    result = {"role": "tool", "tool_call_id": "call_1", "content": [text("12 "), text("degrees")]}
    assert plain(WHY, answer.model_dump(exclude_unset=not dumped), result)[1:] == [
        {"role": "assistant", "content": "", "tool_calls": [call.model_dump()]},
        {"role": "tool", "content": "12 degrees", "tool_call_id": "call_1"},
    ]


def test_an_earlier_answer_may_lack_what_it_had_not() -> None:
    answer: dict[str, Any] = {
        "role": "assistant",
        "content": None,
        "tool_calls": [],
        "annotations": [],
    }
    assert plain(answer, WHY)[0] == {"role": "assistant", "content": ""}


def test_what_the_model_thought_earlier_is_taken_and_not_said_again() -> None:
    answer = {"role": "assistant", "content": "Paris.", "reasoning_content": "France, so"}
    assert plain(answer, WHY)[0] == {"role": "assistant", "content": "Paris."}


@pytest.mark.parametrize(
    ("arguments", "sent"),
    [('{"city": "Paris"}', '{"city": "Paris"}'), ("{}", "{}"), ("", "{}"), (' {"a": 1}\n', None)],
)
def test_a_calls_arguments_are_a_json_object_and_nothing_means_none(
    arguments: str, sent: str | None
) -> None:
    (call,) = plain(called(arguments))[0]["tool_calls"]
    assert call == {
        "id": "call_1",
        "type": "function",
        "function": {"name": "f", "arguments": arguments if sent is None else sent},
    }


@pytest.mark.parametrize(
    "arguments",
    ["[]", "null", '"a"', "5", "{", '{"a": NaN}', "{'a': 1}", " ", "{} {}", '{"a":' * 10_000],
    ids=lambda arguments: arguments[:9],
)
def test_other_arguments_are_refused_by_name(arguments: str) -> None:
    error = refusal(WHY, called(arguments))
    assert error.status == 400
    assert error.param == "messages[1].tool_calls[0].function.arguments"
    assert "JSON object" in error.message


JSON_OBJECTS = st.dictionaries(
    st.text(),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    ),
)


@given(JSON_OBJECTS)
def test_any_arguments_json_writes_are_kept_to_the_letter(arguments: dict[str, Any]) -> None:
    written = json.dumps(arguments)
    assert plain(called(written))[0]["tool_calls"][0]["function"]["arguments"] == written


@pytest.mark.parametrize(
    ("call", "param"),
    [
        ({"id": "", "function": {"name": "f", "arguments": "{}"}}, "id"),
        ({"function": {"name": "f", "arguments": "{}"}}, "id"),
        ({"id": "x", "type": "custom", "function": {"name": "f", "arguments": "{}"}}, "type"),
        ({"id": "x", "function": {"name": "", "arguments": "{}"}}, "function.name"),
        ({"id": "x", "function": {"name": "f", "arguments": {}}}, "function.arguments"),
        ({"id": "x", "function": {"name": "f"}}, "function.arguments"),
        ({"id": "x"}, "function"),
        ({"id": "x", "function": {"name": "f", "arguments": "{}"}, "extra": 1}, "extra"),
    ],
    ids=str,
)
def test_a_wrong_call_is_named_by_its_path(call: dict[str, Any], param: str) -> None:
    error = refusal({"role": "assistant", "tool_calls": [call]})
    assert (error.status, error.param) == (400, f"messages[0].tool_calls[0].{param}")


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "tool", "content": "12"}, "tool_call_id"),
        ({"role": "tool", "tool_call_id": "x"}, "content"),
        ({"role": "tool", "tool_call_id": "x", "content": None}, "content"),
        ({"role": "user", "content": "a", "tool_calls": []}, "tool_calls"),
        ({"role": "function", "content": "a", "name": "f"}, "role"),
    ],
    ids=str,
)
def test_a_wrong_message_is_named_by_its_path(message: dict[str, Any], param: str) -> None:
    error = refusal(WHY, message)
    assert (error.status, error.param) == (400, f"messages[1].{param}")


def test_images_stay_in_their_place_between_the_texts() -> None:
    content = [text("This: "), image(detail="low"), text("is?"), image()]
    assert plain({"role": "user", "content": content})[0]["content"] == content


def test_an_image_is_a_capability_the_request_needs_and_text_parts_are_none() -> None:
    seen = parse(WHY, {"role": "user", "content": [text("a"), image()]})
    assert seen.needs == ["chat", "image_url"]
    assert parse({"role": "user", "content": [text("a")]}).needs == ["chat"]


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data",
        "https://example.com/cat.png",
        "file:///etc/passwd",
        "//example.com/cat.png",
        "data:text/html;base64,PGI+",
        " data:image/png;base64,aGk=",
        "",
    ],
)
def test_an_image_the_engine_would_have_to_fetch_is_refused(url: str) -> None:
    error = refusal(WHY, {"role": "user", "content": [text("a"), image(url)]})
    assert (error.status, error.param) == (400, "messages[1].content[1].image_url.url")
    assert "data:image/" in error.message


@pytest.mark.parametrize("role", ["system", "developer", "assistant"])
def test_only_users_show_images(role: str) -> None:
    error = refusal({"role": role, "content": [image()]})
    assert (error.status, error.param) == (400, "messages[0].content[0].type")


@pytest.mark.parametrize(
    ("part", "param"),
    [
        ({"type": "video_url", "video_url": {"url": PIXEL}}, "type"),
        ({"type": "image_url"}, "image_url"),
        ({"type": "image_url", "image_url": PIXEL}, "image_url"),
        ({"type": "image_url", "image_url": {}}, "image_url.url"),
        (image(detail="fine"), "image_url.detail"),
        (image(size=5), "image_url.size"),
    ],
    ids=str,
)
def test_a_wrong_part_is_named_by_its_path(part: dict[str, Any], param: str) -> None:
    error = refusal({"role": "user", "content": [text("a"), part]})
    assert (error.status, error.param) == (400, f"messages[0].content[1].{param}")
