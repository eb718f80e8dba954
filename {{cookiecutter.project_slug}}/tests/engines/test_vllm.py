"""How vLLM is started."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from serving.contract.chat import ChatRequest
from serving.contract.errors import ApiError
from serving.engines.base import Launch
from serving.engines.vllm import Vllm
from serving.settings import VllmEngine


def engine(**fields: object) -> Vllm:
    settings = VllmEngine.model_validate(
        {"name": "vllm", "max_model_len": 4096, "home": "/opt/engine", **fields}
    )
    return Vllm(settings, Path("/models/chat/3"))


def launch(folder: Path) -> Launch:
    return Launch("127.0.0.1", 1234, "the-secret-key", folder)


def flags(folder: Path, **fields: object) -> list[str]:
    """What the settings add to the command line."""
    bare = engine().command(launch(folder))
    return engine(**fields).command(launch(folder))[len(bare) :]


def test_the_command_serves_the_version_on_the_given_address(tmp_path: Path) -> None:
    assert engine().command(launch(tmp_path)) == [
        "/opt/engine/bin/vllm",
        "serve",
        "/models/chat/3",
        "--host",
        "127.0.0.1",
        "--port",
        "1234",
        "--served-model-name",
        "model",
        "--enable-prompt-tokens-details",
        "--max-model-len",
        "4096",
    ]


def test_one_that_sleeps_is_told_so_at_its_start(tmp_path: Path) -> None:
    asked = Launch("127.0.0.1", 1234, "the-secret-key", tmp_path, sleeps=True)
    assert "--enable-sleep-mode" in engine().command(asked)
    assert engine().environment(asked)["VLLM_SERVER_DEV_MODE"] == "1"
    assert "VLLM_SERVER_DEV_MODE" not in engine().environment(launch(tmp_path))


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"gpus": 1}, ""),
        ({"gpus": 4}, "--tensor-parallel-size 4"),
        (
            {"gpus": 8, "pipeline_parallel": 2, "data_parallel": 2},
            "--tensor-parallel-size 2 --pipeline-parallel-size 2 --data-parallel-size 2",
        ),
        ({"memory_fraction": 0.8}, "--gpu-memory-utilization 0.8"),
        ({"dtype": "bfloat16"}, "--dtype bfloat16"),
        ({"quantization": "fp8"}, "--quantization fp8"),
        ({"kv_cache_dtype": "fp8_e5m2"}, "--kv-cache-dtype fp8_e5m2"),
        ({"prefix_caching": True}, "--enable-prefix-caching"),
        ({"prefix_caching": False}, "--no-enable-prefix-caching"),
        ({"chunked_prefill": 2048}, "--enable-chunked-prefill --max-num-batched-tokens 2048"),
        ({"chunked_prefill": False}, "--no-enable-chunked-prefill"),
        ({"max_running": 64}, "--max-num-seqs 64"),
        ({"tool_parser": "hermes"}, "--tool-call-parser hermes --enable-auto-tool-choice"),
        ({"reasoning_parser": "qwen3"}, "--reasoning-parser qwen3"),
        ({"chat_template": "/t.jinja"}, "--chat-template /t.jinja"),
        ({"seed": 0}, "--seed 0"),
        ({"priority_scheduling": True}, "--scheduling-policy priority"),
        (
            {"speculative": {"method": "ngram", "tokens": 4}},
            "--spec-method ngram --spec-tokens 4",
        ),
        (
            {"speculative": {"method": "eagle3", "model": "/draft", "tokens": 2}},
            "--spec-method eagle3 --spec-model /draft --spec-tokens 2",
        ),
        (
            {"engine_args": {"stream-interval": 4, "async_scheduling": False}},
            "--stream-interval 4 --no-async-scheduling",
        ),
    ],
    ids=str,
)
def test_each_setting_becomes_its_flag(
    tmp_path: Path, fields: dict[str, object], line: str
) -> None:
    assert flags(tmp_path, **fields) == line.split()


def test_adapters_are_loaded_by_name_and_may_all_be_in_one_batch(tmp_path: Path) -> None:
    line = flags(tmp_path, lora={"law": "/ad/la w", "tax": "/ad/tax"})
    assert line[:4] == ["--enable-lora", "--max-loras", "2", "--lora-modules"]
    assert [json.loads(module) for module in line[4:]] == [
        {"name": "law", "path": "/ad/la w"},
        {"name": "tax", "path": "/ad/tax"},
    ]
    fewer = flags(tmp_path, lora={"law": "/l", "tax": "/t"}, engine_args={"max-loras": 1})
    assert fewer[1:3] == ["--max-loras", "1"]


def test_the_users_environment_is_kept_but_for_what_the_adapter_needs(tmp_path: Path) -> None:
    env = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_API_KEY": "another"}
    environment = engine(env=env).environment(launch(tmp_path))
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert environment["VLLM_API_KEY"] == "the-secret-key"


def test_the_key_reaches_the_engine_by_environment_and_never_by_command_line(
    tmp_path: Path,
) -> None:
    vllm = engine()
    assert vllm.takes_key
    assert vllm.environment(launch(tmp_path))["VLLM_API_KEY"] == "the-secret-key"
    assert not any("the-secret-key" in part for part in vllm.command(launch(tmp_path)))


def chat(**fields: Any) -> ChatRequest:
    body = {"model": "chat", "messages": [{"role": "user", "content": "Hello world"}], **fields}
    return ChatRequest.model_validate(body)


def body_of(model_dir: Path, request: ChatRequest, **fields: object) -> dict[str, Any]:
    settings = VllmEngine.model_validate({"name": "vllm", "max_model_len": 20, **fields})
    body: dict[str, Any] = json.loads(Vllm(settings, model_dir).call(request).body)
    return body


def test_several_greedy_answers_are_asked_for_as_the_likeliest_token_each_time(
    tmp_path: Path,
) -> None:
    several = body_of(tmp_path, chat(n=2, temperature=0))
    assert (several["n"], several["temperature"], several["top_k"]) == (2, 1.0, 1)
    one = body_of(tmp_path, chat(temperature=0))
    assert one["temperature"] == 0
    assert "top_k" not in one
    assert body_of(tmp_path, chat(n=2, temperature=0.5, top_k=9))["top_k"] == 9


def test_an_answer_it_would_cut_short_is_refused_with_the_counts(model_folder: Path) -> None:
    assert body_of(model_folder, chat(max_tokens=15))["max_tokens"] == 15
    with pytest.raises(ApiError, match="20 tokens and the prompt has 5") as caught:
        body_of(model_folder, chat(max_tokens=16))
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")


@pytest.mark.parametrize("fields", [{"max_model_len": 100_000}, {"chat_template": "/t.jinja"}])
def test_a_prompt_is_counted_only_where_it_can_matter_and_be_right(
    model_folder: Path, fields: dict[str, object]
) -> None:
    (model_folder / "chat_template.jinja").write_text("{{ raise_exception('counted') }}")
    with pytest.raises(ApiError, match="counted"):
        body_of(model_folder, chat(max_tokens=16))
    assert body_of(model_folder, chat(max_tokens=16), **fields)["max_tokens"] == 16
    assert "max_tokens" not in body_of(model_folder, chat())


def test_a_model_without_tokenizer_file_is_left_to_the_engine(tmp_path: Path) -> None:
    assert body_of(tmp_path, chat(max_tokens=5000))["max_tokens"] == 5000
