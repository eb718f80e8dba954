"""The engines' closed lists, so that a value one of them lacks is refused before it starts.

They are those of the versions in `engines/`: look them up again when you move to another version.
"""

from __future__ import annotations

from typing import Literal

DType = Literal["auto", "bfloat16", "float16", "float32"]

TransformersAttention = Literal[
    "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"
]
TransformersQuantization = Literal["bnb-4bit", "bnb-8bit"]
VllmQuantization = Literal[
    "auto_awq",
    "auto_gptq",
    "awq",
    "awq_marlin",
    "compressed-tensors",
    "deepseek_v4_fp8",
    "experts_int8",
    "fp8",
    "fp8_per_block",
    "fp8_per_channel",
    "fp8_per_tensor",
    "gpt_oss_mxfp4",
    "gptq",
    "gptq_marlin",
    "humming",
    "inc",
    "int8_per_channel_weight_only",
    "modelopt",
    "modelopt_fp4",
    "modelopt_mixed",
    "modelopt_mxfp8",
    "moe_wna16",
    "mxfp4",
    "mxfp8",
    "nvfp4_per_token",
    "online",
    "quark",
    "torchao",
]
VllmCache = Literal[
    "auto",
    "bfloat16",
    "float16",
    "fp8",
    "fp8_ds_mla",
    "fp8_e4m3",
    "fp8_e5m2",
    "fp8_inc",
    "fp8_per_token_head",
    "int4_per_token_head",
    "int8_per_token_head",
    "nvfp4",
    "nvfp4_4over6",
    "nvfp4_ds_mla",
    "turboquant_3bit_nc",
    "turboquant_4bit_nc",
    "turboquant_k3v4_nc",
    "turboquant_k8v4",
    "ultraquant_4bit",
]
VllmDraft = Literal[
    "ngram",
    "suffix",
    "draft_model",
    "eagle",
    "eagle3",
    "mtp",
    "medusa",
    "mlp_speculator",
    "dflash",
    "dspark",
]
SglangQuantization = Literal[
    "auto-round",
    "auto-round-int8",
    "awq",
    "awq_marlin",
    "bitsandbytes",
    "compressed-tensors",
    "fp8",
    "gguf",
    "gptq",
    "gptq_marlin",
    "humming",
    "mlx_q4",
    "mlx_q8",
    "modelopt",
    "modelopt_fp4",
    "modelopt_fp8",
    "modelopt_mixed",
    "modelslim",
    "moe_wna16",
    "mxfp4",
    "mxfp8",
    "mxfp_w4a8",
    "nvfp4_online",
    "petit_nvfp4",
    "quark",
    "quark_int4fp8_moe",
    "quark_mxfp4",
    "unquant",
    "w4afp8",
    "w8a8_fp8",
    "w8a8_int8",
]
SglangCache = Literal[
    "auto", "bf16", "bfloat16", "fp4_mx_block16", "fp8_e4m3", "fp8_e5m2", "mxfp8", "nvfp4"
]
SglangDraft = Literal["ngram", "draft_model", "eagle", "eagle3", "mtp", "dflash", "dspark"]
