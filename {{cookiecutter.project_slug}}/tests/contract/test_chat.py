"""What a chat request may hold, and how it reads."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.chat import ChatCompletionMessage
from pydantic import ValidationError

from serving.contract.chat import ChatRequest
from serving.contract.errors import from_validation


def parse(**fields: Any) -> ChatRequest:
    body = {"model": "chat", "messages": [{"role": "user", "content": "Hi"}], **fields}
    return ChatRequest.model_validate_json(json.dumps(body))


def test_content_parts_are_one_text_and_developer_is_system() -> None:
    request = parse(
        messages=[
            {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
            {
                "role": "user",
                "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}],
                "name": "ada",
            },
        ]
    )
    assert request.plain_messages() == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
    ]


@pytest.mark.parametrize("dumped", [True, False])
def test_the_sdks_own_answer_may_be_sent_back(dumped: bool) -> None:
    answer = ChatCompletionMessage(role="assistant", content="Paris.").model_dump(
        exclude_unset=not dumped
    )
    request = parse(messages=[answer, {"role": "user", "content": "Why?"}])
    assert request.plain_messages()[0] == {"role": "assistant", "content": "Paris."}


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
    "field", ["tools", "logprobs", "response_format", "functions", "logit_bias"]
)
def test_what_the_contract_does_not_offer_is_refused_and_not_ignored(field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        parse(**{field: []})
    assert from_validation(caught.value, ChatRequest).param == field


def test_usage_is_included_only_when_the_stream_options_say_so() -> None:
    assert not parse().include_usage
    assert not parse(stream_options={}).include_usage
    assert not parse(stream_options=None).include_usage
    assert parse(stream_options={"include_usage": True}).include_usage
