"""A server that somebody else runs and that speaks OpenAI's API: TensorRT-LLM's `trtllm-serve`,
TGI, Triton's OpenAI front end, llama.cpp, Ollama, or another service made from this template.

No process of ours: the replica is ready while the server answers its health path.
"""

from __future__ import annotations

import os
import ssl
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from serving.contract.capabilities import CAPABILITIES, EMBEDDING, GENERATION
from serving.contract.chat import ChatRequest
from serving.contract.completions import CompletionRequest
from serving.contract.embeddings import EmbeddingRequest
from serving.contract.sampling import Generation, Request
from serving.engines.base import Engine, EngineCall
from serving.settings import OpenAICompatibleEngine, SettingsError

_TASKS = {"generate": {ChatRequest.TASK, CompletionRequest.TASK}, "embed": {EmbeddingRequest.TASK}}


class OpenAICompatible(Engine):
    settings: OpenAICompatibleEngine

    name: ClassVar[str] = "openai_compatible"

    def __init__(
        self, settings: OpenAICompatibleEngine, model_dir: Path, task: str = "generate"
    ) -> None:
        super().__init__(settings, model_dir, task)
        unknown = set(settings.capabilities) - CAPABILITIES
        if unknown:
            raise SettingsError(
                f"serving.yaml: engine.capabilities: {min(unknown)!r} is none; "
                f"there are {', '.join(sorted(CAPABILITIES))}."
            )

    @property
    def lacks(self) -> frozenset[str]:
        """All that its section does not name: nobody else can tell."""
        return (GENERATION | EMBEDDING) - _TASKS[self.task] - set(self.settings.capabilities)

    @property
    def health_path(self) -> str:
        return self._prefix + self.settings.health_path

    def served_as(self, adapter: str) -> str:
        return self.settings.model

    def _common(self, request: Generation) -> dict[str, Any]:
        """A temperature that the client left open is the server's to choose: its model's own
        settings are not known here."""
        body = super()._common(request)
        if request.temperature is None:
            del body["temperature"]
        return body

    def call(self, request: Request, adapter: str = "") -> EngineCall:
        call = super().call(request, adapter)
        path = self._prefix + call.path.removeprefix("/v1")
        return EngineCall(path, call.body, call.streamed)

    @cached_property
    def _url(self) -> tuple[str, int, bool, str]:
        parts = urlsplit(self.settings.url)
        secure = parts.scheme == "https"
        assert parts.hostname is not None  # the settings checked it
        return parts.hostname, parts.port or (443 if secure else 80), secure, parts.path

    @property
    def host(self) -> str:
        return self._url[0]

    @property
    def port(self) -> int:
        return self._url[1]

    @cached_property
    def tls(self) -> ssl.SSLContext | None:
        return ssl.create_default_context() if self._url[2] else None

    @property
    def _prefix(self) -> str:
        return self._url[3]

    @property
    def key(self) -> str | None:
        """The server's key, from the environment variable that the settings name."""
        return os.environ.get(self.settings.key_env, "").strip() if self.settings.key_env else None
