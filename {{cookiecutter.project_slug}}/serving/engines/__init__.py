"""The engines a replica can run. A new one is a module here and a line in `ENGINES`."""

from __future__ import annotations

from pathlib import Path

from serving.engines.base import Engine
from serving.engines.openai_compatible import OpenAICompatible
from serving.engines.sglang import Sglang
from serving.engines.transformers import Transformers
from serving.engines.vllm import Vllm
from serving.settings import EngineSettings

ENGINES: dict[str, type[Engine]] = {
    engine.name: engine for engine in (Transformers, Vllm, Sglang, OpenAICompatible)
}


def create_engine(settings: EngineSettings, model_dir: Path, task: str = "generate") -> Engine:
    """The adapter for one model version served by the engine that the settings name. Raises
    `SettingsError`."""
    return ENGINES[settings.name](settings, model_dir, task)
