"""vLLM's OpenAI server (`vllm serve`), checked against 0.32.

Its dialect adds many null fields to every event; the contract's decoder skips them. SIGTERM aborts
running requests and ends its processes at once, unless `--shutdown-timeout` says otherwise. At once
is right here, for the gateway drains first. Measured on an idle engine on two cores: 0.5 s to the
end, and 5.7 s with a timeout of 5, all of it spent on waiting for a worker.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from serving.contract.chat import ChatRequest
from serving.contract.sampling import Generation
from serving.engines.base import MODEL, Launch, Sleep
from serving.engines.batching import BatchingEngine
from serving.engines.metrics import Gauges
from serving.settings import VllmEngine
from serving.settings.engine_args import command_line


class Vllm(BatchingEngine):
    settings: VllmEngine

    name: ClassVar[str] = "vllm"
    takes_key: ClassVar[bool] = True
    sleep: ClassVar[Sleep | None] = Sleep("/sleep?level=1", "/wake_up")
    compiles_logprobs: ClassVar[bool] = True
    gauges: ClassVar[Gauges] = Gauges(
        running="vllm:num_requests_running",
        waiting="vllm:num_requests_waiting",
        kv_cache_usage="vllm:kv_cache_usage_perc",
        prompt_tokens="vllm:prompt_tokens_total",
        generated_tokens="vllm:generation_tokens_total",
        cached_tokens="vllm:prompt_tokens_cached_total",
    )

    @property
    def program(self) -> Path:
        return self.settings.home / "bin" / "vllm"

    def command(self, launch: Launch) -> list[str]:
        flags = {
            "host": launch.host,
            "port": launch.port,
            "served-model-name": MODEL,
            "enable-prompt-tokens-details": True,
            "enable-sleep-mode": True if launch.sleeps else None,
            **self._flags(),
            **self.settings.engine_args,
        }
        return [str(self.program), "serve", str(self.model_dir), *command_line(flags)]

    def _flags(self) -> dict[str, Any]:
        """What serving.yaml says, in vLLM's words; None is its own default."""
        settings = self.settings
        parallel = {
            "tensor-parallel-size": settings.tensor_ranks,
            "pipeline-parallel-size": settings.pipeline_parallel,
            "data-parallel-size": settings.data_parallel,
        }
        flags: dict[str, Any] = {
            "max-model-len": settings.max_model_len,
            "runner": "pooling" if self.task == "embed" else None,
            "convert": "embed" if self.task == "embed" else None,
            **{flag: ranks for flag, ranks in parallel.items() if ranks > 1},
            "gpu-memory-utilization": settings.memory_fraction,
            "dtype": settings.dtype,
            "quantization": settings.quantization,
            "kv-cache-dtype": settings.kv_cache_dtype,
            "enable-prefix-caching": settings.prefix_caching,
            "max-num-seqs": settings.max_running,
            "tool-call-parser": settings.tool_parser,
            "enable-auto-tool-choice": True if settings.tool_parser else None,
            "reasoning-parser": settings.reasoning_parser,
            "chat-template": settings.chat_template,
            "seed": settings.seed,
            "scheduling-policy": "priority" if settings.priority_scheduling else None,
        }
        if settings.chunked_prefill is not None:
            flags["enable-chunked-prefill"] = bool(settings.chunked_prefill)
            flags["max-num-batched-tokens"] = settings.chunked_prefill or None
        if settings.speculative is not None:
            flags["spec-method"] = settings.speculative.method
            flags["spec-model"] = settings.speculative.model
            flags["spec-tokens"] = settings.speculative.tokens
        if settings.lora:
            flags["enable-lora"] = True
            flags["max-loras"] = len(settings.lora)  # at once in a batch; by default, one
            flags["lora-modules"] = [
                json.dumps({"name": name, "path": str(path)})
                for name, path in settings.lora.items()
            ]
        return flags

    def _common(self, request: Generation) -> dict[str, Any]:
        body = super()._common(request)
        if self._may_be_cut(request):
            self.room(request)
        if body["temperature"] == 0 and request.n > 1:
            # It refuses several greedy answers; the one likeliest token is the same choice.
            body |= {"temperature": 1.0, "top_k": 1}
        return body

    def _may_be_cut(self, request: Generation) -> bool:
        """Whether prompt and answer may be too much together, which vLLM answers with less than was
        asked for. A token is one byte at least; a template adds some, and it is shown the tools."""
        if request.token_limit is None or not self._has_tokenizer or "image_url" in request.needs:
            return False
        shown = 512 + 4 * request.characters
        if isinstance(request, ChatRequest):
            if self.settings.chat_template is not None:  # the model's own is what would be counted
                return False
            shown += 32 * len(request.messages) + request.extras
        return shown + request.token_limit > self.settings.max_model_len

    @cached_property
    def _has_tokenizer(self) -> bool:
        return (self.model_dir / "tokenizer.json").is_file()

    def environment(self, launch: Launch) -> dict[str, str]:
        # The key goes by environment: the command line can be read by every user of the machine.
        own = {"VLLM_API_KEY": launch.key, "VLLM_NO_USAGE_STATS": "1"}
        if launch.sleeps:  # its sleep is one of several routes that ask for no key: loopback only
            own["VLLM_SERVER_DEV_MODE"] = "1"
        return {**self.settings.env, **own}
