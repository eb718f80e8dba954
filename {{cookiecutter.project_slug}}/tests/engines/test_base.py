"""The dialect the engines share: what they are asked, and what their refusals mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from serving.contract.capabilities import EMBEDDING, GENERATION
from serving.contract.chat import ChatRequest
from serving.contract.completions import CompletionRequest
from serving.contract.embeddings import EmbeddingRequest
from serving.contract.errors import ApiError
from serving.engines import ENGINES, create_engine
from serving.engines.base import Engine
from serving.engines.dialect import StreamDecoder, VectorDecoder
from serving.settings import SglangEngine, TransformersEngine, VllmEngine

KINDS = {"vllm": VllmEngine, "sglang": SglangEngine}


@pytest.fixture(params=KINDS)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Engine:
    kind = KINDS[request.param]
    return create_engine(kind(name=request.param, max_model_len=512), tmp_path)


def chat(**fields: Any) -> ChatRequest:
    body = {"model": "chat", "messages": [{"role": "user", "content": "Hi"}], **fields}
    return ChatRequest.model_validate(body)


def completion(**fields: Any) -> CompletionRequest:
    return CompletionRequest.model_validate({"model": "chat", "prompt": "Once", **fields})


def body_of(engine: Engine, request: ChatRequest | CompletionRequest) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(engine.call(request).body)
    return body


def write(engine: Engine, file: str, **document: Any) -> None:
    (engine.model_dir / file).write_text(json.dumps(document), "utf-8")


def test_every_engine_name_of_the_settings_has_its_adapter(tmp_path: Path) -> None:
    for settings in (
        TransformersEngine(name="transformers", max_model_len=1),
        VllmEngine(name="vllm", max_model_len=1),
        SglangEngine(name="sglang", max_model_len=1),
    ):
        assert create_engine(settings, tmp_path).name == settings.name
    assert set(ENGINES) == {"transformers", "vllm", "sglang", "openai_compatible"}


def test_a_request_is_always_streamed_with_usage_under_the_engines_own_model_name(
    engine: Engine,
) -> None:
    told = engine.name != "openai_compatible"  # which may not know the word
    call = engine.call(chat(stream=False))
    assert (call.path, call.streamed) == ("/v1/chat/completions", True)
    assert json.loads(call.body) == {
        "model": "model",
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": True,
        "stream_options": {
            "include_usage": True,
            **({"continuous_usage_stats": True} if told else {}),
        },
        "temperature": 1.0,
    }


FIELDS: dict[str, Any] = {
    "n": 2,
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 40,
    "min_p": 0.1,
    "seed": 7,
    "stop": ["a", "b"],
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
    "repetition_penalty": 1.2,
    "logit_bias": {"5": -100, "7": 0.5},
}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
CHAT_FIELDS: dict[str, Any] = {
    **FIELDS,
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "city", "schema": {"type": "object"}},
    },
    "tools": TOOLS,
    "chat_template_kwargs": {"enable_thinking": False},
}


def test_every_field_reaches_the_engine_under_the_name_all_engines_share(engine: Engine) -> None:
    body = body_of(engine, chat(**CHAT_FIELDS, max_completion_tokens=5))
    assert {name: body[name] for name in CHAT_FIELDS} == CHAT_FIELDS
    assert body["max_tokens"] == 5
    text = body_of(engine, completion(**FIELDS, max_tokens=5))
    assert {name: text[name] for name in FIELDS} == FIELDS


def test_an_answer_that_no_token_ends_is_asked_for_by_the_name_all_engines_share(
    engine: Engine,
) -> None:
    for request in (chat(ignore_eos=True), completion(ignore_eos=True)):
        assert "ignore_eos" in engine.capabilities
        assert body_of(engine, request)["ignore_eos"] is True


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "f"}}])
def test_a_choice_of_tools_reaches_the_engine_with_the_tools(engine: Engine, choice: Any) -> None:
    body = body_of(engine, chat(tools=TOOLS, tool_choice=choice))
    assert body["tool_choice"] == choice
    assert [tool["function"]["name"] for tool in body["tools"]] == ["f"]


def test_an_adapter_is_asked_for_in_place_of_the_model(engine: Engine) -> None:
    body = json.loads(engine.call(chat(), "legal").body)
    assert body["model"] == engine.served_as("legal")
    assert "legal" in body["model"]


def test_a_value_that_changes_nothing_is_not_sent(engine: Engine) -> None:
    idle = chat(
        n=1,
        top_p=1,
        top_k=-1,
        stop=[],
        logit_bias={},
        ignore_eos=False,
        priority=0,
        tools=[],
        tool_choice="auto",
        response_format={"type": "text"},
        logprobs=False,
        chat_template_kwargs={},
    )
    assert body_of(engine, idle) == body_of(engine, chat())


def test_tools_that_may_not_be_called_are_not_sent(engine: Engine) -> None:
    request = chat(tools=TOOLS, tool_choice="none", parallel_tool_calls=False)
    assert body_of(engine, request) == body_of(engine, chat())


def test_who_the_user_is_stays_in_the_gateway(engine: Engine) -> None:
    assert b"ada" not in engine.call(chat(user="ada", metadata={"name": "ada"})).body


def test_a_completion_carries_its_prompt_and_its_default_limit(engine: Engine) -> None:
    call = engine.call(completion())
    assert (call.path, call.streamed) == ("/v1/completions", True)
    body = json.loads(call.body)
    assert (body["prompt"], body["max_tokens"]) == ("Once", 16)


def test_a_calls_history_reaches_the_engine(engine: Engine) -> None:
    call = {"id": "x", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    told = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "12", "tool_call_id": "x"},
    ]
    assert body_of(engine, chat(messages=told))["messages"] == told


@pytest.mark.parametrize(("asked", "rivals"), [({}, 0), ({"top_logprobs": 3}, 3)])
def test_probabilities_of_a_chat_are_asked_for_with_the_number_of_rivals(
    engine: Engine, asked: dict[str, Any], rivals: int
) -> None:
    body = body_of(engine, chat(logprobs=True, **asked))
    assert (body["logprobs"], body["top_logprobs"]) == (True, rivals)
    assert "top_logprobs" not in body_of(engine, chat())


@pytest.mark.parametrize(
    ("fields", "sent"),
    [
        ({"echo": True}, {}),
        ({"logprobs": 0}, {"logprobs": 0}),
        ({"logprobs": 2, "echo": True}, {"logprobs": 2, "echo": True}),
    ],
    ids=str,
)
def test_the_engine_echoes_only_what_needs_its_probabilities(
    engine: Engine, fields: dict[str, Any], sent: dict[str, Any]
) -> None:
    body = body_of(engine, completion(**fields))
    assert {k: v for k, v in body.items() if k in ("echo", "logprobs", "echo_logprobs")} == sent


@pytest.mark.parametrize(
    ("own", "temperature"),
    [
        (None, 1.0),
        ({}, 1.0),
        ({"do_sample": True}, 1.0),
        ({"do_sample": True, "temperature": 0.6}, 0.6),
        ({"temperature": 0.6}, 0.6),
        ({"do_sample": False}, 0.0),
        ({"do_sample": False, "temperature": 0.6}, 0.0),
    ],
    ids=str,
)
def test_the_temperature_is_said_each_time_and_is_the_models_unless_the_client_has_one(
    engine: Engine, own: dict[str, Any] | None, temperature: float
) -> None:
    if own is not None:
        write(engine, "generation_config.json", **own)
    assert body_of(engine, chat())["temperature"] == temperature
    assert body_of(engine, chat(temperature=None))["temperature"] == temperature
    assert body_of(engine, completion())["temperature"] == temperature
    for asked in (0, 0.3, 2):
        assert body_of(engine, chat(temperature=asked))["temperature"] == asked


def test_a_bias_on_a_token_the_model_has_not_is_refused_before_the_engine_sees_it(
    engine: Engine,
) -> None:
    write(engine, "config.json", vocab_size=1024)
    assert body_of(engine, chat(logit_bias={"1023": 5}))["logit_bias"] == {"1023": 5}
    for request in (chat(logit_bias={"5": 1, "1024": 5}), completion(logit_bias={"1024": 5})):
        with pytest.raises(ApiError, match="no token 1024") as caught:
            engine.call(request)
        assert (caught.value.status, caught.value.param) == (400, "logit_bias")


def test_without_a_known_vocabulary_the_engine_judges_the_bias(engine: Engine) -> None:
    assert body_of(engine, chat(logit_bias={"999999": 5}))["logit_bias"] == {"999999": 5}


def test_embeddings_are_asked_for_whole_and_as_numbers(engine: Engine) -> None:
    request = EmbeddingRequest(
        model="embed", input=["a", "b"], dimensions=8, encoding_format="base64", user="ada"
    )
    call = engine.call(request)
    assert (call.path, call.streamed) == ("/v1/embeddings", False)
    assert json.loads(call.body) == {
        "model": "model",
        "input": ["a", "b"],
        "encoding_format": "float",
    }


def test_each_kind_of_answer_has_its_reader(engine: Engine) -> None:
    assert isinstance(engine.decoder(chat()), StreamDecoder)
    assert isinstance(engine.decoder(completion()), StreamDecoder)
    assert isinstance(engine.decoder(EmbeddingRequest(model="m", input="a")), VectorDecoder)


def test_a_text_model_offers_all_but_images(engine: Engine) -> None:
    assert {"chat", "completions", "n", "top_p", "logit_bias"} <= engine.capabilities
    assert engine.capabilities <= GENERATION - {"image_url"}


@pytest.mark.parametrize("sees", [{"vision_config": {}}, {"image_token_id": 7}], ids=str)
def test_a_model_that_sees_offers_images(engine: Engine, sees: dict[str, Any]) -> None:
    write(engine, "config.json", **sees)
    assert "image_url" in engine.capabilities


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("matryoshka", [True, False])
def test_an_embedding_model_offers_embeddings_and_shorter_ones_only_if_trained_for_them(
    tmp_path: Path, name: str, matryoshka: bool
) -> None:
    engine = create_engine(KINDS[name](name=name, max_model_len=512), tmp_path, "embed")
    write(engine, "config.json", is_matryoshka=matryoshka)
    assert engine.capabilities == (EMBEDDING if matryoshka else EMBEDDING - {"dimensions"})


@pytest.mark.parametrize(
    ("status", "body", "answer"),
    [
        (400, "This model's maximum context length is 512 tokens.", "context_length_exceeded"),
        (400, "bad value at /root/secret.py", "invalid_request"),
        (422, "[]", "invalid_request"),
        (413, "too many bytes", "invalid_request"),
        (429, "", "overloaded"),
        (503, "", "overloaded"),
        (401, '{"error":"Unauthorized"}', "engine_error"),
        (404, "no model", "engine_error"),
        (500, "Traceback (most recent call last): /root/x.py", "engine_error"),
    ],
)
def test_a_refusal_becomes_the_contracts_error_without_the_engines_words(
    engine: Engine, status: int, body: str, answer: str
) -> None:
    for request, param in ((chat(), "messages"), (completion(), "prompt")):
        error = engine.refusal(status, body.encode() + b"\xff", request)
        assert error.code == answer
        assert error.status == {"overloaded": 503, "engine_error": 502}.get(answer, 400)
        assert error.param == (param if error.status == 400 else None)
        assert "/root" not in error.message
        assert (error.retry_after is not None) == (error.status == 503)
