"""What others wrote or this project measured, once each, with where it was read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    """A sentence, and the names of the figures it rests on."""

    text: str
    figures: tuple[str, ...] = ()


@dataclass(frozen=True)
class Figure:
    """A claim, and where it was read or how this project measured it."""

    claim: str
    source: str


FIGURES = {
    "radix": Figure(
        "SGLang's prefix cache: up to 6.4 times the throughput of vLLM 0.2.5, Guidance and LMQL on "
        "agents, few-shot prompts, reasoning, JSON, RAG and multi-turn chat; 50 to 99 % cache hits",
        "https://arxiv.org/abs/2312.07104",
    ),
    "apc": Figure(
        "vLLM too shares prefixes, by default now; that shortens prefill, not decoding",
        "https://docs.vllm.ai/en/latest/features/automatic_prefix_caching/",
    ),
    "paged": Figure(
        "vLLM's paged KV cache: 2 to 4 times FasterTransformer's and Orca's throughput at the same "
        "latency",
        "https://arxiv.org/abs/2309.06180",
    ),
    "waste": Figure(
        "paging wastes under 4 % of the KV cache's memory; earlier systems wasted 60 to 80 %",
        "https://vllm.ai/blog/2023-06-20-vllm",
    ),
    "kv": Figure(
        "KV cache per token = 2 (key, value) x layers x width x bytes, e.g. 800 KB for OPT-13B",
        "https://arxiv.org/abs/2309.06180 section 3",
    ),
    "shapes": Figure(
        "layers, KV heads, head size: 16, 8, 64 (Llama 3.2 1B); 32, 8, 128 (Llama 3 8B); "
        "80, 8, 128 (Llama 3 70B); 126, 8, 128 (Llama 3.1 405B)",
        "config.json of these models' copies on huggingface.co, e.g. unsloth/llama-3-8b-Instruct",
    ),
    "vllm-memory": Figure(
        "vLLM takes 0.92 of a GPU for all it does, unless told otherwise",
        "https://github.com/vllm-project/vllm vllm/config/cache.py",
    ),
    "sglang-memory": Figure(
        "SGLang's fraction covers weights and KV cache; leave 5 to 8 GB for the rest",
        "https://docs.sglang.io/advanced_features/hyperparameter_tuning.html",
    ),
    "one-gpu": Figure(
        "a model that fits on one GPU needs no tensor parallelism",
        "https://docs.vllm.ai/en/latest/serving/parallelism_scaling/",
    ),
    "copies": Figure(
        "where memory allows, copies (data parallel) give the better throughput",
        "https://docs.sglang.io/advanced_features/hyperparameter_tuning.html",
    ),
    "tuning": Figure(
        "large prefill chunks help the first token, small ones (2048) the steps between tokens; "
        "with the KV cache full, vLLM puts requests back and computes them again",
        "https://docs.vllm.ai/en/stable/configuration/optimization/",
    ),
    "kv-fp8": Figure(
        "an fp8 KV cache holds about twice the tokens",
        "https://docs.vllm.ai/en/v0.11.2/features/quantization/quantized_kvcache/",
    ),
    "fp8": Figure(
        "fp8 halves the weights' memory; computed in fp8 on Ada, Hopper and newer GPUs",
        "https://docs.vllm.ai/en/v0.32.0/features/quantization/llm_compressor/fp8/",
    ),
    "awq": Figure(
        "naming `awq` makes vLLM take slower kernels than it finds by itself",
        "https://github.com/vllm-project/vllm/issues/20112",
    ),
    "flops": Figure(
        "a forward pass costs about 2 operations per parameter and token",
        "https://arxiv.org/abs/2001.08361 equation 2.2",
    ),
    "h100": Figure(
        "an H100 SXM's dense peak: 989 TFLOPS in bf16, 1,979 in fp8",
        "https://glennklockwood.com/garden/processors/h100",
    ),
    "serve": Figure(
        "its authors mean transformers' server for evaluation and moderate load, and recommend "
        "vLLM or SGLang for large-scale production",
        "https://github.com/huggingface/transformers/pull/40758",
    ),
    "ready": Figure(
        "healthy after 6 s (transformers), 24 s (SGLang), about 58 s (vLLM)",
        "measured by this project: a 0.75-million-parameter Llama on two CPU cores",
    ),
    "llama.cpp": Figure(
        "llama-server: GGUF models on CPUs and GPUs, several users at once, OpenAI's API",
        "https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md",
    ),
    "trtllm": Figure(
        "trtllm-serve speaks OpenAI's API",
        "https://nvidia.github.io/TensorRT-LLM/latest/commands/trtllm-serve.html",
    ),
    "tei": Figure(
        "an engine for embedding models that batches by tokens",
        "https://huggingface.co/docs/text-embeddings-inference",
    ),
    "pooling": Figure(
        "vLLM runs embedding models, with no promise to be faster than other programs",
        "https://docs.vllm.ai/en/v0.18.0/models/pooling_models/",
    ),
    "bento": Figure(
        "a BentoML service around one model, here XGBoost",
        "https://docs.bentoml.com/en/latest/examples/xgboost.html",
    ),
    "batching": Figure(
        "BentoML gathers single requests into batches",
        "https://docs.bentoml.com/en/bentocloud/get-started/adaptive-batching.html",
    ),
    "composition": Figure(
        "BentoML services that call each other, each on its own hardware",
        "https://docs.bentoml.com/en/latest/get-started/model-composition.html",
    ),
    "triton": Figure(
        "Triton: TensorRT, ONNX, PyTorch and tree models, batches and ensembles",
        "https://docs.nvidia.com/deeplearning/sdk/triton-inference-server-guide/docs",
    ),
}
