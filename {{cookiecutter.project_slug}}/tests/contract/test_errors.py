"""Every failure reaches the client in one envelope that names the field as the client wrote it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from serving.contract.chat import ChatRequest
from serving.contract.completions import CompletionRequest
from serving.contract.embeddings import EmbeddingRequest
from serving.contract.errors import (
    ApiError,
    context_length_exceeded,
    from_validation,
    model_loading,
    model_not_found,
    unsupported,
)

USER = {"role": "user", "content": "Hello"}


def refusal_of(
    body: str | dict[str, Any], model: type[ChatRequest] | type[CompletionRequest] = ChatRequest
) -> ApiError:
    text = body if isinstance(body, str) else json.dumps(body)
    with pytest.raises(ValidationError) as caught:
        model.model_validate_json(text)
    return from_validation(caught.value, model)


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "chat", "messages": [USER], **fields}


def user(content: Any, **fields: Any) -> dict[str, Any]:
    return chat(messages=[USER, {"role": "user", "content": content}], **fields)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": [USER]}, "model"),
        (chat(model=7), "model"),
        (chat(model=""), "model"),
        ({"model": "chat"}, "messages"),
        (chat(messages=[]), "messages"),
        (chat(messages={}), "messages"),
        (chat(messages=["Hello"]), "messages[0]"),
        (chat(messages=[{"content": "Hello"}]), "messages[0].role"),
        (chat(messages=[USER, {"role": "wizard", "content": "Hello"}]), "messages[1].role"),
        (chat(messages=[{"role": "user"}]), "messages[0].content"),
        (user(None), "messages[1].content"),
        (user(5), "messages[1].content"),
        (user([]), "messages[1].content"),
        (user([{"type": "text"}]), "messages[1].content[0].text"),
        (user([{"type": "text", "text": 5}]), "messages[1].content[0].text"),
        (user([{"type": "text", "text": "a"}, "b"]), "messages[1].content[1]"),
        (user([{"type": "audio"}]), "messages[1].content[0].type"),
        (user([{"url": "x"}]), "messages[1].content[0].type"),
        (user([{"type": "text", "text": "a", "cache": 1}]), "messages[1].content[0].cache"),
        (chat(messages=[{**USER, "tool_calls": []}]), "messages[0].tool_calls"),
        (chat(messages=[{**USER, "user": "me"}]), "messages[0].user"),
        (
            chat(messages=[{"role": "assistant", "content": "no", "refusal": 7}]),
            "messages[0].refusal",
        ),
        (chat(stop=5), "stop"),
        (chat(stop=["a", ""]), "stop[1]"),
        (chat(stop=["a", 1]), "stop[1]"),
        (chat(stop=list("abcde")), "stop"),
        (chat(stream_options=True), "stream_options"),
        (chat(stream_options={"include_usage": "yes"}), "stream_options.include_usage"),
        (chat(stream_options={"usage": True}), "stream_options.usage"),
        (chat(temperature=2.5), "temperature"),
        (chat(max_tokens=0), "max_tokens"),
        (chat(n=17), "n"),
        (chat(seed=2**63), "seed"),
        (chat(seed=-(2**63) - 1), "seed"),
        (chat(logit_bias={"a": 1}), "logit_bias.a"),
        (chat(reasoning_effort="extreme"), "reasoning_effort"),
        (chat(priority=2**31), "priority"),
    ],
    ids=str,
)
def test_a_wrong_field_is_named_by_the_path_the_client_wrote(
    body: dict[str, Any], param: str
) -> None:
    refusal = refusal_of(body)
    assert (refusal.status, refusal.param) == (400, param)
    assert f"'{param}'" in refusal.message


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": "0.5"},
        {"temperature": True},
        {"stream": "yes"},
        {"stream": 1},
        {"n": True},
        {"n": 1.5},
        {"max_tokens": "16"},
        {"seed": 1.5},
        {"user": 5},
    ],
    ids=str,
)
def test_a_value_of_the_wrong_type_is_refused_and_not_converted(fields: dict[str, Any]) -> None:
    assert refusal_of(chat(**fields)).param == next(iter(fields))


def test_a_number_without_a_fraction_is_an_integer_however_it_is_written() -> None:
    read = ChatRequest.model_validate_json(json.dumps(chat(n=2.0, seed=6e2)))
    assert (read.n, read.seed) == (2, 600)
    tokens = b'{"model": "m", "input": [[1, 2.0], [3.0]]}'
    assert EmbeddingRequest.model_validate_json(tokens).inputs == [[1, 2], [3]]
    with pytest.raises(ValidationError, match="integer"):
        EmbeddingRequest.model_validate_json(b'{"model": "m", "input": [1, 2.5]}')


def test_a_misspelt_field_is_answered_with_the_nearest_one() -> None:
    refusal = refusal_of(chat(temprature=1))
    assert (refusal.status, refusal.code, refusal.param) == (400, "unknown_field", "temprature")
    assert refusal.message == "Unknown field 'temprature'; did you mean 'temperature'?"


def test_a_field_near_to_none_gets_no_guess() -> None:
    assert refusal_of(chat(xyzzy=1)).message == "Unknown field 'xyzzy'"


@pytest.mark.parametrize("name", ["Temperature", "str", "list[x]", "function-x", "0"])
def test_an_unknown_field_is_named_even_when_it_looks_like_a_type(name: str) -> None:
    assert refusal_of(chat(**{name: 1})).param == name


def test_the_first_wrong_message_is_reported_although_a_later_one_is_wrong_deeper_down() -> None:
    wrong = [{"role": "wizard"}, {"role": "user", "content": [{"type": "text"}]}]
    assert refusal_of(chat(messages=wrong)).param == "messages[0].role"


def test_a_wrong_part_is_named_although_another_field_is_wrong_too() -> None:
    refusal = refusal_of(user([{"type": "text"}], temprature=1))
    assert refusal.param == "messages[1].content[0].text"


def test_too_many_stops_are_called_too_many_and_not_no_string() -> None:
    assert "at most 4" in refusal_of(chat(stop=list("abcde"))).message


@pytest.mark.parametrize("body", ["", "{", "not json", '{"model": }', '{"a": 1} x'])
def test_malformed_json_is_its_own_error_without_a_field(body: str) -> None:
    refusal = refusal_of(body)
    assert (refusal.status, refusal.code, refusal.param) == (400, "invalid_json", None)


@pytest.mark.parametrize("body", ["[]", "null", "5", '"chat"'])
def test_json_that_is_no_object_is_refused_without_a_field(body: str) -> None:
    refusal = refusal_of(body)
    assert (refusal.status, refusal.param) == (400, None)
    assert "object" in refusal.message


def test_the_envelope_has_exactly_openais_four_keys() -> None:
    envelope = json.loads(model_not_found("nobody").body())
    assert envelope == {
        "error": {
            "message": "The model 'nobody' does not exist; GET /v1/models lists what is served.",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }
    }


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "invalid_request_error"),
        (429, "rate_limit_error"),
        (502, "server_error"),
        (503, "server_error"),
    ],
)
def test_the_type_is_the_class_openais_clients_expect(status: int, kind: str) -> None:
    assert ApiError(status, "code", "message").type == kind


def test_retry_after_stands_beside_other_headers() -> None:
    error = ApiError(503, "x", "x", retry_after=3, headers={"allow": "GET"})
    assert error.headers == {"retry-after": "3", "allow": "GET"}
    assert model_loading("chat").headers["retry-after"].isdigit()
    assert ApiError(400, "x", "x").headers == {}


def test_a_context_error_tells_the_limit_and_the_prompts_own_length() -> None:
    error = context_length_exceeded(512, 600, "messages")
    assert (error.status, error.code, error.param) == (400, "context_length_exceeded", "messages")
    assert "512" in error.message
    assert "600" in error.message


@pytest.mark.parametrize(
    ("capability", "param", "advice"),
    [
        ("seed", "seed", "leave the field out"),
        ("image_url", "messages", "leave the field out"),
        ("embeddings", None, "ask another endpoint or model"),
    ],
)
def test_a_missing_capability_is_named_with_the_field_that_asked_for_it(
    capability: str, param: str | None, advice: str
) -> None:
    error = unsupported(capability, "chat", param)
    assert (error.status, error.code, error.param) == (400, "unsupported_by_engine", param)
    assert f"'{capability}'" in error.message
    assert advice in error.message


def test_a_body_of_nothing_but_faults_is_refused_after_the_first_of_a_list() -> None:
    refusal = refusal_of({"model": "chat", "messages": [1] * 4000})
    assert (refusal.status, refusal.param) == (400, "messages[0]")


def test_very_many_unknown_fields_are_counted_not_listed() -> None:
    body = {**chat(), **{f"x{i}": 1 for i in range(5000)}}
    assert "5000 wrong or unknown fields" in refusal_of(body).message
