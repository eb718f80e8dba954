"""Which engine for which needs: the first of `RULES` that fires decides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from serving.recommend.figures import Line
from serving.recommend.sizing import ModelType, Needs, Plan, Quantization

LONG_PREFIX = 0.5  # from here on the prefix cache decides: "radix" had 50 % and more
MANY_STREAMS = 100  # too many for a CPU


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
