"""The messages of a conversation, as clients write them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def _inside_the_request(url: str) -> str:
    """The engine would fetch any address a client names, inner ones too."""
    if not url.startswith("data:image/"):
        raise ValueError("send the image itself, as data:image/TYPE;base64,…")
    return url


def _a_json_object(arguments: str) -> str:
    """Chat templates want an object, and engines fail in their own ways without one."""
    try:
        parsed = msgspec.json.decode(arguments or "{}")
    except (msgspec.DecodeError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise ValueError("write a JSON object")
    return arguments or "{}"


ImageData = Annotated[
    str,
    AfterValidator(_inside_the_request),
    Field(json_schema_extra={"pattern": "^data:image/"}),
]
Arguments = Annotated[str, AfterValidator(_a_json_object)]


class TextPart(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text"]
    text: str


class ImageUrl(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    url: ImageData
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(BaseModel):
    """An image, for models that see."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["image_url"]
    image_url: ImageUrl


Text = str | Annotated[list[TextPart], Field(min_length=1, max_length=4096, fail_fast=True)]
Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]
Content = str | Annotated[list[Part], Field(min_length=1, max_length=4096, fail_fast=True)]


class SystemMessage(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "developer"]
    content: Text
    name: str | None = None


class UserMessage(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["user"]
    content: Content
    name: str | None = None


class FunctionCall(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: Annotated[str, Field(min_length=1, max_length=64)]
    arguments: Arguments


class ToolCall(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    id: Annotated[str, Field(min_length=1, max_length=256)]
    type: Literal["function"] = "function"
    function: FunctionCall


class AssistantMessage(BaseModel):
    """An earlier answer. The SDK's reply objects may be sent back as they came, or as their
    `model_dump()` shows them, with a null for all that this answer had nothing of."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["assistant"]
    content: Text | None = None
    name: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None  # not said again to the model
    annotations: Annotated[list[None], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=128, fail_fast=True)] | None = None


class ToolMessage(BaseModel):
    """What a tool gave back for the call `tool_call_id`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["tool"]
    content: Text
    tool_call_id: Annotated[str, Field(min_length=1, max_length=256)]
    name: str | None = None


Message = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")
]


def plain(message: Message) -> dict[str, Any]:
    """One message as every engine takes it: its text in one piece unless it has images, and
    `developer` as `system`, which is what it was called before."""
    role = "system" if message.role == "developer" else message.role
    written: dict[str, Any] = {"role": role, "content": _plain_content(message.content)}
    if isinstance(message, AssistantMessage) and message.tool_calls:
        written["tool_calls"] = [call.model_dump() for call in message.tool_calls]
    if isinstance(message, ToolMessage):
        written["tool_call_id"] = message.tool_call_id
    return written


def images(message: Message) -> int:
    """How many images it has."""
    parts = message.content if isinstance(message.content, list) else []
    return sum(isinstance(part, ImagePart) for part in parts)


def _plain_content(content: Any) -> str | list[dict[str, Any]]:
    if content is None or isinstance(content, str):
        return content or ""
    if any(isinstance(part, ImagePart) for part in content):
        return [part.model_dump(exclude_none=True) for part in content]
    return "".join(part.text for part in content)
