"""`engine_args`: flags of the engine's own command line that have no setting in serving.yaml.

Their names are the engine's, without the leading dashes. A flag that has a setting, that the
service gives itself, or that would break the contract is refused; so is its abbreviation, because
the engines' parsers take any unique beginning of a flag for the whole. All other names are left to
the engine's parser: its complaint is in the engine's log, and in the reason why the replica failed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


@dataclass(frozen=True)
class Flags:
    """What `engine_args` may not say to one engine.

    `settings` are flags with the setting to write instead, `refused` flags with the reason.
    `negates` says whether `--no-FLAG` switches a flag off; `exceptions` are the flags for which it
    is the other way round.
    """

    settings: Mapping[str, str]
    refused: Mapping[str, str]
    negates: bool
    exceptions: frozenset[str]

    def checked(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """The same flags in the engine's spelling, without those that are null: the engine's own
        default. Raises `ValueError`."""
        flags: dict[str, Any] = {}
        for written, value in args.items():
            name = self._name(written)
            if name in flags:
                raise ValueError(f"{name} is written twice")
            if value is not None:
                flags[name] = self._value(name, value)
        return flags

    def _name(self, written: str) -> str:
        if written.startswith("-") or not _NAME.fullmatch(written):
            raise ValueError(
                f"write a flag's full name without the leading dashes, as in `max-thing: 1`, "
                f"instead of {written!r}"
            )
        head, dot, field = written.partition(".")  # vLLM's way to write one field of a JSON flag
        head = head.replace("_", "-")
        if head.startswith("no-"):
            raise ValueError(f"write `{head.removeprefix('no-')}: false` instead of {written!r}")
        known = [*self.settings, *self.refused]
        meant = next((flag for flag in known if flag == head), None) or next(
            (flag for flag in known if flag.startswith(head)), None
        )
        if meant is None:
            return head + dot + field
        name = head if meant == head else f"{head} is short for {meant}, which"
        if meant in self.settings:
            raise ValueError(
                f"{name} has a setting of its own: write engine.{self.settings[meant]} instead"
            )
        raise ValueError(f"{name} cannot be given: {self.refused[meant]}")

    def _value(self, name: str, value: Any) -> Any:
        if isinstance(value, str | int | float):
            if value is False and "." not in name and (name in self.exceptions) == self.negates:
                raise ValueError(f"{name} cannot be switched off: leave it out")
            return value
        if isinstance(value, list) and value and all(map(_plain, value)):
            return value
        if isinstance(value, dict):
            try:
                json.dumps(value)
            except TypeError:
                raise ValueError(f"{name} holds what JSON cannot say; quote dates") from None
            return value
        raise ValueError(
            f"{name} must be a text, a number, true, false, a mapping, or a list of texts and "
            "numbers that do not begin with a dash"
        )


def _plain(item: Any) -> bool:
    # A list's values stand for themselves on the command line: a dash would make one a flag.
    if isinstance(item, bool) or not isinstance(item, str | int | float):
        return False
    return not str(item).startswith("-")


def command_line(flags: Mapping[str, Any]) -> list[str]:
    """Flags as arguments: none for None, `--x` for true, `--no-x` for false, JSON for a mapping."""
    line: list[str] = []
    for name, value in flags.items():
        if value is None:
            continue
        if "." in name:
            line.append(f"--{name}={json.dumps(value)}")
        elif value is True:
            line.append(f"--{name}")
        elif value is False:
            line.append(f"--no-{name}")
        elif isinstance(value, list):
            line += [f"--{name}", *map(str, value)]
        else:
            text = json.dumps(value) if isinstance(value, dict) else str(value)
            line += [f"--{name}={text}"] if text.startswith("-") else [f"--{name}", text]
    return line


_KEY = "the service makes a new key for each start"
_LOOPBACK = "the service binds the engine to loopback, on a port it chooses"
_SECRET = "every user of the machine can read a command line"  # noqa: S105 - a reason, no secret
_MODEL = "the service serves the imported version, under a name of its own"
_TASK = "what the model is asked for is said at its import, with --task"
_FILE = "a file could say what is refused here; write its flags into engine_args"
_PLAIN_HTTP = "the gateway speaks plain HTTP/1.1 to the engine, on loopback"
_API = "the gateway needs the engine's HTTP server, with texts in and out"
_ALWAYS = "the service always gives it"
_METRICS = "the service's metrics need the engine's"

_TLS = dict.fromkeys(
    (
        "ssl-keyfile",
        "ssl-certfile",
        "ssl-ca-certs",
        "ssl-cert-reqs",
        "ssl-ciphers",
        "ssl-keyfile-password",
        "enable-ssl-refresh",
    ),
    _PLAIN_HTTP,
)

_SLEEP = "a model's `swap: sleep` does it"

#: `vllm serve`, 0.32.
VLLM = Flags(
    settings={
        "max-model-len": "max_model_len",
        "tensor-parallel-size": "tensor_parallel",
        "pipeline-parallel-size": "pipeline_parallel",
        "data-parallel-size": "data_parallel",
        "gpu-memory-utilization": "memory_fraction",
        "device-memory-utilization": "memory_fraction",
        "dtype": "dtype",
        "quantization": "quantization",
        "kv-cache-dtype": "kv_cache_dtype",
        "enable-prefix-caching": "prefix_caching",
        "enable-chunked-prefill": "chunked_prefill",
        "max-num-batched-tokens": "chunked_prefill",
        "max-num-seqs": "max_running",
        "spec-method": "speculative",
        "spec-model": "speculative",
        "spec-tokens": "speculative",
        "enable-lora": "lora",
        "lora-modules": "lora",
        "tool-call-parser": "tool_parser",
        "enable-auto-tool-choice": "tool_parser",
        "reasoning-parser": "reasoning_parser",
        "chat-template": "chat_template",
        "seed": "seed",
        "scheduling-policy": "priority_scheduling",
    },
    refused={
        "host": _LOOPBACK,
        "port": _LOOPBACK,
        "uds": _LOOPBACK,
        "data-parallel-multi-port-external-lb": _LOOPBACK,
        "model": _MODEL,
        "served-model-name": _MODEL,
        "api-key": _KEY,
        "hf-token": f"{_SECRET}; set HF_TOKEN in the service's environment",
        "config": _FILE,
        **_TLS,
        "root-path": "the gateway asks the engine at /v1",
        "runner": _TASK,
        "convert": _TASK,
        "grpc": _API,
        "grpc-port": "it would open a port that asks for no key",
        "headless": _API,
        "tokens-only": _API,
        "skip-tokenizer-init": _API,
        "return-tokens-as-token-ids": "log probabilities would name tokens by number",
        "enable-prompt-tokens-details": _ALWAYS,
        "enable-sleep-mode": _SLEEP,
        "disable-log-stats": _METRICS,
    },
    negates=True,
    exceptions=frozenset({"aggregate-engine-logging"}),
)

#: `sglang.launch_server`, 0.5.21.
SGLANG = Flags(
    settings={
        "context-length": "max_model_len",
        "tp-size": "tensor_parallel",
        "tensor-parallel-size": "tensor_parallel",
        "pp-size": "pipeline_parallel",
        "pipeline-parallel-size": "pipeline_parallel",
        "dp-size": "data_parallel",
        "data-parallel-size": "data_parallel",
        "mem-fraction-static": "memory_fraction",
        "dtype": "dtype",
        "quantization": "quantization",
        "kv-cache-dtype": "kv_cache_dtype",
        "disable-radix-cache": "prefix_caching",
        "chunked-prefill-size": "chunked_prefill",
        "max-running-requests": "max_running",
        "speculative-algorithm": "speculative",
        "speculative-draft-model-path": "speculative",
        "enable-lora": "lora",
        "lora-paths": "lora",
        "tool-call-parser": "tool_parser",
        "reasoning-parser": "reasoning_parser",
        "chat-template": "chat_template",
        "random-seed": "seed",
        "enable-priority-scheduling": "priority_scheduling",
        "schedule-low-priority-values-first": "priority_scheduling",
        "default-priority-value": "priority_scheduling",
    },
    refused={
        "host": _LOOPBACK,
        "port": _LOOPBACK,
        "model-path": _MODEL,
        "model": _MODEL,
        "served-model-name": _MODEL,
        "api-key": _KEY,
        "admin-api-key": f"{_SECRET}, and the gateway asks no admin route",
        "config": _FILE,
        **_TLS,
        "is-embedding": _TASK,
        "enable-http2": _PLAIN_HTTP,
        "fastapi-root-path": "the gateway asks the engine at /v1",
        "smg-grpc-mode": _API,
        "grpc-mode": _API,
        "encoder-only": _API,
        "skip-tokenizer-init": _API,
        "grpc-port": "it would open a port that asks for no key",
        "smg-http-sidecar-port": "it would open a port that asks for no key",
        "grpc-http-sidecar-port": "it would open a port that asks for no key",
        "allow-auto-truncate": "a prompt that is too long must be refused, not cut",
        "enable-cache-report": _ALWAYS,
        "enable-memory-saver": _SLEEP,
        "enable-weights-cpu-backup": _SLEEP,
        "enable-metrics": _METRICS,
    },
    negates=False,
    exceptions=frozenset(
        {
            "dcp-replicate-q-proj",
            "dllm-fdfo",
            "enable-tp-lm-head-all-to-all",
            "experts-shared-outer-loras",
            "lora-strict-loading",
            "ple-offload-embedding",
        }
    ),
)

_COUNTED = "the adapter counts prompts with the model's own chat template"

#: `transformers serve`, 5.23.
TRANSFORMERS = Flags(
    settings={
        "device": "gpus",
        "continuous-batching": "continuous_batching",
        "dtype": "dtype",
        "quantization": "quantization",
        "attn-implementation": "attn_implementation",
        "compile": "compile",
        "default-seed": "seed",
    },
    refused={
        "host": _LOOPBACK,
        "port": _LOOPBACK,
        "reasoning": _COUNTED,
        "chat-template-kwargs": _COUNTED,
        "enable-cors": "this engine takes no key, so any web page could ask it",
        "model-timeout": "the served model is never unloaded",
        "non-blocking": "the engine would end at once",
    },
    negates=True,
    exceptions=frozenset(),
)
