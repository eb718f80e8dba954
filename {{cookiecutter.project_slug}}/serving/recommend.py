"""Which engine for these needs, with which settings, and why: behind `serving engine recommend`.

Nothing here reads a file or prints. The first of `RULES` that fires decides; `plan` is the memory
arithmetic. What others wrote or this project measured stands once, in `FIGURES`, with where it was
read; the constants after it are this project's own choices. Memory is in bytes unless a name says
GiB, lengths are in tokens, times in milliseconds; names in quotes are entries of `FIGURES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any


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

GIB = 2**30
#: Share of a GPU planned for weights and KV cache; the rest is for activations and CUDA graphs.
#: This project's choice, below what "vllm-memory" takes for everything.
PLANNED = 0.85
#: Up to so many parameters: layers, KV heads, head size of "shapes", rounded up.
SHAPES = ((2e9, 16, 8, 64), (10e9, 32, 8, 128), (80e9, 80, 8, 128), (math.inf, 126, 8, 128))

#: A context that is worth a proposal, and its step.
SHORTEST = 512
H100_TFLOPS, H100_FP8_TFLOPS = 989, 1979  # "h100"
LONG_PREFIX = 0.5  # from here on the prefix cache decides: "radix" had 50 % and more
MANY_STREAMS = 100  # too many for a CPU
LARGE_GPU_GIB, PREFILL_CHUNK = 40, 8192  # "tuning"; chunks cost memory, so on larger GPUs only
MEMORY_FRACTION = {"vllm": 0.92, "sglang": PLANNED}  # "vllm-memory", "sglang-memory"


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
    plans = list(_plans(needs))
    enough = (one for one in plans if one.streams >= needs.concurrency)
    best = next(enough, None) or max(plans, key=lambda one: one.streams)
    return best if best.streams else None


def _plans(needs: Needs) -> Iterator[Plan]:
    for gpus in (2**power for power in range(needs.gpus.bit_length())):
        if (needs.model.attention_heads or gpus) % gpus:
            return
        room = PLANNED * needs.gpu_memory_gib * GIB - needs.model.weight_bytes / gpus
        tokens = max(0, int(room * needs.model.kv_parts(gpus) / needs.kv_bytes))
        copies = min(needs.gpus // gpus, needs.concurrency)
        yield Plan(gpus, copies, tokens, copies * (tokens // needs.context))


@dataclass(frozen=True)
class Line:
    """A sentence, and the names of the figures it rests on."""

    text: str
    figures: tuple[str, ...] = ()


def demand(needs: Needs) -> Line:
    model, stream = needs.model, needs.kv_bytes * needs.context
    known = "estimated from the size" if model.estimated else "from config.json"
    return Line(
        f"Weights {_gib(model.weight_bytes)}; KV cache {needs.kv_bytes / 1024:,.0f} KiB a token "
        f"({known}), so {_gib(stream)} for a stream of {needs.context:,} tokens.",
        ("kv", "shapes") if model.estimated else ("kv",),
    )


def on_a_cpu(needs: Needs) -> Iterator[Line]:
    yield Line(
        f"Each token reads all weights, {_gib(needs.model.weight_bytes)}: memory bandwidth divided "
        "by that is the most tokens a second of one stream."
    )
    if needs.ttft_ms is not None:
        yield Line("No figure tells a CPU's time to first token: run the load test.")


def layout(needs: Needs, planned: Plan, engine: str) -> Iterator[Line]:
    yield demand(needs)
    gpus = _count(planned.tensor_parallel, "GPU")
    copies = f"{planned.copies} copies, each on {gpus}" if planned.copies > 1 else gpus
    prefixes = " and no sharing" if needs.shared_prefix else ""
    yield Line(
        f"{copies}: {PLANNED:.0%} of the memory has room for {planned.streams:,} streams, counted "
        f"at full length{prefixes}.",
        (
            *([f"{engine}-memory"] if engine != "transformers" else []),
            *(["one-gpu"] if planned.tensor_parallel > 1 else []),
            *(["copies"] if planned.copies > 1 else []),
        ),
    )


def shortfalls(needs: Needs, planned: Plan) -> Iterator[Line]:
    """What will not be as asked, or may not."""
    if planned.streams < needs.concurrency:
        mean = planned.kv_tokens * planned.copies // needs.concurrency
        yield Line(
            f"{needs.concurrency:,} streams fit while prompt and answer are {mean:,} tokens on "
            "average; longer ones wait or are put back.",
            ("tuning",),
        )
        more = plan(replace(needs, fp8_kv_cache=True))
        if more and more.streams > planned.streams:
            room = f"{more.streams:,} of" if more.streams < needs.concurrency else "all of"
            yield Line(f"--fp8-kv-cache gives room for {room} them at full length.", ("kv-fp8",))
    idle = needs.gpus - planned.tensor_parallel * planned.copies
    if idle:
        yield Line(f"{_count(idle, 'GPU')} left over for other models.")
    if needs.context > (needs.model.longest or math.inf):
        yield Line(f"config.json says {needs.model.longest:,} tokens: engines refuse more.")
    if needs.model.estimated:
        yield Line("Name the model with --model for its real KV cache: old ones take far more.")


def first_token(needs: Needs, planned: Plan) -> tuple[bool, Line]:
    """Whether the target is possible at the GPU's peak for a prompt that fills the context, alone:
    prefill is bound by compute, 2 operations per parameter and token ("flops")."""
    if not needs.model.dense:
        return True, Line("Only some experts compute each token: for TTFT, run the load test.")
    fp8 = Quantization.FP8 in (needs.quantization, needs.model.quantized)
    tflops = needs.gpu_tflops or (H100_FP8_TFLOPS if fp8 else H100_TFLOPS)
    new = max(1, round(needs.context * (1 - needs.shared_prefix)))
    peak = tflops * 1e12 * planned.tensor_parallel
    least = 1000 * 2 * needs.model.parameters * new / peak
    gpus = _count(planned.tensor_parallel, "GPU" if needs.gpu_tflops else "H100")
    bound = f"{new:,} new prompt tokens take about {least:,.0f} ms at the peak of {gpus}"
    figures = ("flops",) if needs.gpu_tflops else ("flops", "h100")
    if least > (needs.ttft_ms or math.inf):
        return False, Line(f"TTFT of {needs.ttft_ms:,.0f} ms is unlikely: {bound}.", figures)
    return True, Line(f"{bound}, and more in practice: run the load test.", figures)


def would_fit(needs: Needs) -> Iterator[Line]:
    """What to change, one thing at a time, so that `plan` finds something."""
    for smaller, figures in ((Quantization.FP8, ("fp8",)), (Quantization.AWQ, ())):
        factor = smaller.bytes_per_weight / needs.quantization.bytes_per_weight
        shape = replace(needs.model, weight_bytes=needs.model.weight_bytes * factor)
        found = plan(replace(needs, shape=shape))
        if found and factor < 1 and not needs.model.quantized:
            weights = f"--quantization {smaller}, weights of {_gib(shape.weight_bytes)}"
            yield Line(f"{weights}: {_count(found.streams, 'full stream')}", figures)
            break
    tokens = max(one.kv_tokens for one in _plans(needs))
    if tokens >= SHORTEST:
        yield Line(f"--context {tokens // SHORTEST * SHORTEST}: one stream")
    for gpus in (2**power for power in range(needs.gpus.bit_length(), 7)):
        if found := plan(replace(needs, gpus=gpus)):
            yield Line(f"{gpus} such GPUs: {_count(found.streams, 'full stream')}")
            break


def _gib(size: float) -> str:
    return f"{size / GIB:,.1f} GiB" if size >= 0.1 * GIB else f"{size / 2**20:,.1f} MiB"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


@dataclass(frozen=True)
class Rule:
    """Decides when its condition holds and that of no rule before it. `engine` None: none fits."""

    name: str
    fires: Callable[[Needs, Plan | None], bool]
    engine: str | None
    reasons: tuple[Line, ...]
    instead: tuple[Line, ...] = ()


TRITON = Line("Triton", ("triton",))
LLAMA_CPP = Line("llama.cpp and a GGUF model, as engine `openai_compatible`", ("llama.cpp",))

RULES = (
    Rule(
        "tabular model",
        lambda needs, _: needs.model_type is ModelType.TABULAR,
        None,
        (Line("The engines generate text token by token; a tabular model answers in one pass."),),
        (
            Line("a plain BentoML service: scikit-learn, XGBoost, LightGBM, ONNX", ("bento",)),
            TRITON,
        ),
    ),
    Rule(
        "classic vision model",
        lambda needs, _: needs.model_type is ModelType.VISION,
        None,
        (Line("The engines generate text; classifiers and detectors need batches, no KV cache."),),
        (Line("a BentoML service that batches: ONNX Runtime, PyTorch", ("batching",)), TRITON),
    ),
    Rule(
        "pipeline of models",
        lambda needs, _: needs.model_type is ModelType.PIPELINE,
        None,
        (Line("This service knows models, not steps from one to the next."),),
        (
            Line("BentoML services joined by `bentoml.depends`", ("composition",)),
            Line("this service as the step that generates: run this again with --model-type text"),
            TRITON,
        ),
    ),
    Rule(
        "embedding model on a CPU",
        lambda needs, _: needs.model_type is ModelType.EMBEDDING and not needs.gpus,
        "openai_compatible",
        (Line("Text Embeddings Inference, started by you.", ("tei",)),),
    ),
    Rule(
        "GGUF weights",
        lambda needs, _: needs.quantization is Quantization.GGUF,
        "openai_compatible",
        (Line("llama-server, started by you: the model store takes safetensors.", ("llama.cpp",)),),
    ),
    Rule(
        "hundreds of streams on a CPU",
        lambda needs, _: not needs.gpus and needs.concurrency >= MANY_STREAMS,
        None,
        (Line("All streams share one CPU's memory bandwidth: too little for so many."),),
        (
            Line("vLLM on a GPU: run this again with --gpus 1 and --gpu-memory-gib", ("paged",)),
            Line("a hosted model, as engine `openai_compatible`"),
        ),
    ),
    Rule(
        "streams on a CPU",
        lambda needs, _: (
            not needs.gpus
            and (needs.concurrency > 1 or needs.model_type is ModelType.VISION_LANGUAGE)
        ),
        "openai_compatible",
        (
            Line("llama-server, started by you, batches streams on a CPU.", ("llama.cpp",)),
            Line("transformers answers one at a time, or all at once but without sampling."),
        ),
        (Line("transformers with `continuous_batching: true`, if greedy decoding will do"),),
    ),
    Rule(
        "one stream on a CPU",
        lambda needs, _: not needs.gpus,
        "transformers",
        (Line("The least to install, and the quickest to start.", ("ready",)),),
        (LLAMA_CPP,),
    ),
    Rule(
        "more memory than there is",
        lambda _, planned: planned is None,
        None,
        (Line("The weights and the KV cache of one full sequence do not fit on these GPUs."),),
    ),
    Rule(
        "embedding model on a GPU",
        lambda needs, _: needs.model_type is ModelType.EMBEDDING,
        "vllm",
        (Line("This service starts it and keeps its versions.", ("pooling",)),),
        (Line("Text Embeddings Inference, as engine `openai_compatible`: measure both", ("tei",)),),
    ),
    Rule(
        "long shared prefixes",
        lambda needs, _: needs.shared_prefix >= LONG_PREFIX,
        "sglang",
        (
            Line("Most prompt tokens repeat: its prefix cache was made for that.", ("radix",)),
            Line("vLLM shares prefixes by now too: run the load test on both.", ("apc",)),
        ),
    ),
    Rule(
        "one stream on one GPU",
        lambda needs, planned: (
            needs.model_type is ModelType.TEXT
            and (needs.concurrency, needs.ttft_ms) == (1, None)
            and (needs.quantization, needs.fp8_kv_cache) == (Quantization.NONE, False)
            and planned is not None
            and planned.tensor_parallel == 1
        ),
        "transformers",
        (
            Line("One user leaves nothing to batch, and it is the quickest to start.", ("ready",)),
            Line("Change to vllm before more users come.", ("serve",)),
        ),
    ),
    Rule(
        "streams on GPUs",
        lambda *_: True,
        "vllm",
        (Line("Many streams at once, and the widest choice of models.", ("paged", "waste")),),
    ),
)

#: Why a setting is in the section.
SETTINGS = {
    "quantization": Line("fp8 weights are made from 16-bit ones while loading.", ("fp8",)),
    "kv_cache_dtype": Line("An fp8 KV cache: check the answers' quality.", ("kv-fp8",)),
    "chunked_prefill": Line("Large prefill chunks, for the first token.", ("tuning",)),
}
READ_FROM_THE_MODEL = Line("The engine sees by itself how the weights are stored.", ("awq",))
FASTER = (
    Line("shorter or more repeated prompts, more GPUs for each copy, or fp8 weights", ("fp8",)),
    Line("TensorRT-LLM, as engine `openai_compatible`: measure it", ("trtllm",)),
)


@dataclass(frozen=True)
class Recommendation:
    """`section` is what serving.yaml's `engine:` may hold. `engine` None: none fits."""

    rule: str
    engine: str | None
    section: dict[str, Any] | None
    reasons: tuple[Line, ...]
    warnings: tuple[Line, ...]
    instead: tuple[Line, ...]

    @property
    def figures(self) -> dict[str, Figure]:
        """Those that were used, in the order of their use."""
        lines = (*self.reasons, *self.warnings, *self.instead)
        return {name: FIGURES[name] for line in lines for name in line.figures}


def recommend(needs: Needs) -> Recommendation:
    """Raises `ValueError` when a transformer comes without its shape."""
    planned = plan(needs) if needs.gpus and needs.model_type.is_one_transformer else None
    rule = next(rule for rule in RULES if rule.fires(needs, planned))
    section = _section(rule.engine, needs, planned) if rule.engine else None
    reasons, warnings, instead = [*rule.reasons], list[Line](), [*rule.instead]
    if rule.engine == "openai_compatible":
        warnings.append(Line("Write its own `url`, and the `model` name it goes by there."))
    elif section and planned:
        reasons += [*layout(needs, planned, section["name"])]
        reasons += [SETTINGS[name] for name in section if name in SETTINGS]
        if needs.quantization in (Quantization.AWQ, Quantization.GPTQ):
            reasons.append(READ_FROM_THE_MODEL)
        warnings += shortfalls(needs, planned)
        if needs.ttft_ms is not None:
            likely, line = first_token(needs, planned)
            (reasons if likely else warnings).append(line)
            instead += [] if likely else FASTER
    elif section:
        reasons += on_a_cpu(needs)
    elif needs.gpus and needs.model_type.is_one_transformer:
        reasons.append(demand(needs))
        instead += would_fit(needs)
    return Recommendation(
        rule.name, rule.engine, section, tuple(reasons), tuple(warnings), tuple(instead)
    )


def _section(engine: str, needs: Needs, planned: Plan | None) -> dict[str, Any]:
    section: dict[str, Any] = {"name": engine, "max_model_len": needs.context}
    if engine == "openai_compatible":
        return {**section, "url": "http://127.0.0.1:8080/v1", "model": "NAME"}
    if planned is None or engine == "transformers":
        return {**section, "gpus": min(needs.gpus, 1)}
    generates = needs.model_type is not ModelType.EMBEDDING
    makes_fp8 = needs.quantization is Quantization.FP8 and not needs.model.quantized
    large = needs.gpu_memory_gib >= LARGE_GPU_GIB
    settings = {
        "gpus": planned.tensor_parallel * planned.copies,
        "tensor_parallel": planned.tensor_parallel if planned.tensor_parallel > 1 else None,
        "data_parallel": planned.copies if planned.copies > 1 else None,
        "memory_fraction": MEMORY_FRACTION[engine],
        "max_running": -(-needs.concurrency // planned.copies),  # in each copy: sglang pull 20063
        "quantization": "fp8" if makes_fp8 else None,
        "kv_cache_dtype": "fp8_e4m3" if needs.fp8_kv_cache else None,
        "prefix_caching": True if generates and needs.shared_prefix else None,
        "chunked_prefill": PREFILL_CHUNK if generates and needs.ttft_ms and large else None,
    }
    return section | {name: value for name, value in settings.items() if value is not None}
