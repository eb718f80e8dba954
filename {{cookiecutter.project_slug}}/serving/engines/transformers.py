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
* with continuous batching, all of that is read from the first request only, so sampling is then
  fixed at greedy and everything else is refused.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from serving.contract.chat import ChatRequest
from serving.contract.completions import CompletionRequest
from serving.contract.errors import context_length_exceeded
from serving.contract.events import Delta
from serving.engines.base import Engine, EngineCall, EngineChunk, Launch, StreamDecoder
from serving.engines.prompt import PromptCounter
from serving.settings import TransformersEngine

#: What of a model's config.json the generation needs when generation_config.json lacks it.
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


class Transformers(Engine):
    settings: TransformersEngine

    name: ClassVar[str] = "transformers"
    takes_key: ClassVar[bool] = False
    ends_with_done: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("tokenizer.json",)  # the adapter counts prompts with it

    @property
    def capabilities(self) -> frozenset[str]:
        if self.settings.continuous_batching:
            return frozenset()
        return frozenset(
            {"temperature", "top_p", "top_k", "min_p", "seed", "stop", "repetition_penalty"}
        )

    @property
    def program(self) -> Path:
        return self.settings.home / "bin" / "transformers"

    def command(self, launch: Launch) -> list[str]:
        command = [
            str(self.program),
            "serve",
            str(self.model_dir),
            "--host",
            launch.host,
            "--port",
            str(launch.port),
            "--device",
            "cuda" if self.settings.gpus else "cpu",
        ]
        if self.settings.continuous_batching:
            command.append("--continuous-batching")
        return command + self.settings.args

    def environment(self, launch: Launch) -> dict[str, str]:
        return {"HF_HUB_OFFLINE": "1"}

    def chat(self, request: ChatRequest) -> EngineCall:
        messages = request.plain_messages()
        self._refuse_huge(request)
        prompt = self._counter.chat(messages)
        body = {**self._body(request, prompt), "messages": messages}
        return EngineCall("/v1/chat/completions", msgspec.json.encode(body))

    def completion(self, request: CompletionRequest) -> EngineCall:
        self._refuse_huge(request)
        prompt = self._counter.text(request.prompt)
        body = {**self._body(request, prompt), "prompt": request.prompt}
        return EngineCall("/v1/completions", msgspec.json.encode(body))

    def open_stream(self, stops: list[str]) -> StreamDecoder:
        return _CutAtStop(self._decoder, stops) if stops else StreamDecoder(self._decoder)

    def _refuse_huge(self, request: ChatRequest | CompletionRequest) -> None:
        least = self._counter.least(request.characters)
        if least > self.settings.max_model_len:
            raise context_length_exceeded(self.settings.max_model_len, least, request.INPUT_FIELD)

    def _body(self, request: ChatRequest | CompletionRequest, prompt_tokens: int) -> dict[str, Any]:
        room = self.settings.max_model_len - prompt_tokens
        limit = request.token_limit
        if room < (limit or 1):
            raise context_length_exceeded(
                self.settings.max_model_len, prompt_tokens, request.INPUT_FIELD
            )
        config = {**self._generation_config, "max_new_tokens": limit or room}
        config.pop("max_length", None)
        sampling = {
            "top_p": request.top_p,
            "top_k": request.top_k,
            "min_p": request.min_p,
            "repetition_penalty": request.repetition_penalty,
        }
        config.update({name: value for name, value in sampling.items() if value is not None})
        if request.temperature is None:
            # Asked for a choice among tokens, a model that is greedy by default must make one.
            if request.asked().keys() & {"top_p", "top_k", "min_p"}:
                config["do_sample"] = True
        else:
            config["do_sample"] = request.temperature > 0
            if request.temperature > 0:
                config["temperature"] = request.temperature
        if request.stops:
            config["stop_strings"] = request.stops
        body: dict[str, Any] = {
            "model": str(self.model_dir),
            "stream": True,
            "generation_config": json.dumps(config),
        }
        if request.seed is not None:
            body["seed"] = request.seed
        return body

    @cached_property
    def _generation_config(self) -> dict[str, Any]:
        model = _read_json(self.model_dir / "config.json")
        own = _read_json(self.model_dir / "generation_config.json")
        ids = {name: model[name] for name in _TOKEN_IDS if model.get(name) is not None}
        return {**ids, **own, **({"do_sample": False} if self.settings.continuous_batching else {})}

    @cached_property
    def _counter(self) -> PromptCounter:
        return PromptCounter(self.model_dir)


class _CutAtStop(StreamDecoder):
    """Drops a stop text and what follows it. Text that may be the beginning of a stop text is held
    back until the next event tells."""

    def __init__(self, decoder: msgspec.json.Decoder[EngineChunk], stops: list[str]) -> None:
        super().__init__(decoder)
        self._stops = stops
        self._held = ""
        self._cut = False

    def _deltas(self, chunk: EngineChunk) -> list[Delta]:
        return [self._filter(delta) for delta in super()._deltas(chunk)]

    def _filter(self, delta: Delta) -> Delta:
        if self._cut:
            return Delta(delta.index, "", delta.finish_reason and "stop")
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


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document
