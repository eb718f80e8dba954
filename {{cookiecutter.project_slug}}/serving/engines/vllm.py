"""vLLM's OpenAI server (`vllm serve`), checked against 0.32.

Its dialect adds many null fields to every event; the contract's decoder skips them. SIGTERM aborts
running requests at once unless `--shutdown-timeout` says otherwise, so the gateway drains first and
stops the engine after.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from serving.engines.base import MODEL, Engine, Launch
from serving.settings import VllmEngine


class Vllm(Engine):
    settings: VllmEngine

    name: ClassVar[str] = "vllm"
    takes_key: ClassVar[bool] = True

    @property
    def program(self) -> Path:
        return self.settings.home / "bin" / "vllm"

    def command(self, launch: Launch) -> list[str]:
        command = [
            str(self.program),
            "serve",
            str(self.model_dir),
            "--host",
            launch.host,
            "--port",
            str(launch.port),
            "--served-model-name",
            MODEL,
            "--max-model-len",
            str(self.settings.max_model_len),
        ]
        if self.settings.gpus > 1:
            command += ["--tensor-parallel-size", str(self.settings.gpus)]
        return command + self.settings.args

    def environment(self, launch: Launch) -> dict[str, str]:
        # The key goes by environment: the command line can be read by every user of the machine.
        return {"VLLM_API_KEY": launch.key, "VLLM_NO_USAGE_STATS": "1"}
