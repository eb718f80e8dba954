"""SGLang's OpenAI server (`python -m sglang.launch_server`), checked against 0.5.21.

Its dialect adds `metadata` and `matched_stop` to events; the contract's decoder skips them. It
reads its API key from the command line or from a `--config` file; the command line can be read by
every user of the machine, so the key goes into a file only this user can read.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, ClassVar

from serving.contract.events import Delta, TokenLogprob
from serving.contract.sampling import Generation, Request
from serving.engines.base import MODEL, Launch, Sleep
from serving.engines.batching import BatchingEngine
from serving.engines.dialect import Chunk, Decoder, StreamDecoder
from serving.engines.metrics import Gauges
from serving.settings import SglangEngine
from serving.settings.engine_args import command_line

#: The methods that draft one token after the other, by SGLang's names.
_CHAINS = {"mtp": "NEXTN", "draft_model": "STANDALONE", "eagle": "EAGLE", "eagle3": "EAGLE3"}


class Sglang(BatchingEngine):
    settings: SglangEngine

    name: ClassVar[str] = "sglang"
    takes_key: ClassVar[bool] = True
    sleep: ClassVar[Sleep | None] = Sleep("/release_memory_occupation", "/resume_memory_occupation")
    gauges: ClassVar[Gauges] = Gauges(
        running="sglang:num_running_reqs",
        waiting="sglang:num_queue_reqs",
        kv_cache_usage="sglang:token_usage",
        prompt_tokens="sglang:prompt_tokens_total",
        generated_tokens="sglang:generation_tokens_total",
        cached_tokens="sglang:cached_tokens_total",
    )

    @property
    def program(self) -> Path:
        return self.settings.home / "bin" / "python"

    def served_as(self, adapter: str) -> str:
        return f"{MODEL}:{adapter}" if adapter else MODEL

    def decoder(self, request: Request) -> Decoder:
        if isinstance(request, Generation):
            return _WholeCharacters(counts_on=True)
        return super().decoder(request)

    @property
    def lacks(self) -> frozenset[str]:
        """Its samplers read a request's seed only when all of it is deterministic, which is slower
        and not for every kind of hardware."""
        seeded = self.settings.engine_args.get("enable-deterministic-inference")
        return super().lacks | (frozenset() if seeded else {"seed"})

    def prepare(self, launch: Launch) -> None:
        file = os.open(_config(launch), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(file, "w") as config:
            config.write(f'api-key: "{launch.key}"\n')

    def environment(self, launch: Launch) -> dict[str, str]:
        # Its health check would generate a token each second otherwise.
        own = {"SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "0"}
        if self._flags()["device"] == "cpu":
            own["SGLANG_USE_CPU_ENGINE"] = "1"
        return {**self.settings.env, **own}

    def command(self, launch: Launch) -> list[str]:
        flags = {
            "model-path": self.model_dir,
            "host": launch.host,
            "port": launch.port,
            "served-model-name": MODEL,
            "config": _config(launch),
            "enable-metrics": True,
            "enable-cache-report": True,
            "enable-memory-saver": True if launch.sleeps else None,
            "enable-weights-cpu-backup": True if launch.sleeps else None,
            **self._flags(),
        }
        return [str(self.program), "-m", "sglang.launch_server", *command_line(flags)]

    def _flags(self) -> dict[str, Any]:
        """What serving.yaml says, in SGLang's words; None is its own default."""
        settings = self.settings
        parallel = {
            "tp-size": settings.tensor_ranks,
            "pp-size": settings.pipeline_parallel,
            "dp-size": settings.data_parallel,
        }
        flags: dict[str, Any] = {
            "context-length": settings.max_model_len,
            "is-embedding": True if self.task == "embed" else None,
            "device": None if settings.gpus else "cpu",
            **{flag: ranks for flag, ranks in parallel.items() if ranks > 1},
            "mem-fraction-static": settings.memory_fraction,
            "dtype": settings.dtype,
            "quantization": settings.quantization,
            "kv-cache-dtype": settings.kv_cache_dtype,
            "disable-radix-cache": True if settings.prefix_caching is False else None,
            "max-running-requests": settings.max_running,
            "tool-call-parser": settings.tool_parser,
            "reasoning-parser": settings.reasoning_parser,
            "chat-template": settings.chat_template,
            "random-seed": settings.seed,
        }
        if settings.chunked_prefill is not None:
            flags["chunked-prefill-size"] = settings.chunked_prefill or -1
        if settings.priority_scheduling:  # the contract's order and default, which are vLLM's
            flags["enable-priority-scheduling"] = True
            flags["schedule-low-priority-values-first"] = True
            flags["default-priority-value"] = 0
        if settings.lora:
            flags["enable-lora"] = True
            flags["lora-paths"] = [
                json.dumps({"lora_name": name, "lora_path": str(path)})
                for name, path in settings.lora.items()
            ]
        flags |= self._draft()
        if settings.gpus == 0 and "attention-backend" not in settings.engine_args:
            # What runs on every CPU. A build for one kind of CPU names its own, intel_amx say.
            flags |= {"attention-backend": "torch_native", "disable-cuda-graph": True}
        flags |= settings.engine_args
        if flags["device"] == "cpu":  # its scheduler would spin on a core that the model needs
            flags.setdefault("sleep-on-idle", True)
        return flags

    def _draft(self) -> dict[str, Any]:
        draft = self.settings.speculative
        if draft is None:
            return {}
        flags: dict[str, Any] = {
            "speculative-algorithm": _CHAINS.get(draft.method, draft.method.upper()),
            "speculative-draft-model-path": draft.model,
        }
        if draft.tokens is not None:
            # It counts the tokens to check: the draft, and one that the model adds itself.
            flags["speculative-num-draft-tokens"] = draft.tokens + 1
            if draft.method in _CHAINS:
                flags["speculative-num-steps"] = draft.tokens
                flags["speculative-eagle-topk"] = 1
        return flags


class _WholeCharacters(StreamDecoder):
    """Tells text and log probabilities by whole characters, as the other engines do.

    SGLang sends U+FFFD for a character that the token limit cut in two, and an entry for the end
    token, alone or in one event with the text before it: what has no text is held until more text
    shows whether it belongs to it.
    """

    def __init__(self, *, counts_on: bool = False) -> None:
        super().__init__(counts_on=counts_on)
        self._held: dict[int, Delta] = {}

    def deltas(self, chunk: Chunk) -> list[Delta]:
        told = []
        for delta in super().deltas(chunk):
            held = self._held.pop(delta.index, None)
            if held is not None:
                delta.text = held.text + delta.text
                delta.logprobs = held.logprobs + delta.logprobs
            whole = delta.text.rstrip("\ufffd")
            if delta.finish_reason in ("stop", "length"):
                delta.logprobs, _ = _spelling(delta.text, delta.logprobs, last=True)
                if delta.finish_reason == "length":
                    delta.text = whole
            elif delta.finish_reason is None and not (delta.tools or delta.reasoning):
                rest = delta.text[len(whole) :]
                delta.logprobs, waiting = _spelling(whole, delta.logprobs)
                if rest or waiting:
                    self._held[delta.index] = Delta(delta.index, rest, logprobs=waiting)
                delta.text = whole
                if not whole:
                    continue
            told.append(delta)
        return told


def _spelling(
    text: str, entries: list[TokenLogprob], *, last: bool = False
) -> tuple[list[TokenLogprob], list[TokenLogprob]]:
    """The entries that spell the text, and those behind them, which wait unless the text was the
    last. Others are of tokens without text. When none spell it, as those of a tokenizer that tells
    no blanks, all are the text's."""
    spelling: list[TokenLogprob] = []
    spelt = b""
    for at, entry in enumerate(entries):
        if not last and spelt.decode(errors="replace") == text:
            return spelling, entries[at:]
        more = spelt + bytes(entry.bytes or entry.token.encode())
        if text.startswith(_whole(more)):
            spelling.append(entry)
            spelt = more
    return (spelling if _whole(spelt) == text.rstrip("\ufffd") else entries), []


def _whole(data: bytes) -> str:
    """The text without a character cut in two at its end."""
    return data.decode(errors="replace").rstrip("\ufffd")


def _config(launch: Launch) -> Path:
    return launch.folder / "sglang.yaml"
