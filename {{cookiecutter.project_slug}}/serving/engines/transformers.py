"""`transformers serve`, checked against 5.23: the embedded engine for laptops, CPUs and CI.

What its dialect does differently, found in its source and by asking it:

* streams end without `[DONE]`, after an event with the finish reason and the usage;
* it takes no API key, so it is bound to loopback and a port chosen at start;
* it generates at most 1,024 tokens unless told otherwise and never checks the context length, so
  the adapter counts the prompt and bounds the answer;
* `temperature` alone does not make it sample when the model's own generation config says greedy,
  and `frequency_penalty` is taken for a repetition penalty: each request carries a whole
  `generation_config` instead, built from the model's;
* a text in `stop` ends generation but is left in the answer: the decoder cuts it off;
* an answer whose end token is the last one allowed ends with `length`; the others say `stop`;
* `ignore_eos` is unknown to it; an end token that no vocabulary has says the same;
* with continuous batching, all of that but the end token and the limit is read from the first
  request only, so sampling is then fixed at greedy and everything else is refused.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from serving.contract.chat import ChatRequest
from serving.contract.completions import CompletionRequest
from serving.contract.events import Delta
from serving.contract.sampling import Generation, Request
from serving.engines.base import Launch, LocalEngine, read_json
from serving.engines.dialect import Chunk, Decoder, StreamDecoder
from serving.settings import TransformersEngine
from serving.settings.engine_args import command_line

#: What its server does not do, whatever the model.
_NEVER = frozenset(
    {"n", "presence_penalty", "frequency_penalty", "logit_bias", "priority", "logprobs"}
    | {"echo_logprobs", "response_format", "tool_choice", "reasoning_effort", "image_url"}
)
#: What continuous batching reads from its first request only.
_READ_ONCE = frozenset(
    {"temperature", "top_p", "top_k", "min_p", "seed", "stop", "repetition_penalty"}
)
#: Models whose tool calls it reads without further ado (`_RESPONSE_TEMPLATE_FALLBACKS` in its
#: cli/serving/utils.py).
_FAMILIES_WITH_TOOLS = frozenset(
    {"qwen2", "qwen2_moe", "qwen2_vl", "qwen2_5_vl", "qwen3", "qwen3_moe", "qwen3_next", "qwen3_vl"}
    | {"qwen3_vl_moe", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text", "gemma4"}
)
#: The end token of an answer that no token ends. Null would mean the model's own, and the way of
#: `min_new_tokens`, which forbids the end token, is closed to continuous batching.
_NO_TOKEN = -1
#: What of a model's config.json the generation needs when generation_config.json lacks it.
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


#: The share of the free memory that its cache takes on a CPU. By itself it takes more than half:
#: of two versions side by side, or of two replicas, the kernel would end one.
CPU_CACHE = 0.1


class Transformers(LocalEngine):
    settings: TransformersEngine

    name: ClassVar[str] = "transformers"
    takes_key: ClassVar[bool] = False
    ends_with_done: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("tokenizer.json",)  # the adapter counts prompts with it
    tasks: ClassVar[tuple[str, ...]] = ("generate",)

    @property
    def lacks(self) -> frozenset[str]:
        lacking = super().lacks | _NEVER
        if self.settings.continuous_batching:
            lacking |= _READ_ONCE
        if not self._reads_tool_calls:
            lacking |= {"tools"}
        return lacking

    @property
    def _reads_tool_calls(self) -> bool:
        """Whether it finds tool calls in the model's text: it knows how a few families write them,
        and others by the template of answers that comes with their tokenizer."""
        tokenizer = read_json(self.model_dir / "tokenizer_config.json")
        family = self.model_config.get("model_type")
        return bool(tokenizer.get("response_template")) or family in _FAMILIES_WITH_TOOLS

    @property
    def program(self) -> Path:
        return self.settings.home / "bin" / "transformers"

    def command(self, launch: Launch) -> list[str]:
        settings = self.settings
        flags = {
            "host": launch.host,
            "port": launch.port,
            "device": "cuda" if settings.gpus else "cpu",
            "continuous-batching": settings.continuous_batching or None,
            "dtype": settings.dtype,
            "quantization": settings.quantization,
            "attn-implementation": settings.attn_implementation,
            "compile": settings.compile or None,
            "default-seed": settings.seed,
            **settings.engine_args,
        }
        if settings.continuous_batching and not settings.gpus and "cb-num-blocks" not in flags:
            flags.setdefault("cb-max-memory-percent", CPU_CACHE)
        return [str(self.program), "serve", str(self.model_dir), *command_line(flags)]

    def environment(self, launch: Launch) -> dict[str, str]:
        return {**self.settings.env, "HF_HUB_OFFLINE": "1"}

    def served_as(self, adapter: str) -> str:
        return str(self.model_dir)

    def chat(self, request: ChatRequest) -> dict[str, Any]:
        asked = request.asked()
        shown: dict[str, Any] = {
            name: asked[name] for name in ("tools", "chat_template_kwargs") if name in asked
        }
        return {**self._body(request), "messages": request.plain_messages, **shown}

    def completion(self, request: CompletionRequest) -> dict[str, Any]:
        return {**self._body(request), "prompt": request.prompt}

    def decoder(self, request: Request) -> Decoder:
        stops = request.stops if isinstance(request, Generation) else []
        return _CutAtStop(stops) if stops else StreamDecoder()

    def _body(self, request: Generation) -> dict[str, Any]:
        room = self.room(request)
        limit = request.token_limit
        config = {**self._defaults, "max_new_tokens": limit or room}
        config.pop("max_length", None)
        sampling = {
            "top_p": request.top_p,
            "top_k": request.top_k,
            "min_p": request.min_p,
            "repetition_penalty": request.repetition_penalty,
        }
        config.update({name: value for name, value in sampling.items() if value is not None})
        temperature = 0.0 if self.settings.continuous_batching else self.temperature(request)
        config["do_sample"] = temperature > 0
        if temperature > 0:
            config["temperature"] = temperature
        if request.ignore_eos:
            config["eos_token_id"] = _NO_TOKEN
        if request.stops:
            config["stop_strings"] = request.stops
        body: dict[str, Any] = {
            "stream": True,
            "generation_config": json.dumps(config),
        }
        if request.seed is not None:
            body["seed"] = request.seed
        return body

    @cached_property
    def _defaults(self) -> dict[str, Any]:
        """The model's generation_config.json, with the token ids that only its config.json has."""
        config = self.model_config
        ids = {name: config[name] for name in _TOKEN_IDS if config.get(name) is not None}
        return {**ids, **self.generation_config}


class _CutAtStop(StreamDecoder):
    """Drops a stop text and what follows it. Text that may be the beginning of a stop text is held
    back until the next event tells."""

    def __init__(self, stops: list[str]) -> None:
        super().__init__()
        self._stops = stops
        self._held = ""
        self._cut = False

    def deltas(self, chunk: Chunk) -> list[Delta]:
        return [self._filter(delta) for delta in super().deltas(chunk)]

    def _filter(self, delta: Delta) -> Delta:
        if self._cut:
            return Delta(delta.index, "", delta.finish_reason and "stop")
        if not delta.plain:
            return delta
        text = self._held + delta.text
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:  # the one that was complete first, however the text was cut into events
            self._cut, self._held, text = True, "", text[: min(found)[1]]
        elif delta.finish_reason is not None:
            self._held = ""
        else:
            keep = len(text) - max(_overlap(text, stop) for stop in self._stops)
            text, self._held = text[:keep], text[keep:]
        reason = "stop" if self._cut and delta.finish_reason else delta.finish_reason
        return Delta(delta.index, text, reason)


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` begin `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-size:]):
            return size
    return 0
