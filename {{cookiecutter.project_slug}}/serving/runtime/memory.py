"""Whether a version can fit into the memory that is free, before its engine tries.

The need is a lower bound: what is not known counts as nothing, so that only what certainly cannot
fit is refused, with the numbers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.recommend.sizing import GIB, shape_of
from serving.runtime.devices import Gpu, Memory
from serving.runtime.store import Version
from serving.settings import EngineSettings, GpuEngine, ProcessEngine, VllmEngine

#: The share of a device that vLLM 0.32 wants free at its start (`gpu_memory_utilization`).
VLLM_SHARE = 0.92
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Need:
    """Bytes on one device, or on the machine for a CPU: the weights, and the KV cache of one
    request of full length."""

    weights: int
    kv_cache: int

    @property
    def all(self) -> int:
        return self.weights + self.kv_cache


def shortage(version: Version, section: EngineSettings, gpus: list[Gpu]) -> str:
    """Why a replica of the version cannot fit on its `gpus` now, or in the machine's memory if it
    needs none; with what to do. Nothing when it may, or when that is not known."""
    if not isinstance(section, ProcessEngine):
        return ""
    if 0 < len(gpus) < section.gpus:
        return (
            f"a replica takes {section.gpus} GPUs and there are {len(gpus)}; lower gpus in "
            "serving.yaml, or show it more"
        )
    devices = [gpu.memory for gpu in gpus] if section.gpus else [machine()]
    need = needed(version, section)
    told = f"weights {_gib(need.weights)}, KV cache of one full-length request " + _gib(
        need.kv_cache
    )
    where = "on each GPU" if section.gpus else "of memory"
    for device in devices:
        if device.free and need.all > device.free:
            return (
                f"{version.tag} needs at least {_gib(need.all)} {where} ({told}) and "
                f"{_gib(device.free)} are free; free some, or lower max_model_len"
            )
        share = _share(section)
        if share and device.free < share * device.total:
            return (
                f"vllm takes {share:.0%} of a GPU of {_gib(device.total)} and "
                f"{_gib(device.free)} are free; set memory_fraction lower for both versions, or "
                "end the other one first"
            )
    return ""


def needed(version: Version, section: ProcessEngine) -> Need:
    """On each device that one replica takes."""
    config = _config(version.path)
    weights = sum(file.size for file in version.files if file.path.endswith(_WEIGHTS))
    ranks, stages = 1, 1
    if isinstance(section, GpuEngine):
        ranks, stages = section.tensor_ranks, section.pipeline_parallel
    if not section.gpus:  # all of them on this one machine
        ranks, stages = 1, 1
    return Need(
        int(weights * _width(config, section) / (ranks * stages)),
        int(_kv_cache(config, section, ranks) / stages),
    )


def machine() -> Memory:
    """What a new process can have: of the machine, or of the container within it."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text("ascii").splitlines())
    known = {words[0]: int(words[1]) * 1024 for words in lines if len(words) > 1}
    total, free = known.get("MemTotal:", 0), known.get("MemAvailable:", 0)
    group = Path("/sys/fs/cgroup")
    try:  # version 2; what the page cache holds can be taken back
        limit = int((group / "memory.max").read_text("ascii"))
        used = int((group / "memory.current").read_text("ascii"))
        stat = (group / "memory.stat").read_text("ascii").split()
        used -= int(stat[stat.index("inactive_file") + 1])
        return Memory(min(total, limit), min(free, limit - used))
    except (OSError, ValueError):  # no container, or one without a limit
        return Memory(total, free)


def _config(folder: Path) -> Mapping[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _width(config: Mapping[str, Any], section: ProcessEngine) -> float:
    """How much wider or narrower the weights are in memory than in their files, at the least."""
    if config.get("quantization_config"):
        return 1
    if getattr(section, "quantization", None):
        return 0.25  # four bits of sixteen are the narrowest
    stored = _BYTES.get(str(config.get("dtype") or config.get("torch_dtype")))
    loaded = _BYTES.get(str(section.dtype))
    return loaded / stored if stored and loaded else 0.5 if stored == 4 else 1


def _kv_cache(config: Mapping[str, Any], section: ProcessEngine, ranks: int) -> float:
    text = config.get("text_config") or config
    try:
        kinds = set(text.get("layer_types") or ["full_attention"])
        if text.get("sliding_window") or kinds != {"full_attention"}:
            return 0  # a window's cache is small, and linear attention has none
        shape = shape_of(config, 0, 0, 0)
        element = 1 if str(getattr(section, "kv_cache_dtype", "")).startswith("fp8") else 2
        return max(0, shape.kv_bytes(element) * section.max_model_len / shape.kv_parts(ranks))
    except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError):
        return 0


def _share(section: ProcessEngine) -> float:
    """The share of each GPU that the engine must find free."""
    if section.gpus and isinstance(section, VllmEngine):
        return float(section.memory_fraction or VLLM_SHARE)
    return 0


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:.0f} MiB"
