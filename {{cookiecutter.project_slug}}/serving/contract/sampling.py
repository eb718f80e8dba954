"""What all requests share, and the fields that chat and text completions have in common."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, ClassVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from serving.contract.errors import UNSUPPORTED, WRONG_FIELD

StopText = Annotated[str, Field(min_length=1, max_length=256)]
#: Characters of a prompt above which it is worked on beside the event loop.
HEAVY = 32 * 1024

Tokens = Annotated[int, Field(ge=1, strict=True)]
TokenId = Annotated[str, Field(pattern=r"^(0|[1-9]\d{0,8})$")]
Bias = Annotated[float, Field(ge=-100, le=100)]
#: Of an object whose keys have a pattern.
NO_OTHER_KEYS: dict[str, JsonValue] = {"additionalProperties": False}
# Null is their default, too: it is taken away before anything is checked.
Choices = Annotated[
    int,
    Field(ge=1, le=16, strict=True),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1, "maximum": 16}, {"type": "null"}]}),
]
Flag = Annotated[bool, WithJsonSchema({"anyOf": [{"type": "boolean"}, {"type": "null"}]})]


def wrong(field: str, reason: str) -> PydanticCustomError:
    """For a validator that looks at several fields, the error that names the one at fault."""
    return PydanticCustomError(WRONG_FIELD, "{reason}", {"field": field, "reason": reason})


def whole(value: Any) -> Any:
    """The integer that a number without a fraction is in JSON Schema: 1.0 is 1."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class StreamOptions(BaseModel):
    """`include_usage` asks for one last event before `[DONE]` that carries the token counts."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool | None = False
    include_obfuscation: bool | None = False  # padding against eavesdroppers: not done, not needed


class Request(BaseModel):
    """What any request may say. A field left out leaves the choice to the model.

    Fields named in `OPTIONAL` need an engine that has them: asked of one that has not, the request
    is refused, unless the value is the one that changes nothing.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    #: The capability that this kind of request is.
    TASK: ClassVar[str]
    #: The field that holds what the client wrote, for errors about its length.
    INPUT_FIELD: ClassVar[str]
    #: capability -> the value that asks for nothing
    OPTIONAL: ClassVar[dict[str, Any]] = {}
    #: OpenAI's fields this contract does not offer -> values that ask for nothing, as null does
    NOT_OFFERED: ClassVar[dict[str, list[Any]]] = {}
    #: capability -> the client's name for it, where that is another one
    FIELDS: ClassVar[dict[str, str]] = {}
    #: OpenAI's fields that never change an answer: accepted, and of no effect
    HINTS: ClassVar[frozenset[str]] = frozenset(
        {"metadata", "prompt_cache_key", "safety_identifier", "service_tier", "store"}
    )

    model: Annotated[str, Field(min_length=1, max_length=200)]
    user: Annotated[str, Field(max_length=512)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_what_asks_for_nothing(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        kept = {}
        for name, given in fields.items():
            value = whole(given)
            if name in cls.NOT_OFFERED:
                if value is not None and value not in cls.NOT_OFFERED[name]:
                    raise PydanticCustomError(UNSUPPORTED, "not offered", {"field": name})
            elif name not in cls.HINTS and not (value is None and name in ("n", "stream")):
                kept[name] = value
        return kept

    @property
    def inner(self) -> Request:
        """The request as engines see it: this one, unless the endpoint is built on another."""
        return self

    @cached_property
    def characters(self) -> int:
        """How long the prompt is."""
        return 0

    def opening(self) -> str:
        """What every turn of the same conversation begins with."""
        return ""

    @property
    def heavy(self) -> bool:
        """Whether there is so much in it that work on it would hold up other requests."""
        return self.characters > HEAVY

    def asked(self) -> dict[str, Any]:
        """The optional fields this request really uses, with their values as engines take them."""
        asked = {}
        for name, nothing in self.OPTIONAL.items():
            value = getattr(self, name)
            if value is not None and value != nothing:
                asked[name] = value
        return asked

    @property
    def needs(self) -> list[str]:
        """The capabilities an engine must have for it."""
        return [self.TASK, *self.asked()]


class Generation(Request):
    """A request whose answer is text."""

    OPTIONAL: ClassVar[dict[str, Any]] = {
        "n": 1,
        "temperature": 0,  # greedy, which an engine without sampling does anyway
        "top_p": 1,
        "top_k": 0,
        "min_p": 0,
        "seed": None,
        "stop": None,
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "repetition_penalty": 1,
        "logit_bias": {},
        "ignore_eos": False,
        "priority": 0,
    }

    n: Choices = 1
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, strict=True)] | None = None  # 0 or -1: no limit
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63, strict=True)] | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=4)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] | None = None
    #: token id -> what is added to its logit
    logit_bias: (
        Annotated[dict[TokenId, Bias], Field(max_length=300, json_schema_extra=NO_OTHER_KEYS)]
        | None
    ) = None
    #: goes on to the token limit, or the context's end, whatever the end token: load tests want
    #: answers of one length
    ignore_eos: bool | None = False
    #: lower goes first among the requests that wait
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31, strict=True)] | None = None
    stream: Flag = False
    stream_options: StreamOptions | None = None

    @field_validator("top_k")
    @classmethod
    def _one_way_to_say_no_limit(cls, value: int | None) -> int | None:
        return 0 if value == -1 else value

    @field_validator("stop")
    @classmethod
    def _one_shape_of_stop(cls, value: str | list[str] | None) -> list[str] | None:
        return [value] if isinstance(value, str) else value or None

    @property
    def stops(self) -> list[str]:
        """The stop texts, whichever shape the client used."""
        return list(self.stop) if self.stop else []

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def token_limit(self) -> int | None:
        """The most tokens to generate, if the client said one."""
        return None

    @property
    def one_call(self) -> bool:
        """Whether only the first of several tool calls is wanted."""
        return False
