"""The dialect the engines share: requests out, events and refusals back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from serving.contract.chat import ChatRequest
from serving.contract.completions import CompletionRequest
from serving.contract.errors import ApiError
from serving.contract.events import Delta, EngineEvent, Usage
from serving.engines import ENGINES, create_engine
from serving.engines.base import Engine
from serving.settings import SglangEngine, TransformersEngine, VllmEngine

USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}


@pytest.fixture(params=["vllm", "sglang"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Engine:
    kind = {"vllm": VllmEngine, "sglang": SglangEngine}[request.param]
    return create_engine(kind(name=request.param, max_model_len=512), tmp_path)


def chat(**fields: Any) -> ChatRequest:
    body = {"model": "chat", "messages": [{"role": "user", "content": "Hi"}], **fields}
    return ChatRequest.model_validate(body)


def decode(engine: Engine, **event: Any) -> EngineEvent:
    return engine.open_stream([]).decode(json.dumps(event).encode())


def test_every_engine_name_of_the_settings_has_its_adapter(tmp_path: Path) -> None:
    for settings in (
        TransformersEngine(name="transformers", max_model_len=1),
        VllmEngine(name="vllm", max_model_len=1),
        SglangEngine(name="sglang", max_model_len=1),
    ):
        assert create_engine(settings, tmp_path).name == settings.name
    assert set(ENGINES) == {"transformers", "vllm", "sglang"}


def test_a_request_is_always_streamed_with_usage_under_the_engines_own_model_name(
    engine: Engine,
) -> None:
    body = json.loads(engine.chat(chat(stream=False)).body)
    assert body == {
        "model": "model",
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_every_sampling_field_reaches_the_engine(engine: Engine) -> None:
    fields = {
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
    }
    body = json.loads(engine.chat(chat(**fields, max_completion_tokens=5)).body)
    assert {name: body[name] for name in fields} == fields
    assert body["max_tokens"] == 5
    assert set(fields) <= engine.capabilities


def test_temperature_zero_is_said_although_it_asks_for_no_capability(engine: Engine) -> None:
    assert json.loads(engine.chat(chat(temperature=0)).body)["temperature"] == 0


def test_who_the_user_is_stays_in_the_gateway(engine: Engine) -> None:
    assert b"ada" not in engine.chat(chat(user="ada")).body


def test_a_completion_carries_its_prompt_and_its_default_limit(engine: Engine) -> None:
    call = engine.completion(CompletionRequest(model="chat", prompt="Once"))
    assert call.path == "/v1/completions"
    body = json.loads(call.body)
    assert (body["prompt"], body["max_tokens"]) == ("Once", 16)


def test_chat_and_text_events_become_deltas(engine: Engine) -> None:
    assert decode(engine, choices=[{"index": 1, "delta": {"content": "a"}}]).deltas == [
        Delta(1, "a")
    ]
    assert decode(engine, choices=[{"index": 0, "text": "b"}]).deltas == [Delta(0, "b")]


def test_what_only_one_engine_says_is_left_out(engine: Engine) -> None:
    event = decode(
        engine,
        id="x",
        metadata={"a": 1},
        prompt_token_ids=None,
        choices=[
            {
                "index": 0,
                "delta": {"role": "assistant", "content": "", "reasoning_content": None},
                "logprobs": None,
                "matched_stop": 2,
                "stop_reason": None,
            }
        ],
        usage=None,
    )
    assert event == EngineEvent()


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_a_finish_reason_of_the_contract_is_kept(engine: Engine, reason: str) -> None:
    (delta,) = decode(engine, choices=[{"index": 0, "delta": {}, "finish_reason": reason}]).deltas
    assert delta.finish_reason == reason


@pytest.mark.parametrize("reason", ["abort", "error", "eaten"])
def test_an_answer_that_stopped_without_finishing_is_an_error(engine: Engine, reason: str) -> None:
    with pytest.raises(ApiError) as failure:
        decode(engine, choices=[{"index": 0, "delta": {}, "finish_reason": reason}])
    assert failure.value.code == "engine_error"


def test_usage_is_read_wherever_it_stands(engine: Engine) -> None:
    details = {"prompt_tokens_details": None, **USAGE}
    assert decode(engine, choices=[], usage=details).usage == Usage(1, 2, 3)


def test_the_end_mark_is_no_text(engine: Engine) -> None:
    assert engine.open_stream([]).decode(b"[DONE]") == EngineEvent(done=True)


@pytest.mark.parametrize(
    "data",
    [
        b"not json",
        b"[]",
        b'{"choices": {}}',
        b'{"choices": [{"index": "0"}]}',
        b'{"choices": [{"delta": {"content": 5}}]}',
        b'{"usage": {"prompt_tokens": 1}}',
        b"\xff\xfe",
        b"",
    ],
)
def test_garbage_is_an_engine_error_that_repeats_none_of_it(engine: Engine, data: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        engine.open_stream([]).decode(data)
    assert (caught.value.status, caught.value.code) == (502, "engine_error")


def test_an_error_event_of_the_engine_keeps_its_words_to_itself(engine: Engine) -> None:
    with pytest.raises(ApiError) as caught:
        decode(engine, error={"message": "CUDA error in /opt/vllm/x.py", "code": 500})
    assert caught.value.status == 502
    assert "/opt" not in caught.value.message


@pytest.mark.parametrize(
    ("status", "body", "answer"),
    [
        (400, "This model's maximum context length is 512 tokens.", "context_length_exceeded"),
        (400, "Input length exceeds max_model_len in /root/x", "context_length_exceeded"),
        (400, "bad value at /root/secret.py", "invalid_request"),
        (422, "[]", "invalid_request"),
        (413, "maximum", "context_length_exceeded"),
        (429, "", "overloaded"),
        (503, "", "overloaded"),
        (401, "wrong key", "engine_error"),
        (404, "no model", "engine_error"),
        (500, "Traceback (most recent call last): /root/x.py", "engine_error"),
    ],
)
def test_a_refusal_becomes_the_contracts_error_without_the_engines_words(
    engine: Engine, status: int, body: str, answer: str
) -> None:
    error = engine.refusal(status, body.encode() + b"\xff", "messages")
    assert error.code == answer
    assert error.status == {"overloaded": 503, "engine_error": 502}.get(answer, 400)
    assert error.param == ("messages" if error.status == 400 else None)
    assert "/root" not in error.message
    assert (error.retry_after is not None) == (error.status == 503)
