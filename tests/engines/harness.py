"""The real engines the suite runs on, each behind a baked project."""

from __future__ import annotations

import os
from typing import Any

import openai
from baking import ROOT
from engines.features import Features
from served import Served

DEMO = ROOT / "build/demo/llm-service"
ENVIRONMENTS = ROOT / "build/engines"

CPU = {"max_model_len": 512, "gpus": 0}
PRIORITY = {"priority_scheduling": True}
#: engine -> its section of serving.yaml, laid over the baked one
SECTIONS: dict[str, dict[str, Any]] = {
    "transformers": {**CPU, "home": str(DEMO / ".engine")},
    "vllm": {
        **CPU,
        **PRIORITY,
        "tool_parser": "hermes",
        "reasoning_parser": "deepseek_v3",
        "home": str(ENVIRONMENTS / "vllm"),
        "engine_args": {"enforce-eager": True},
        "env": {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"},
    },
    "sglang": {
        **CPU,
        **PRIORITY,
        "tool_parser": "qwen25",
        "reasoning_parser": "qwen3",
        "home": str(ENVIRONMENTS / "sglang"),
        "memory_fraction": 0.1,
        "engine_args": {"max-total-tokens": 8192},
        "env": {"HF_HUB_OFFLINE": "1"},
    },
}
ENGINES = [name for name in os.environ.get("ENGINES", ",".join(SECTIONS)).split(",") if name]


class Engine(Served):
    """One service, its engine's name, and a client. `lora` says whether it has the adapter."""

    name: str
    features: Features

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=120)

    @property
    def embeds(self) -> bool:
        return self.name != "transformers"

    def offers(self, feature: str) -> Any:
        """A `with` block whose tests hold wherever the engine does not refuse the feature."""
        return self.features.offered(feature, self.name)
