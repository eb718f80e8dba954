"""JSON schemas that clients send are checked here, so that no engine has to survive them."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from serving.contract.schema import MAX_SIZE, JsonSchema

SCHEMAS: TypeAdapter[dict[str, Any]] = TypeAdapter(JsonSchema)


def fault(schema: Any) -> str:
    """Why the schema is refused."""
    with pytest.raises(ValidationError) as caught:
        SCHEMAS.validate_python(schema)
    (problem,) = caught.value.errors()
    return str(problem["msg"])


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"not": schema}
    return schema


CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "schema",
    [
        {},
        CITY,
        {"$ref": "#"},
        {"$ref": "#/$defs/city", "$defs": {"city": CITY}},
        {"$defs": {"a/b~c d": {}}, "$ref": "#/$defs/a~1b~0c d"},
        {"$defs": {"~1": {}}, "$ref": "#/$defs/~01"},
        {"allOf": [{"$ref": "#/allOf/1"}, {"type": "object"}]},
        {"definitions": {"city": CITY}, "properties": {"a": {"$ref": "#/definitions/city"}}},
        {"$anchor": "here", "properties": {"a": {"$ref": "#here"}}},
        {"properties": {"$ref": {"type": "string"}}},
        {"type": ["string", "null"], "x-order": 5, "deprecated": True},
    ],
    ids=str,
)
def test_a_schema_is_taken_as_it_is(schema: dict[str, Any]) -> None:
    assert SCHEMAS.validate_python(schema) == schema


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"type": "banana"}, "'type'"),
        ({"type": 5}, "'type'"),
        ({"properties": {"a": {"type": "sting"}}}, "'properties/a/type'"),
        ({"properties": []}, "'properties'"),
        ({"required": "city"}, "'required'"),
        ({"minimum": "1"}, "'minimum'"),
        ({"items": {"maxItems": -1}}, "'items/maxItems'"),
        ({"$ref": 5}, "'$ref'"),
    ],
    ids=str,
)
def test_what_is_no_schema_is_refused_with_the_place(schema: Any, place: str) -> None:
    assert f"not a JSON schema at {place}" in fault(schema)


@pytest.mark.parametrize("schema", [True, [], "{}", None], ids=repr)
def test_a_schema_is_an_object(schema: Any) -> None:
    assert "dict" in fault(schema) or "object" in fault(schema)


@pytest.mark.parametrize(
    "reference",
    ["#/$defs/nope", "#/nope", "#/allOf/2", "#/allOf/-1", "#/allOf/x", "#/type/0", "#/allOf/0/a"],
)
def test_a_reference_to_nothing_is_refused(reference: str) -> None:
    schema = {"type": "object", "allOf": [{}, {}], "properties": {"a": {"$ref": reference}}}
    assert f"'{reference}' points at nothing" in fault(schema)


@pytest.fixture
def address() -> Iterator[str]:
    """Where nobody may ask for anything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/schema"
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.mark.parametrize("key", ["$ref", "$dynamicRef"])
@pytest.mark.parametrize("deep", [False, True])
def test_a_reference_to_elsewhere_is_refused_and_not_followed(
    address: str, key: str, deep: bool
) -> None:
    schema: dict[str, Any] = {key: address}
    assert "leaves the schema" in fault({"properties": {"a": [schema]}} if deep else schema)
    for path in ("city.json", "city.json#/a", "file:///etc/passwd"):
        assert "leaves the schema" in fault({key: path})


def test_no_name_a_schema_gives_itself_is_fetched(address: str) -> None:
    for schema in (
        {"$schema": address, **CITY},
        {"$id": address, **CITY},
        {"$schema": address, "$id": address, "properties": {"a": {"$schema": address}}},
        {"properties": {"a": {"$schema": address, "$id": address, "type": "object"}}},
        {"$vocabulary": {address: True}, "$schema": "not an address at all"},
    ):
        assert SCHEMAS.validate_python(schema) == schema


def test_a_schema_may_have_so_many_values_and_not_one_more() -> None:
    room = MAX_SIZE - 2  # the schema itself and its list
    SCHEMAS.validate_python({"enum": list(range(room))})
    assert f"over {MAX_SIZE} values" in fault({"enum": list(range(room + 1))})
    assert f"over {MAX_SIZE} values" in fault(
        {"properties": {f"p{i}": {} for i in range(MAX_SIZE)}}
    )


@pytest.mark.parametrize("depth", [100, 1000, MAX_SIZE - 1])
def test_a_deep_schema_is_no_crash(depth: int) -> None:
    SCHEMAS.validate_python(nested(depth))
    SCHEMAS.validate_python({"default": [nested(depth - 10)]} if depth > 10 else {})


def test_a_schema_deeper_than_there_may_be_values_is_refused() -> None:
    assert f"over {MAX_SIZE} values" in fault(nested(100_000))


def test_json_too_deep_to_read_is_invalid_json() -> None:
    with pytest.raises(ValidationError) as caught:
        SCHEMAS.validate_json('{"not":' * 1000 + "{}" + "}" * 1000)
    assert caught.value.errors()[0]["type"] == "json_invalid"


WORST: dict[str, Any] = {
    "many properties": {"properties": {f"p{i}": {"type": "string"} for i in range(2400)}},
    "a chain of references": {
        "$defs": {
            **{f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(1600)},
            "d1600": {},
        }
    },
    "long references into the deep": {
        "x": nested(300),
        "allOf": [{"$ref": "#/x" + "/not" * 300}] * 1500,
    },
    "long texts": {"enum": [f"{i}" + "x" * 1000 for i in range(4900)]},
    "a pattern that is costly to use": {"pattern": "((((a{1,100}){1,100}){1,100}){1,100})"},
}


def cpu_seconds(schema: dict[str, Any]) -> float:
    """What checking it costs at best."""
    spent = []
    for _ in range(3):
        begun = time.process_time()
        SCHEMAS.validate_python(schema)
        spent.append(time.process_time() - begun)
    return min(spent)


@pytest.mark.parametrize("schema", WORST.values(), ids=WORST)
def test_no_schema_costs_over_a_hundred_times_a_plain_one_of_its_size(
    schema: dict[str, Any],
) -> None:
    assert cpu_seconds(schema) < 100 * cpu_seconds(WORST["many properties"])


WORDS = st.sampled_from(["type", "properties", "items", "$ref", "allOf", "enum", "not", "a", "0"])
VALUES = st.sampled_from(["object", "#", "#/a", "#/allOf/0", "http://x", "", 0, True, None])


@given(
    st.dictionaries(
        WORDS,
        st.recursive(
            VALUES,
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
            max_leaves=10,
        ),
    )
)
def test_whatever_comes_is_taken_unchanged_or_refused(schema: dict[str, Any]) -> None:
    with contextlib.suppress(ValidationError):
        assert json.dumps(SCHEMAS.validate_python(schema)) == json.dumps(schema)
