"""Tools a model may call, and the form its answer must have."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from serving.contract.chat import ChatRequest
from serving.contract.errors import ApiError, from_validation

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
NAMED = {"type": "function", "function": {"name": "f"}}


def function(name: str, **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **fields}}


def parse(**fields: Any) -> ChatRequest:
    body = {"model": "chat", "messages": [{"role": "user", "content": "Hi"}], **fields}
    return ChatRequest.model_validate_json(json.dumps(body))


def refusal(**fields: Any) -> ApiError:
    with pytest.raises(ValidationError) as caught:
        parse(**fields)
    return from_validation(caught.value, ChatRequest)


def test_tools_are_sent_as_they_were_written() -> None:
    tools = [
        function("get_weather", description="d", parameters=PARAMETERS, strict=True),
        function("get.time-2"),
        function("none", parameters=None, description=None),
    ]
    assert parse(tools=tools).asked() == {"tools": tools}


def test_tools_and_a_choice_of_them_are_capabilities() -> None:
    assert parse(tools=[function("f")]).needs == ["chat", "tools"]
    assert parse(tools=[function("f")], tool_choice="auto").needs == ["chat", "tools"]
    for choice in ("required", NAMED):
        asked = parse(tools=[function("f")], tool_choice=choice)
        assert asked.needs == ["chat", "tools", "tool_choice"]
        assert asked.asked()["tool_choice"] == choice


@pytest.mark.parametrize("tools", [[], None])
@pytest.mark.parametrize("choice", ["auto", "none", None])
def test_no_tools_are_no_capability(tools: Any, choice: str | None) -> None:
    request = parse(tools=tools, tool_choice=choice, parallel_tool_calls=True)
    assert (request.asked(), request.needs) == ({}, ["chat"])


def test_tools_that_may_not_be_called_are_not_there_on_any_engine() -> None:
    request = parse(tools=[function("f")], tool_choice="none")
    assert (request.asked(), request.needs) == ({}, ["chat"])


@pytest.mark.parametrize(("sent", "one"), [(False, True), (True, False), (None, False)])
def test_one_call_at_a_time_is_kept_by_the_gateway_and_asked_of_no_engine(
    sent: bool | None, one: bool
) -> None:
    request = parse(tools=[function("f")], parallel_tool_calls=sent)
    assert request.one_call == one
    assert request.needs == ["chat", "tools"]


def test_tools_may_have_so_many_values_together() -> None:
    def large(count: int) -> list[Any]:
        schema = {"enum": list(range(1000))}
        return [function(f"f{i}", parameters=schema) for i in range(count)]

    assert len(parse(tools=large(19)).asked()["tools"]) == 19
    error = refusal(tools=large(20))
    assert (error.param, "over 20000 values" in error.message) == ("tools", True)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"tools": [function("f"), function("g"), function("f")]}, "tools", "same name"),
        ({"tool_choice": NAMED}, "tool_choice", "no function of tools"),
        ({"tools": [function("g")], "tool_choice": NAMED}, "tool_choice", "no function of tools"),
        ({"tool_choice": "required"}, "tool_choice", "no tools"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice", "no tools"),
        ({"tool_choice": "always"}, "tool_choice", "'none', 'auto' or 'required'"),
        ({"tool_choice": 5}, "tool_choice", ""),
        ({"tool_choice": {"type": "function"}}, "tool_choice.function", "required"),
        ({"tool_choice": function("a b")}, "tool_choice.function.name", "pattern"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice.type", "'function'"),
        ({"tools": [function("a b")]}, "tools[0].function.name", "pattern"),
        ({"tools": [function("x" * 65)]}, "tools[0].function.name", "pattern"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "required"),
        ({"tools": [function("f"), {"type": "custom"}]}, "tools[1].type", "'function'"),
        (
            {"tools": [function("f", parameters={"type": "banana"})]},
            "tools[0].function.parameters",
            "not a JSON schema",
        ),
        ({"tools": [function("f", parameters=[])]}, "tools[0].function.parameters", "object"),
        ({"tools": [function("f", strict="yes")]}, "tools[0].function.strict", "boolean"),
        ({"tools": [function("f", schema={})]}, "tools[0].function.schema", "Unknown field"),
        ({"tools": [function(f"f{i}") for i in range(129)]}, "tools", "at most 128"),
        ({"parallel_tool_calls": "no"}, "parallel_tool_calls", "boolean"),
        (
            {
                "tools": [function("f")],
                "tool_choice": "required",
                "response_format": {"type": "json_object"},
            },
            "response_format",
            "leave one out",
        ),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else "",
)
def test_a_wrong_tool_is_named_by_the_path_the_client_wrote(
    fields: dict[str, Any], param: str, words: str
) -> None:
    error = refusal(**fields)
    assert (error.status, error.param) == (400, param)
    assert words in error.message


def schema_format(**fields: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "city", **fields}}


@pytest.mark.parametrize(
    "form",
    [
        {"type": "json_object"},
        schema_format(schema=PARAMETERS),
        schema_format(schema=PARAMETERS, strict=True, description="d"),
    ],
    ids=str,
)
def test_a_form_is_a_capability_and_sent_as_it_was_written(form: dict[str, Any]) -> None:
    request = parse(response_format=form)
    assert request.needs == ["chat", "response_format"]
    assert request.asked() == {"response_format": form}


@pytest.mark.parametrize("choice", ["auto", "none", None])
def test_an_answer_may_have_a_form_where_a_call_is_not_forced(choice: str | None) -> None:
    fields = {"tools": [function("f")], "response_format": {"type": "json_object"}}
    assert "response_format" in parse(**fields, tool_choice=choice).needs
    forced = {"tools": [function("f")], "tool_choice": NAMED}
    assert "tool_choice" in parse(**forced, response_format={"type": "text"}).needs


@pytest.mark.parametrize("form", [{"type": "text"}, None])
def test_plain_text_asks_for_nothing(form: Any) -> None:
    request = parse(response_format=form)
    assert (request.asked(), request.needs) == ({}, ["chat"])


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ("json_object", "response_format"),
        ({}, "response_format.type"),
        ({"type": "yaml"}, "response_format.type"),
        ({"type": "text", "strict": True}, "response_format.strict"),
        ({"type": "json_schema"}, "response_format.json_schema"),
        (schema_format(), "response_format.json_schema.schema"),
        (schema_format(schema=[]), "response_format.json_schema.schema"),
        (schema_format(schema={"type": "banana"}), "response_format.json_schema.schema"),
        (schema_format(schema={"$ref": "http://x"}), "response_format.json_schema.schema"),
        (
            {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}},
            "response_format.json_schema.name",
        ),
        (
            {"type": "json_schema", "json_schema": {"schema": {}}},
            "response_format.json_schema.name",
        ),
    ],
    ids=str,
)
def test_a_wrong_form_is_named_by_the_path_the_client_wrote(form: Any, param: str) -> None:
    error = refusal(response_format=form)
    assert (error.status, error.param) == (400, param)
