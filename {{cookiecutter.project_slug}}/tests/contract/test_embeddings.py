"""Embeddings: texts or tokens in, one vector each out."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import CreateEmbeddingResponse
from pydantic import ValidationError

from serving.contract.embeddings import MAX_INPUTS, EmbeddingReply, EmbeddingRequest
from serving.contract.errors import ApiError, from_validation
from serving.contract.events import EngineEvent, Usage


def parse(**fields: Any) -> EmbeddingRequest:
    return EmbeddingRequest.model_validate_json(
        json.dumps({"model": "embed", "input": "Paris", **fields})
    )


def refusal(**fields: Any) -> ApiError:
    with pytest.raises(ValidationError) as caught:
        parse(**fields)
    return from_validation(caught.value, EmbeddingRequest)


@pytest.mark.parametrize(
    ("written", "inputs"),
    [
        ("Paris", ["Paris"]),
        (["Paris"], ["Paris"]),
        (["Paris", "Rome"], ["Paris", "Rome"]),
        ([5, 7], [[5, 7]]),
        ([[5, 7], [9]], [[5, 7], [9]]),
        (["a"] * MAX_INPUTS, ["a"] * MAX_INPUTS),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_input_is_one_or_many_as_text_or_as_tokens(written: Any, inputs: list[Any]) -> None:
    assert parse(input=written).inputs == inputs


@pytest.mark.parametrize(
    ("written", "param"),
    [
        ("", "input"),
        ([], "input"),
        (["a", ""], "input[1]"),
        ([1, -1], "input[1]"),
        ([1, "a"], "input[1]"),
        (["a", 5], "input[1]"),
        ([[1], []], "input[1]"),
        ([[1], ["a"]], "input[1][0]"),
        (5, "input"),
        (None, "input"),
        ([True], "input[0]"),
        ([1.5], "input[0]"),
        ({"text": "a"}, "input"),
    ],
    ids=str,
)
def test_a_wrong_input_is_named_by_its_path(written: Any, param: str) -> None:
    error = refusal(input=written)
    assert (error.status, error.param) == (400, param)


@pytest.mark.parametrize("one", ["a", [1]])
def test_too_many_inputs_are_refused(one: Any) -> None:
    error = refusal(input=[one] * (MAX_INPUTS + 1))
    assert (error.status, error.param) == (400, "input")
    assert f"at most {MAX_INPUTS}" in error.message


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("dimensions", 0, "invalid_request"),
        ("dimensions", True, "invalid_request"),
        ("encoding_format", "int8", "invalid_request"),
        ("stream", True, "unknown_field"),
        ("temperature", 0.5, "unknown_field"),
    ],
)
def test_a_wrong_field_is_named(field: str, value: Any, code: str) -> None:
    error = refusal(**{field: value})
    assert (error.status, error.code, error.param) == (400, code, field)


def test_only_shorter_vectors_are_a_capability_of_their_own() -> None:
    request = parse(encoding_format="base64", user="ada", dimensions=None)
    assert (request.asked(), request.needs) == ({}, ["embeddings"])
    assert parse(dimensions=8).needs == ["embeddings", "dimensions"]


def test_a_request_is_heavy_when_all_its_inputs_are() -> None:
    assert not parse(input=["a" * 1000] * 2).heavy
    assert parse(input=["a" * 1000] * 2000).heavy
    assert parse(input=["a" * 1000] * 2000).characters == 2_000_000


def vectors(*rows: list[float], prompt: int = 3) -> EngineEvent:
    packed = [struct.pack(f"<{len(row)}f", *row) for row in rows]
    return EngineEvent(usage=Usage(prompt, 0, prompt), done=True, vectors=packed)


def answer(event: EngineEvent, **fields: Any) -> Any:
    reply = EmbeddingReply(parse(**fields), "embed:3")
    assert reply.feed([event]) == b""
    return json.loads(reply.whole())


def test_a_reply_has_all_fields_an_sdk_reads() -> None:
    body = answer(vectors([0, -1], [1, 0], prompt=7), input=["Paris", "Rome"])
    assert body == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [0, -1]},
            {"object": "embedding", "index": 1, "embedding": [1, 0]},
        ],
        "model": "embed",
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
    }
    read = CreateEmbeddingResponse.model_validate(body)
    assert read.model_dump(exclude_unset=True) == body


ROWS = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=16)


@given(ROWS, st.none() | st.integers(1, 20))
def test_every_vector_has_length_one_and_points_where_the_engines_components_do(
    row: list[float], dimensions: int | None
) -> None:
    got = numpy.array(answer(vectors(row), dimensions=dimensions)["data"][0]["embedding"])
    wanted = numpy.array(row[:dimensions])
    length = float(numpy.linalg.norm(wanted))
    assert len(got) == len(wanted)
    if length > 1e-6:
        assert numpy.linalg.norm(got) == pytest.approx(1, abs=1e-5)
        assert got * length == pytest.approx(wanted, rel=1e-4, abs=1e-4)


@given(ROWS)
def test_base64_holds_the_same_numbers_as_little_endian_float32(row: list[float]) -> None:
    numbers = answer(vectors(row))["data"][0]["embedding"]
    written = answer(vectors(row), encoding_format="base64")["data"][0]["embedding"]
    assert base64.b64decode(written, validate=True) == struct.pack(f"<{len(row)}f", *numbers)


@pytest.mark.parametrize("form", ["float", "base64"])
def test_fewer_dimensions_are_the_first_ones_at_length_one(form: str) -> None:
    row = [0.6, 0.0, 0.8, 0.0]
    written = answer(vectors(row), dimensions=2, encoding_format=form)["data"][0]["embedding"]
    if form == "base64":
        written = list(struct.unpack("<2f", base64.b64decode(written)))
    assert written == [1.0, 0.0]


def test_a_vector_of_zeros_can_be_cut() -> None:
    assert answer(vectors([0, 0, 0]), dimensions=2)["data"][0]["embedding"] == [0, 0]


@pytest.mark.parametrize(
    "event",
    [
        EngineEvent(),
        vectors([1]),
        vectors([1], [2], [3]),
        EngineEvent(vectors=[b"\0" * 4] * 2),
    ],
    ids=["nothing", "too few", "too many", "no usage"],
)
def test_an_answer_that_lacks_something_is_an_engine_error(event: EngineEvent) -> None:
    with pytest.raises(ApiError) as caught:
        answer(event, input=["Paris", "Rome"])
    assert (caught.value.status, caught.value.code) == (502, "engine_error")


def test_embeddings_are_never_streamed() -> None:
    assert parse().stream is False
    with pytest.raises(NotImplementedError):
        EmbeddingReply(parse(), "embed:3").end()
