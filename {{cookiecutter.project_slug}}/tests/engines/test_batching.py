"""What vLLM and SGLang have in common; refusals are their own words, as they were asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from serving.contract.chat import ChatRequest
from serving.engines import create_engine
from serving.engines.base import Engine
from serving.settings import SglangEngine, VllmEngine

KINDS: dict[str, type[VllmEngine] | type[SglangEngine]] = {
    "vllm": VllmEngine,
    "sglang": SglangEngine,
}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]


def engine(name: str, model_dir: Path, **fields: Any) -> Engine:
    settings = KINDS[name].model_validate({"name": name, "max_model_len": 512, **fields})
    return create_engine(settings, model_dir)


def chat(**fields: Any) -> ChatRequest:
    body = {"model": "chat", "messages": [{"role": "user", "content": "Hi"}], **fields}
    return ChatRequest.model_validate(body)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    ("fields", "offered"),
    [
        ({}, set()),
        ({"tool_parser": "hermes"}, {"tools", "tool_choice"}),
        ({"priority_scheduling": True}, {"priority"}),
    ],
    ids=str,
)
def test_it_offers_what_it_was_set_up_for(
    tmp_path: Path, name: str, fields: dict[str, Any], offered: set[str]
) -> None:
    capabilities = engine(name, tmp_path, **fields).capabilities
    assert capabilities & {"tools", "tool_choice", "priority"} == offered
    assert {"n", "logprobs", "response_format", "logit_bias", "echo_logprobs"} <= capabilities


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "f"}}])
def test_a_forced_call_keeps_to_its_schema_as_openais_do(
    tmp_path: Path, name: str, choice: Any
) -> None:
    request = chat(tools=TOOLS, tool_choice=choice)
    body = json.loads(engine(name, tmp_path).call(request).body)
    assert [tool["function"]["strict"] for tool in body["tools"]] == [True]
    free = json.loads(engine(name, tmp_path).call(chat(tools=TOOLS)).body)
    assert free["tools"] == TOOLS


#: What the engines said to a prompt that was too long, or to too many tokens asked for.
TOO_LONG = [
    (
        "vllm",
        "This model's maximum context length is 512 tokens. However, your prompt contains at least "
        "513 input tokens, which exceeds this limit even without any output tokens. Please reduce "
        "the length of the input prompt. (parameter=input_tokens, value=513)",
    ),
    ("vllm", "max_tokens=100000 cannot be greater than max_model_len=512."),
    ("sglang", "The input (1803 tokens) is longer than the model's context length (512 tokens)."),
    (
        "sglang",
        "Requested token count exceeds the model's maximum context length of 512 tokens. You "
        "requested a total of 515 tokens: 5 tokens from the input messages and 510 tokens for the "
        "completion. Please reduce the number of tokens",
    ),
    (
        "sglang",
        "max_completion_tokens is too large: 100000.This model supports at most 512 completion "
        "tokens.",
    ),
]
#: And to other values that it would not take.
WRONG = [
    ("vllm", "Requested sample logprobs of 30, which is greater than max allowed: 20"),
    ("vllm", "token_id(s) [5000] in logit_bias contain out-of-vocab token ids."),
    ("vllm", "Grammar error: Unsatisfiable schema: minimum (5) is greater than maximum (1)"),
    ("sglang", "temperature must be a non-negative finite number, got -1.0."),
    (
        "sglang",
        "Failed to compile json grammar: [21:52:30] /project/cpp/json_schema_converter.cc:2999: "
        "Invalid range: minimum greater than maximum",
    ),
]


@pytest.mark.parametrize(("name", "message"), TOO_LONG + WRONG)
def test_an_engines_own_words_tell_what_is_too_long_from_what_is_wrong(
    tmp_path: Path, name: str, message: str
) -> None:
    body = json.dumps({"error": {"message": message, "code": 400}}).encode()
    error = engine(name, tmp_path).refusal(400, body, chat())
    known = (name, message) in TOO_LONG
    assert error.code == ("context_length_exceeded" if known else "invalid_request")
    assert error.status == 400
    assert "/project" not in error.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": TOOLS, "tool_choice": "required"}, "tools"),
    ],
    ids=lambda value: str(next(iter(value))) if isinstance(value, dict) else value,
)
@pytest.mark.parametrize(
    ("name", "message"), [refusal for refusal in WRONG if "rammar" in refusal[1]]
)
def test_a_schema_the_engine_cannot_hold_an_answer_to_is_named(
    tmp_path: Path, name: str, message: str, fields: dict[str, Any], param: str
) -> None:
    body = json.dumps({"message": message}).encode()
    error = engine(name, tmp_path).refusal(400, body, chat(**fields))
    assert (error.status, error.param) == (400, param)
    assert "schema" in error.message
