"""Tools a model may call, and the form its answer must have."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from serving.contract.schema import JsonSchema, few_enough

FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class Function(BaseModel):
    """`strict` asks for arguments that keep to the schema; forced calls always do."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: FunctionName
    description: str | None = None
    parameters: JsonSchema | None = None
    strict: bool | None = None


class Tool(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["function"]
    function: Function


_AnyTool = TypeVar("_AnyTool")
Tools = Annotated[
    list[_AnyTool], Field(max_length=128, fail_fast=True), BeforeValidator(few_enough)
]


class ChosenFunction(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: FunctionName


class ChosenTool(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["function"]
    function: ChosenFunction


ToolChoice = Literal["none", "auto", "required"] | ChosenTool


class TextFormat(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text"]


class JsonObjectFormat(BaseModel):
    """Any JSON object."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["json_object"]


class NamedSchema(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    schema_: Annotated[JsonSchema, Field(alias="schema")]
    description: str | None = None
    strict: bool | None = None  # an engine that can do it at all is always strict


class JsonSchemaFormat(BaseModel):
    """JSON that keeps to a schema."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")
]


def as_sent(part: BaseModel) -> dict[str, Any]:
    """What the client wrote, without what it left out."""
    return part.model_dump(by_alias=True, exclude_unset=True)
