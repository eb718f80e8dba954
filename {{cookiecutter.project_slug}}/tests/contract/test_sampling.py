"""Which capabilities a request really uses."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from serving.contract.completions import CompletionRequest
from serving.contract.errors import from_validation


def parse(**fields: Any) -> CompletionRequest:
    return CompletionRequest.model_validate_json(
        json.dumps({"model": "chat", "prompt": "Hi", **fields})
    )


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"n": 1},
        {"temperature": 0},
        {"top_p": 1.0},
        {"top_k": 0},
        {"top_k": -1},
        {"min_p": 0},
        {"stop": []},
        {"stop": None},
        {"presence_penalty": 0, "frequency_penalty": 0.0, "repetition_penalty": 1},
        {"logit_bias": {}},
        {"ignore_eos": False},
        {"priority": 0},
        {"user": "ada", "stream": True, "max_tokens": 3},
        {"temperature": None, "seed": None, "top_p": None, "logit_bias": None, "priority": None},
        {"ignore_eos": None},
    ],
    ids=str,
)
def test_a_value_that_changes_nothing_asks_for_no_capability(fields: dict[str, Any]) -> None:
    assert parse(**fields).asked() == {}
    assert parse(**fields).needs == ["completions"]


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2},
        {"temperature": 0.7},
        {"top_p": 0.9},
        {"top_k": 40},
        {"min_p": 0.1},
        {"seed": 0},
        {"presence_penalty": -1.0},
        {"frequency_penalty": 0.5},
        {"repetition_penalty": 1.1},
        {"logit_bias": {"5": -1}},
        {"ignore_eos": True},
        {"priority": 1},
    ],
    ids=str,
)
def test_a_value_that_changes_something_asks_for_its_capability(fields: dict[str, Any]) -> None:
    assert parse(**fields).asked() == fields
    assert parse(**fields).needs == ["completions", *fields]


@pytest.mark.parametrize(("written", "stops"), [("\n", ["\n"]), (["a", "b"], ["a", "b"]), ([], [])])
def test_stop_may_be_a_text_or_a_list(written: Any, stops: list[str]) -> None:
    assert parse(stop=written).stops == stops


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0, "top_p": 1, "seed": 0},
        {"temperature": 2, "seed": 2**63 - 1, "n": 16},
        {"seed": -(2**63), "priority": 2**31 - 1},
        {"priority": -(2**31), "logit_bias": {"0": -100, "999999999": 100}},
        {"stop": ["x" * 256] * 4, "repetition_penalty": 2},
    ],
    ids=str,
)
def test_the_edges_of_every_range_are_inside(fields: dict[str, Any]) -> None:
    request = parse(**fields)
    assert all(getattr(request, name) == value for name, value in fields.items())


@pytest.mark.parametrize(
    ("bias", "param"),
    [
        ({"5": 100.5}, "logit_bias.5"),
        ({"5": "1"}, "logit_bias.5"),
        ({"5": float("nan")}, "logit_bias.5"),
        ({"-1": 1}, "logit_bias.-1"),
        ({"05": 1}, "logit_bias.05"),
        ({"Paris": 1}, "logit_bias.Paris"),
        ({"1" * 10: 1}, "logit_bias.1111111111"),
        ({str(token): 1 for token in range(301)}, "logit_bias"),
        ([5], "logit_bias"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_wrong_bias_is_named_by_its_token(bias: Any, param: str) -> None:
    with pytest.raises(ValidationError) as caught:
        parse(logit_bias=bias)
    error = from_validation(caught.value, CompletionRequest)
    assert (error.status, error.param) == (400, param)


@pytest.mark.parametrize("name", ["temperature", "top_p", "min_p", "presence_penalty"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_is_no_value(name: str, value: float) -> None:
    with pytest.raises(ValidationError) as caught:
        parse(**{name: value})
    assert from_validation(caught.value, CompletionRequest).param == name
