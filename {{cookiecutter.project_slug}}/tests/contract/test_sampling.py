"""Which capabilities a request really uses."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serving.contract.completions import CompletionRequest


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
        {"min_p": 0},
        {"stop": []},
        {"stop": None},
        {"presence_penalty": 0, "frequency_penalty": 0.0, "repetition_penalty": 1},
        {"user": "ada", "stream": True, "max_tokens": 3},
        {"temperature": None, "seed": None, "top_p": None},
    ],
    ids=str,
)
def test_a_value_that_changes_nothing_asks_for_no_capability(fields: dict[str, Any]) -> None:
    assert parse(**fields).asked() == {}


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
    ],
    ids=str,
)
def test_a_value_that_changes_something_asks_for_its_capability(fields: dict[str, Any]) -> None:
    assert parse(**fields).asked() == fields


@pytest.mark.parametrize(("written", "stops"), [("\n", ["\n"]), (["a", "b"], ["a", "b"]), ([], [])])
def test_stop_may_be_a_text_or_a_list(written: Any, stops: list[str]) -> None:
    assert parse(stop=written).stops == stops


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0, "top_p": 1, "seed": 0},
        {"temperature": 2, "seed": 2**32 - 1, "n": 16},
        {"stop": ["x" * 256] * 4, "repetition_penalty": 2},
    ],
    ids=str,
)
def test_the_edges_of_every_range_are_inside(fields: dict[str, Any]) -> None:
    request = parse(**fields)
    assert all(getattr(request, name) == value for name, value in fields.items())
