"""What a version needs at the least, and what is said when that is not there."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.runtime import memory
from serving.runtime.checks import FileRecord
from serving.runtime.devices import Gpu, Memory
from serving.runtime.memory import Need, machine, needed, shortage
from serving.runtime.store import Version
from serving.settings import SglangEngine, TransformersEngine, VllmEngine

GIB = 2**30
LLAMA_8B = {
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 4096,
    "dtype": "bfloat16",
}
QWEN_7B = {
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "hidden_size": 3584,
    "torch_dtype": "bfloat16",
}
DEEPSEEK_V3 = {
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "hidden_size": 7168,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
}


def version(folder: Path, config: Any, weights: int = 16 * GIB) -> Version:
    (folder / "config.json").write_text(json.dumps(config))
    files = [FileRecord("model.safetensors", weights, ""), FileRecord("tokenizer.json", GIB, "")]
    return Version("chat", 4, folder, datetime.now(UTC), "here", files)


def vllm(**fields: Any) -> VllmEngine:
    return VllmEngine.model_validate({"name": "vllm", "max_model_len": 1000, **fields})


@pytest.mark.parametrize(
    ("config", "token"),
    [(LLAMA_8B, 128 * 1024), (QWEN_7B, 56 * 1024), (DEEPSEEK_V3, 70272)],
    ids=["Llama 3.1 8B", "Qwen2.5 7B", "DeepSeek V3"],
)
def test_the_cache_of_well_known_models(tmp_path: Path, config: Any, token: int) -> None:
    """Bytes for each token, as their authors and the engines count them."""
    assert needed(version(tmp_path, config), vllm()) == Need(16 * GIB, 1000 * token)
    nested = version(tmp_path, {"text_config": config})
    assert needed(nested, vllm()).kv_cache == 1000 * token


def test_ranks_share_weights_and_cache_and_copies_do_not(tmp_path: Path) -> None:
    model = version(tmp_path, LLAMA_8B)
    whole = needed(model, vllm(gpus=1))
    assert needed(model, vllm(gpus=2)) == Need(whole.weights // 2, whole.kv_cache // 2)
    assert needed(model, vllm(gpus=4, pipeline_parallel=2)).weights == whole.weights // 4
    assert needed(model, vllm(gpus=2, data_parallel=2)) == whole
    latent = version(tmp_path, DEEPSEEK_V3)
    assert needed(latent, vllm(gpus=8)).kv_cache == needed(latent, vllm(gpus=1)).kv_cache


@pytest.mark.parametrize(
    ("fields", "weights"),
    [
        ({"dtype": "float32"}, 32 * GIB),
        ({"dtype": "float16"}, 16 * GIB),
        ({"quantization": "fp8"}, 4 * GIB),
    ],
)
def test_weights_may_be_wider_or_narrower_than_their_files(
    tmp_path: Path, fields: dict[str, Any], weights: int
) -> None:
    assert needed(version(tmp_path, LLAMA_8B), vllm(**fields)).weights == weights


def test_a_cache_of_eight_bits_is_half_as_large(tmp_path: Path) -> None:
    model = version(tmp_path, LLAMA_8B)
    assert needed(model, vllm(kv_cache_dtype="fp8")).kv_cache == 1000 * 64 * 1024


@pytest.mark.parametrize(
    "config",
    [
        {},
        [],
        None,
        "text",
        {**LLAMA_8B, "num_attention_heads": 0},
        {**LLAMA_8B, "num_hidden_layers": "many"},
        {**LLAMA_8B, "num_hidden_layers": -3},
        {**LLAMA_8B, "hidden_size": None},
        {**LLAMA_8B, "text_config": [1]},
        {**LLAMA_8B, "sliding_window": 4096},
        {**LLAMA_8B, "layer_types": ["linear_attention", "full_attention"]},
    ],
    ids=str,
)
def test_what_is_not_known_counts_as_nothing(tmp_path: Path, config: Any) -> None:
    assert needed(version(tmp_path, config), vllm()).kv_cache == 0


VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3))


@given(st.dictionaries(st.sampled_from([*LLAMA_8B, *DEEPSEEK_V3, "layer_types"]), VALUES))
def test_no_config_is_a_crash(tmp_path_factory: pytest.TempPathFactory, config: Any) -> None:
    model = version(tmp_path_factory.mktemp("model"), config)
    assert needed(model, vllm()).all >= 0


def test_the_machines_own_memory_is_known() -> None:
    assert 0 < machine().free <= machine().total


def gpus(*free: float) -> list[Gpu]:
    """Of 80 GiB each."""
    return [Gpu(i, Memory(80 * GIB, int(size * GIB))) for i, size in enumerate(free)]


def test_what_does_not_fit_is_told_with_its_numbers(tmp_path: Path) -> None:
    model = version(tmp_path, LLAMA_8B, 19 * GIB)
    sglang = SglangEngine.model_validate({"name": "sglang", "max_model_len": 16384, "gpus": 1})
    assert shortage(model, sglang, gpus(20)) == (
        "chat:4 needs at least 21.0 GiB on each GPU (weights 19.0 GiB, KV cache of one full-length "
        "request 2.0 GiB) and 20.0 GiB are free; free some, or lower max_model_len"
    )
    assert shortage(model, sglang, gpus(21)) == shortage(model, sglang, []) == ""


def test_vllm_wants_its_share_of_a_device_free(tmp_path: Path) -> None:
    model = version(tmp_path, LLAMA_8B, 5 * GIB)
    told = shortage(model, vllm(gpus=1), gpus(20))
    assert told.startswith("vllm takes 92% of a GPU of 80.0 GiB and 20.0 GiB are free; ")
    assert shortage(model, vllm(gpus=1, memory_fraction=0.2), gpus(20)) == ""
    assert shortage(model, vllm(gpus=1), gpus(79)) == ""


def test_too_few_devices_are_told(tmp_path: Path) -> None:
    model = version(tmp_path, LLAMA_8B, 5 * GIB)
    assert shortage(model, vllm(gpus=2), gpus(79)).startswith("a replica takes 2 GPUs and there ")


def test_on_a_cpu_the_machines_memory_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "machine", lambda: Memory(16 * GIB, 10 * GIB))
    section = TransformersEngine(name="transformers", max_model_len=1024)
    told = shortage(version(tmp_path, LLAMA_8B), section, [])
    assert told.startswith("chat:4 needs at least 16.1 GiB of memory (weights 16.0 GiB, ")
    assert shortage(version(tmp_path, LLAMA_8B, 8 * GIB), section, []) == ""
