"""A LoRA adapter for the demo model, made by hand: it changes every answer, to no good."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path

RANK = 4


def make_adapter(project: Path, folder: Path) -> Path:
    """Writes adapter_config.json and the weights of a rank-4 adapter on q_proj and v_proj."""
    config = json.loads((project / "demo_model/config.json").read_text("utf-8"))
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    head = config.get("head_dim") or hidden // config["num_attention_heads"]
    widths = {
        "q_proj": head * config["num_attention_heads"],
        "v_proj": head * config["num_key_value_heads"],
    }
    tensors = {}
    for layer in range(layers):
        for module, width in widths.items():
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}.lora_"
            tensors[f"{name}A.weight"] = (RANK, hidden)
            tensors[f"{name}B.weight"] = (width, RANK)
    folder.mkdir(parents=True)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": 64,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(widths),
        "base_model_name_or_path": "demo",
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings), "utf-8")
    (folder / "adapter_model.safetensors").write_bytes(_safetensors(tensors))
    return folder


def _safetensors(shapes: dict[str, tuple[int, int]]) -> bytes:
    """Random float32 tensors in the safetensors format: the header's length, the header, data."""
    rng = random.Random(7)
    header, data = {}, b""
    for name, (rows, columns) in shapes.items():
        numbers = [rng.uniform(-1, 1) for _ in range(rows * columns)]
        block = struct.pack(f"<{len(numbers)}f", *numbers)
        span = [len(data), len(data) + len(block)]
        header[name] = {"dtype": "F32", "shape": [rows, columns], "data_offsets": span}
        data += block
    described = json.dumps(header).encode()
    described += b" " * (-len(described) % 8)
    return struct.pack("<Q", len(described)) + described + data
