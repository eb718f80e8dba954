"""SGLang's OpenAI server (`python -m sglang.launch_server`), checked against 0.5.21.

Its dialect adds `metadata` and `matched_stop` to events; the contract's decoder skips them. It
reads its API key from the command line or from a `--config` file; the command line can be read by
every user of the machine, so the key goes into a file only this user can read.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

from serving.engines.base import MODEL, Engine, Launch
from serving.settings import SglangEngine


class Sglang(Engine):
    settings: SglangEngine

    name: ClassVar[str] = "sglang"
    takes_key: ClassVar[bool] = True

    @property
    def program(self) -> Path:
        return self.settings.home / "bin" / "python"

    def prepare(self, launch: Launch) -> None:
        file = os.open(_config(launch), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(file, "w") as config:
            config.write(f'api-key: "{launch.key}"\n')

    def environment(self, launch: Launch) -> dict[str, str]:
        # Its health check would generate a token each second otherwise.
        return {"SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "0"}

    def command(self, launch: Launch) -> list[str]:
        command = [
            str(self.program),
            "-m",
            "sglang.launch_server",
            "--model-path",
            str(self.model_dir),
            "--host",
            launch.host,
            "--port",
            str(launch.port),
            "--served-model-name",
            MODEL,
            "--context-length",
            str(self.settings.max_model_len),
            "--config",
            str(_config(launch)),
        ]
        if self.settings.gpus > 1:
            command += ["--tp-size", str(self.settings.gpus)]
        return command + self.settings.args


def _config(launch: Launch) -> Path:
    return launch.folder / "sglang.yaml"
