"""Which engine for these needs, with which settings, and why: behind `serving engine recommend`.

Nothing here reads a file or prints. `rules` decides, `sizing` is the memory arithmetic, `reasons`
puts it into words, and `figures` holds what all of them rest on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from serving.recommend.figures import FIGURES, Figure, Line
from serving.recommend.reasons import demand, first_token, layout, on_a_cpu, shortfalls, would_fit
from serving.recommend.rules import RULES
from serving.recommend.sizing import PLANNED, ModelType, Needs, Plan, Quantization, plan

LARGE_GPU_GIB, PREFILL_CHUNK = 40, 8192  # "tuning"; chunks cost memory, so on larger GPUs only
MEMORY_FRACTION = {"vllm": 0.92, "sglang": PLANNED}  # "vllm-memory", "sglang-memory"

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
