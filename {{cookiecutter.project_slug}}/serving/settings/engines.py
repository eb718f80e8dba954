"""The `engine` sections of serving.yaml: what each engine can be told, in one vocabulary.

A setting left out, or null, is the engine's own default. `engine_args` takes what has no setting.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    Field,
    PlainValidator,
    field_validator,
    model_validator,
)

from serving.settings.engine_args import SGLANG, TRANSFORMERS, VLLM, Flags
from serving.settings.engine_choices import (
    DType,
    SglangCache,
    SglangDraft,
    SglangQuantization,
    TransformersAttention,
    TransformersQuantization,
    VllmCache,
    VllmDraft,
    VllmQuantization,
)
from serving.settings.sections import (
    Count,
    Home,
    Name,
    PresentFile,
    PresentFolder,
    Section,
    Variable,
)

Fraction = Annotated[float, Field(gt=0, le=1)]


def _chunk(value: Any) -> int | Literal[False] | None:
    if value is None or value is False:
        return value
    if isinstance(value, int) and value is not True and value > 0:
        return value
    raise ValueError("write a number of tokens, or false to prefill every prompt in one piece")


ChunkedPrefill = Annotated[int | Literal[False] | None, PlainValidator(_chunk)]


class EngineBase(Section):
    """What is known of every engine: `max_model_len`, prompt and answer together, in tokens."""

    max_model_len: Count


# Engines that are child processes of the gateway.


class ProcessEngine(EngineBase):
    """`home` is the engine's own virtual environment; `gpus` the devices one replica takes, 0
    meaning the CPU; `env` goes to the engine process as it is."""

    FLAGS: ClassVar[Flags]

    home: Home = Path(".engine")
    gpus: Annotated[int, Field(ge=0)] = 0
    dtype: DType | None = None
    seed: Annotated[int, Field(ge=0)] | None = None
    engine_args: dict[str, Any] = {}
    env: dict[str, str] = {}

    @field_validator("engine_args")
    @classmethod
    def _only_this_engines_own(cls, args: dict[str, Any]) -> dict[str, Any]:
        return cls.FLAGS.checked(args)


class TransformersEngine(ProcessEngine):
    """`continuous_batching` runs many streams at once, but `transformers serve` then fixes sampling
    when it starts, so requests that ask for anything but greedy decoding are refused.
    `quantization` needs bitsandbytes in `engines/transformers.txt`."""

    FLAGS = TRANSFORMERS

    name: Literal["transformers"]
    continuous_batching: bool = False
    quantization: TransformersQuantization | None = None
    # It also takes kernels from the Hugging Face Hub, which the engine is kept from asking.
    attn_implementation: TransformersAttention | None = None
    compile: bool = False

    @model_validator(mode="after")
    def _one_device(self) -> TransformersEngine:
        if self.gpus > 1:
            raise ValueError("transformers serves from one GPU; choose vllm or sglang for more")
        return self


class Speculative(Section):
    """A draft of `tokens` tokens is made ahead by `method`, then checked by the model at once.
    `model` is the draft's folder, for the methods that need one."""

    NEEDS_MODEL: ClassVar = frozenset(
        {"draft_model", "eagle", "eagle3", "medusa", "mlp_speculator", "dflash"}
    )
    TAKES_NO_MODEL: ClassVar = frozenset({"ngram", "suffix"})

    method: str
    model: PresentFolder | None = None
    tokens: Count | None = None

    @model_validator(mode="after")
    def _model_where_it_is_needed(self) -> Speculative:
        if self.method in self.NEEDS_MODEL and self.model is None:
            raise ValueError(f"the method {self.method} needs `model`, the draft model's folder")
        if self.method in self.TAKES_NO_MODEL and self.model is not None:
            raise ValueError(f"the method {self.method} takes no `model`; leave it out")
        return self


class GpuEngine(ProcessEngine):
    """What vLLM and SGLang can both be told.

    `tensor_parallel` GPUs share each layer, `pipeline_parallel` stages share the layers, and
    `data_parallel` copies share the requests: together they take the `gpus`. `memory_fraction` is
    the part of a device's memory for weights and KV cache, `max_running` the requests batched at
    once, `lora` the adapters: name -> folder. With `priority_scheduling`, requests that wait go in
    the order of their `priority`, lowest first.
    """

    tensor_parallel: Count | None = None
    pipeline_parallel: Count = 1
    data_parallel: Count = 1
    memory_fraction: Fraction | None = None
    prefix_caching: bool | None = None
    chunked_prefill: ChunkedPrefill = None
    max_running: Count | None = None
    lora: dict[Name, PresentFolder] = {}
    tool_parser: str | None = None
    reasoning_parser: str | None = None
    chat_template: PresentFile | None = None
    priority_scheduling: bool = False

    @property
    def tensor_ranks(self) -> int:
        """GPUs, or on a CPU processes, that share each layer."""
        return self.tensor_parallel or max(1, self.gpus // self._groups)

    @property
    def _groups(self) -> int:
        """Into how many groups of tensor ranks the GPUs are divided."""
        return self.pipeline_parallel * self.data_parallel

    @model_validator(mode="after")
    def _ranks_take_the_gpus(self) -> GpuEngine:
        taken = self.tensor_ranks * self._groups
        if self.gpus and taken != self.gpus:
            raise ValueError(
                f"tensor_parallel {self.tensor_ranks}, pipeline_parallel {self.pipeline_parallel} "
                f"and data_parallel {self.data_parallel} take {taken} GPUs, but gpus is "
                f"{self.gpus}; make them agree"
            )
        return self

    @field_validator("lora")
    @classmethod
    def _none_is_named_as_the_base(cls, lora: dict[str, Path]) -> dict[str, Path]:
        if "model" in lora:
            raise ValueError("`model` is the base model's name in the engine; choose another")
        return lora


class VllmSpeculative(Speculative):
    method: VllmDraft

    @model_validator(mode="after")
    def _tokens_where_they_are_needed(self) -> VllmSpeculative:
        if self.tokens is None and self.method not in ("suffix", "dspark"):
            raise ValueError(f"vllm needs `tokens`, how many {self.method} drafts ahead")
        return self


class VllmEngine(GpuEngine):
    FLAGS = VLLM

    name: Literal["vllm"]
    quantization: VllmQuantization | None = None
    kv_cache_dtype: VllmCache | None = None
    speculative: VllmSpeculative | None = None


class SglangSpeculative(Speculative):
    method: SglangDraft


class SglangEngine(GpuEngine):
    FLAGS = SGLANG

    name: Literal["sglang"]
    quantization: SglangQuantization | None = None
    kv_cache_dtype: SglangCache | None = None
    speculative: SglangSpeculative | None = None

    @property
    def _groups(self) -> int:
        # With DP attention, the copies of the attention layers lie within the tensor ranks.
        if self.engine_args.get("enable-dp-attention"):
            return self.pipeline_parallel
        return super()._groups

    @field_validator("chat_template")
    @classmethod
    def _is_a_jinja_file(cls, template: Path | None) -> Path | None:
        if template is not None and template.suffix != ".jinja":
            raise ValueError("sglang takes a Jinja template only from a file named *.jinja")
        return template

    @model_validator(mode="after")
    def _draft_length_is_said_once(self) -> SglangEngine:
        twice = self.engine_args.keys() & {
            "speculative-num-steps",
            "speculative-eagle-topk",
            "speculative-num-draft-tokens",
        }
        if twice and self.speculative is not None and self.speculative.tokens is not None:
            raise ValueError(
                f"speculative.tokens and engine_args.{min(twice)} both say how much is drafted; "
                "leave one of them out"
            )
        return self


# An engine that somebody else runs.


def _base_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError("not a URL; write it as http://HOST:PORT/v1") from None
    if parts.username is not None or parts.password is not None:
        raise ValueError("a URL must hold no credentials; name their variable in key_env")
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValueError("write an http or https URL with a host, as in http://HOST:PORT/v1")
    if parts.query or parts.fragment or re.search(r"\s", url):
        raise ValueError("write the URL that /chat/completions follows, without ?, # or spaces")
    return url.rstrip("/")


class OpenAICompatibleEngine(EngineBase):
    """A server that somebody else runs and that speaks OpenAI's API at `url`, where it calls the
    model `model`. `key_env` names the environment variable that holds its key.

    `capabilities` are the optional request fields it honours. By default those that every such
    server is known to: many take `n` or the penalties and ignore them, which no client would see.
    """

    name: Literal["openai_compatible"]
    url: Annotated[str, AfterValidator(_base_url)]
    model: Annotated[str, Field(min_length=1)]
    key_env: Variable | None = None
    health_path: Annotated[str, Field(pattern=r"^/\S*$")] = "/models"
    capabilities: list[str] = ["temperature", "top_p", "seed", "stop"]


EngineSettings = Annotated[
    TransformersEngine | VllmEngine | SglangEngine | OpenAICompatibleEngine,
    Field(discriminator="name"),
]
#: Every kind of engine section, by the engine's name.
ENGINE_SECTIONS: dict[str, type[EngineBase]] = {
    "transformers": TransformersEngine,
    "vllm": VllmEngine,
    "sglang": SglangEngine,
    "openai_compatible": OpenAICompatibleEngine,
}
