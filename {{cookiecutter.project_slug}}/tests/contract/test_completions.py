"""What a text completion request may hold."""

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
    ("fields", "limit"), [({}, 16), ({"max_tokens": 5}, 5), ({"max_tokens": None}, None)]
)
def test_sixteen_tokens_are_the_default_as_openai_has_it_and_null_lifts_it(
    fields: dict[str, Any], limit: int | None
) -> None:
    assert parse(**fields).token_limit == limit


@pytest.mark.parametrize("prompt", ["", None, 5, ["a", "b"], [1, 2]])
def test_a_prompt_is_one_text_that_is_not_empty(prompt: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        parse(prompt=prompt)
    assert from_validation(caught.value, CompletionRequest).param == "prompt"


@pytest.mark.parametrize(
    ("field", "code"),
    [
        ("messages", "unknown_field"),
        ("max_completion_tokens", "unknown_field"),
        ("echo", "unsupported_by_engine"),
        ("suffix", "unsupported_by_engine"),
    ],
)
def test_fields_of_chat_and_of_older_apis_are_refused_by_name(field: str, code: str) -> None:
    with pytest.raises(ValidationError) as caught:
        parse(**{field: True})
    refusal = from_validation(caught.value, CompletionRequest)
    assert (refusal.code, refusal.param) == (code, field)


def test_a_list_of_one_prompt_is_a_prompt() -> None:
    assert parse(prompt=["Once"]).prompt == "Once"
