"""Every request can be refused, or answered, in the words engines use of themselves."""

from __future__ import annotations

from typing import Any

import pytest

from serving.contract.capabilities import CAPABILITIES, EMBEDDING, GENERATION
from serving.contract.chat import ChatRequest
from serving.contract.completions import CompletionRequest
from serving.contract.embeddings import EmbeddingRequest

SAMPLING: dict[str, Any] = {
    "n": 2,
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 40,
    "min_p": 0.1,
    "seed": 7,
    "stop": ["a"],
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
    "repetition_penalty": 1.2,
    "logit_bias": {"5": 1},
    "priority": 3,
}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
CHAT = {
    "model": "chat",
    "messages": [{"role": "user", "content": [IMAGE]}],
    **SAMPLING,
    "logprobs": True,
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "reasoning_effort": "low",
    "chat_template_kwargs": {"enable_thinking": True},
}
EVERYTHING = [
    ChatRequest.model_validate({**CHAT, "tool_choice": "none", "ignore_eos": True}),
    ChatRequest.model_validate({**CHAT, "response_format": {"type": "json_object"}}),
    ChatRequest.model_validate({**CHAT, "tool_choice": "required"}),
    CompletionRequest.model_validate(
        {"model": "chat", "prompt": "Hi", **SAMPLING}
        | {"logprobs": 1, "echo": True, "ignore_eos": True}
    ),
    EmbeddingRequest(model="embed", input="Hi", dimensions=8),
]


@pytest.mark.parametrize("kind", [ChatRequest, CompletionRequest, EmbeddingRequest])
def test_whatever_a_request_may_need_there_is_a_word_for_it(
    kind: type[ChatRequest] | type[CompletionRequest] | type[EmbeddingRequest],
) -> None:
    needs = [request.needs for request in EVERYTHING if isinstance(request, kind)]
    assert {word for words in needs for word in words} >= {kind.TASK, *kind.OPTIONAL}
    for words in needs:
        assert set(words) <= CAPABILITIES
        assert len(set(words)) == len(words)


def test_there_is_no_word_that_no_request_can_say() -> None:
    said = {need for request in EVERYTHING for need in request.needs}
    assert said == CAPABILITIES
    assert not GENERATION & EMBEDDING


@pytest.mark.parametrize("kind", [ChatRequest, CompletionRequest, EmbeddingRequest])
def test_a_field_is_either_offered_or_not_and_each_word_has_a_field(
    kind: type[ChatRequest] | type[CompletionRequest] | type[EmbeddingRequest],
) -> None:
    fields = set(kind.model_fields)
    assert not fields & set(kind.NOT_OFFERED)
    assert not fields & kind.HINTS
    assert {kind.FIELDS.get(name, name) for name in kind.OPTIONAL} <= fields
    assert set(kind.FIELDS.values()) <= fields
