"""What a model needs of memory, and how it is laid out over GPUs.

Memory is in bytes unless a name says GiB, lengths are in tokens, times in milliseconds; names in
quotes are entries of `FIGURES`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

GIB = 2**30
#: Share of a GPU planned for weights and KV cache; the rest is for activations and CUDA graphs.
#: This project's choice, below what "vllm-memory" takes for everything.
PLANNED = 0.85
#: Up to so many parameters: layers, KV heads, head size of "shapes", rounded up.
SHAPES = ((2e9, 16, 8, 64), (10e9, 32, 8, 128), (80e9, 80, 8, 128), (math.inf, 126, 8, 128))


class ModelType(StrEnum):
    TEXT = "text"
    VISION_LANGUAGE = "vision-language"
    EMBEDDING = "embedding"
    TABULAR = "tabular"
    VISION = "vision"
    PIPELINE = "pipeline"

    @property
    def is_one_transformer(self) -> bool:
        return self in (ModelType.TEXT, ModelType.VISION_LANGUAGE, ModelType.EMBEDDING)


class Quantization(StrEnum):
    NONE = "none"
    FP8 = "fp8"
    AWQ = "awq"
    GPTQ = "gptq"
    GGUF = "gguf"

    @property
    def bytes_per_weight(self) -> float:
        """16, 8 or 4 bits; scales and what stays in 16 bits come on top."""
        return {Quantization.NONE: 2.0, Quantization.FP8: 1.0}.get(self, 0.5)


@dataclass(frozen=True)
class Shape:
    """What of a model costs memory. `latent`: the elements that a model with latent attention
    (DeepSeek) caches per token and layer instead of keys and values. `quantized`: how its files
    are. `longest`: the tokens it was made for."""

    parameters: float
    weight_bytes: float
    layers: int
    kv_heads: int
    head_dim: int
    estimated: bool = True
    attention_heads: int | None = None
    latent: int = 0
    dense: bool = True
    quantized: str | None = None
    longest: int | None = None

    def kv_bytes(self, element_bytes: int) -> int:
        """KV cache of one token in all layers ("kv")."""
        return self.layers * (self.latent or 2 * self.kv_heads * self.head_dim) * element_bytes

    def kv_parts(self, gpus: int) -> int:
        """Over how many of `gpus` it is divided: engines copy KV heads rather than cut them
        (https://docs.vllm.ai/en/v0.12.0/api/vllm/model_executor/models/deepseek_v2/)."""
        return 1 if self.latent else min(gpus, self.kv_heads)


def estimate_shape(parameters: float, weight_bytes: float) -> Shape:
    layers, kv_heads, head_dim = next(shape for most, *shape in SHAPES if parameters <= most)
    return Shape(parameters, weight_bytes, layers, kv_heads, head_dim)


def shape_of(
    config: Mapping[str, Any], parameters: float | None, file_bytes: int, bytes_per_weight: float
) -> Shape:
    """From a model's config.json and the size of its weight files, 0 when they are not there; then
    `parameters` must be known. Raises `KeyError` for a key that config.json lacks."""
    text = config.get("text_config") or config
    quantized = (config.get("quantization_config") or {}).get("quant_method")
    if parameters is None:
        full = 4 if "float32" in (text.get("dtype"), text.get("torch_dtype")) else 2
        parameters = file_bytes / ({"fp8": 1}.get(quantized, 0.5) if quantized else full)
    heads = int(text["num_attention_heads"])
    latent = int(text.get("kv_lora_rank") or 0)
    kinds = text.get("layer_types") or []
    experts = ("num_experts", "num_local_experts", "n_routed_experts")
    return Shape(
        parameters,
        file_bytes if quantized and file_bytes else parameters * bytes_per_weight,
        # Linear attention keeps no cache. Windows are counted in full: an upper bound.
        layers=sum(kind != "linear_attention" for kind in kinds) or int(text["num_hidden_layers"]),
        kv_heads=int(text.get("num_key_value_heads") or heads),
        head_dim=int(text.get("head_dim") or text["hidden_size"] // heads),
        estimated=False,
        attention_heads=heads,
        latent=latent and latent + int(text.get("qk_rope_head_dim") or 0),
        dense=not any((text.get(key) or 0) > 1 for key in experts),
        quantized=quantized,
        longest=text.get("max_position_embeddings"),
    )


@dataclass(frozen=True)
class Needs:
    """`concurrency`: streams at the same time. `shared_prefix`: share, 0 to 1, of the prompts'
    tokens that repeat between requests. `ttft_ms`: the target, if there is one. `gpu_tflops`: the
    dense peak of one GPU, if known. `shape`: None only for what is not one transformer."""

    model_type: ModelType
    shape: Shape | None = None
    concurrency: int = 1
    context: int = 4096
    shared_prefix: float = 0.0
    ttft_ms: float | None = None
    gpus: int = 0
    gpu_memory_gib: float = 0.0
    quantization: Quantization = Quantization.NONE
    fp8_kv_cache: bool = False
    gpu_tflops: float | None = None

    @property
    def model(self) -> Shape:
        if self.shape is None:
            raise ValueError(f"for {self.model_type} models, say the shape")
        return self.shape

    @property
    def kv_bytes(self) -> int:
        """Of one token."""
        return self.model.kv_bytes(1 if self.fp8_kv_cache else 2)


@dataclass(frozen=True)
class Plan:
    """`copies` of the model, each over `tensor_parallel` GPUs with room for `kv_tokens` tokens."""

    tensor_parallel: int
    copies: int
    kv_tokens: int
    streams: int  # sequences of the whole context length, in all copies


def plan(needs: Needs) -> Plan | None:
    """The smallest power of two of GPUs a copy with which the weights and all streams' KV cache
    fit; without one, that with room for most streams. None: not even one stream fits."""
    found = list(plans(needs))
    enough = (one for one in found if one.streams >= needs.concurrency)
    best = next(enough, None) or max(found, key=lambda one: one.streams)
    return best if best.streams else None


def plans(needs: Needs) -> Iterator[Plan]:
    """Over one GPU a copy, over two, four ... while the model's heads can be divided so."""
    for gpus in (2**power for power in range(needs.gpus.bit_length())):
        if (needs.model.attention_heads or gpus) % gpus:
            return
        room = PLANNED * needs.gpu_memory_gib * GIB - needs.model.weight_bytes / gpus
        tokens = max(0, int(room * needs.model.kv_parts(gpus) / needs.kv_bytes))
        copies = min(needs.gpus // gpus, needs.concurrency)
        yield Plan(gpus, copies, tokens, copies * (tokens // needs.context))
