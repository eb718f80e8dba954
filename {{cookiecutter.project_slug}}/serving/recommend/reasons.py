"""The sentences that explain an arrangement: what it takes, what it lacks, what would help."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from serving.recommend.figures import Line
from serving.recommend.sizing import GIB, PLANNED, Needs, Plan, Quantization, plan, plans

#: A context that is worth a proposal, and its step.
SHORTEST = 512
H100_TFLOPS, H100_FP8_TFLOPS = 989, 1979  # "h100"


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
    tokens = max(one.kv_tokens for one in plans(needs))
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
