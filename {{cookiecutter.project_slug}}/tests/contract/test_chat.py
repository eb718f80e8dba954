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
    "fields",
    [
        {"tools": [{"type": "function"}]},
        {"logprobs": True},
        {"response_format": {"type": "json_object"}},
        {"functions": [{"name": "f"}]},
        {"logit_bias": {"5": 1}},
        {"tool_choice": "required"},
        {"reasoning_effort": "low"},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_what_the_contract_does_not_offer_is_refused_and_not_ignored(
    fields: dict[str, Any],
) -> None:
    with pytest.raises(ValidationError) as caught:
        parse(**fields)
    refusal = from_validation(caught.value, ChatRequest)
    assert (refusal.code, refusal.param) == ("unsupported_by_engine", next(iter(fields)))


def test_fields_that_ask_for_nothing_are_accepted() -> None:
    """What popular clients send whether they use it or not."""
    request = parse(
        n=None,
        stream=None,
        stream_options={"include_usage": None},
        tools=[],
        tool_choice="auto",
        parallel_tool_calls=True,
        functions=None,
        response_format={"type": "text"},
        modalities=["text"],
        logit_bias={},
        logprobs=False,
        top_logprobs=None,
        top_k=-1,
        seed=-1,
        store=False,
        metadata={"team": "search"},
        service_tier="auto",
        safety_identifier="abc",
        prompt_cache_key="abc",
    )
    assert request.asked() == {"seed": -1}


def test_an_earlier_answer_may_lack_what_it_had_not() -> None:
    answer: dict[str, Any] = {
        "role": "assistant",
        "content": None,
        "tool_calls": [],
        "annotations": [],
    }
    request = parse(messages=[answer, {"role": "user", "content": "Why?"}])
    assert request.plain_messages()[0] == {"role": "assistant", "content": ""}


def test_usage_is_included_only_when_the_stream_options_say_so() -> None:
    assert not parse().include_usage
    assert not parse(stream_options={}).include_usage
    assert not parse(stream_options=None).include_usage
    assert parse(stream_options={"include_usage": True}).include_usage
