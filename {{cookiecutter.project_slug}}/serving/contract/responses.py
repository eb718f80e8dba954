"""`POST /v1/responses`: OpenAI's newer way to ask, answered by the same path as chat.

Stateless: the conversation comes whole with each request and nothing is stored. Source of the
shapes: OpenAI's API reference, as its Python SDK types them.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from serving.contract.chat import ChatRequest, ReasoningEffort
from serving.contract.messages import Arguments, ImageData, ImageUrl
from serving.contract.sampling import Flag, Request, StreamOptions, Tokens, wrong
from serving.contract.schema import JsonSchema
from serving.contract.tools import FunctionName, JsonObjectFormat, TextFormat, Tools


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class InputText(_Part):
    type: Literal["input_text"]
    text: str


class OutputText(_Part):
    """A part of an earlier answer, as it was given."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class InputImage(_Part):
    type: Literal["input_image"]
    image_url: ImageData
    detail: Literal["auto", "low", "high"] | None = None


Part = Annotated[InputText | OutputText | InputImage, Field(discriminator="type")]


class _Item(BaseModel):
    """`id` and `status` come back with items of earlier answers, and mean nothing here."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: str | None = None
    status: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, fields: Any) -> Any:
        """The SDK's `model_dump()` has one for all that an item might have had."""
        if isinstance(fields, dict):
            return {name: value for name, value in fields.items() if value is not None}
        return fields


class MessageItem(_Item):
    type: Literal["message"] | None = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | Annotated[list[Part], Field(max_length=4096, fail_fast=True)]
    phase: str | None = None

    @model_validator(mode="after")
    def _only_users_show_images(self) -> MessageItem:
        parts = self.content if isinstance(self.content, list) else []
        if self.role != "user" and any(isinstance(part, InputImage) for part in parts):
            raise ValueError("only a message of the role user holds images")
        return self


class CallItem(_Item):
    """A tool call that an earlier answer made."""

    type: Literal["function_call"]
    call_id: Annotated[str, Field(min_length=1, max_length=256)]
    name: Annotated[str, Field(min_length=1, max_length=64)]
    arguments: Arguments


class CallOutputItem(_Item):
    """What the tool gave back."""

    type: Literal["function_call_output"]
    call_id: Annotated[str, Field(min_length=1, max_length=256)]
    output: str | Annotated[list[InputText], Field(min_length=1, max_length=4096, fail_fast=True)]

    @property
    def text(self) -> str:
        if isinstance(self.output, str):
            return self.output
        return "".join(part.text for part in self.output)


class ReasoningItem(_Item):
    """What an earlier answer thought; not said again to the model."""

    type: Literal["reasoning"]
    summary: list[Any] | None = None
    content: list[Any] | None = None
    encrypted_content: None = None


# Named as classes are: what begins with a capital is no part of the path in an error.
_KINDS = {
    "message": "Message",
    "function_call": "Call",
    "function_call_output": "CallOutput",
    "reasoning": "Reasoning",
}


def _kind(item: Any) -> str | None:
    kind = item.get("type") if isinstance(item, dict) else getattr(item, "type", None)
    return _KINDS.get(kind) if isinstance(kind, str) else "Message"


Item = Annotated[
    Annotated[MessageItem, Tag("Message")]
    | Annotated[CallItem, Tag("Call")]
    | Annotated[CallOutputItem, Tag("CallOutput")]
    | Annotated[ReasoningItem, Tag("Reasoning")],
    Discriminator(
        _kind,
        custom_error_type="unknown_item",
        custom_error_message=f"the type of an item should be one of {', '.join(_KINDS)}",
    ),
]


class FunctionTool(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["function"]
    name: FunctionName
    description: str | None = None
    parameters: JsonSchema | None = None
    strict: bool | None = None


class ChosenFunction(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["function"]
    name: FunctionName


class SchemaFormat(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["json_schema"]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    schema_: Annotated[JsonSchema, Field(alias="schema")]
    description: str | None = None
    strict: bool | None = None


class TextOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    format: (
        Annotated[TextFormat | JsonObjectFormat | SchemaFormat, Field(discriminator="type")] | None
    ) = None


class Reasoning(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    effort: ReasoningEffort | None = None


class ResponsesRequest(Request):
    TASK: ClassVar[str] = ChatRequest.TASK
    INPUT_FIELD: ClassVar[str] = "input"
    FIELDS: ClassVar[dict[str, str]] = {
        "response_format": "text.format",
        "reasoning_effort": "reasoning.effort",
        "logprobs": "top_logprobs",
        "image_url": "input",
    }
    NOT_OFFERED: ClassVar[dict[str, list[Any]]] = {
        "background": [False],
        "context_management": [[]],
        "conversation": [],
        "max_tool_calls": [],
        "previous_response_id": [],
        "prompt": [],
        "store": [False],  # nothing is kept; OpenAI's own default would keep it
        "truncation": ["disabled"],
    }
    HINTS: ClassVar[frozenset[str]] = Request.HINTS - {"store"} | {"prompt_cache_retention"}

    input: str | Annotated[list[Item], Field(min_length=1, max_length=4096, fail_fast=True)]
    instructions: str | None = None
    max_output_tokens: Tokens | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20, strict=True)] | None = None
    include: list[Literal["message.output_text.logprobs"]] | None = None
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    tools: Tools[FunctionTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ChosenFunction | None = None
    parallel_tool_calls: bool | None = None
    stream: Flag = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_empty_options(cls, fields: Any) -> Any:
        """SDK helpers send options whose every part is null."""
        if isinstance(fields, dict):
            return {
                name: {key: part for key, part in value.items() if part is not None}
                if name in ("text", "reasoning") and isinstance(value, dict)
                else value
                for name, value in fields.items()
            }
        return fields

    @cached_property
    def inner(self) -> ChatRequest:
        """The same as a chat. Raises pydantic's ValidationError for fields that do not fit
        together, by the names they have here."""
        wants_logprobs = bool(self.top_logprobs or self.include)
        fields: dict[str, Any] = {
            "model": self.model,
            "messages": self._messages(),
            "max_completion_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "logprobs": wants_logprobs,
            "top_logprobs": self.top_logprobs if wants_logprobs else None,
            "response_format": self._format(),
            "reasoning_effort": self.reasoning.effort if self.reasoning else None,
            "tools": [_nested(tool) for tool in self.tools] if self.tools else None,
            "tool_choice": _nested(self.tool_choice)
            if isinstance(self.tool_choice, ChosenFunction)
            else self.tool_choice,
            "parallel_tool_calls": self.parallel_tool_calls,
            "stream": self.stream,
            "user": self.user,
        }
        try:
            return ChatRequest.model_validate(
                {name: value for name, value in fields.items() if value is not None}
            )
        except ValidationError as error:
            raise self._by_own_name(error) from None

    def _by_own_name(self, error: ValidationError) -> ValidationError:
        problem = error.errors(include_url=False)[-1]
        context = problem.get("ctx", {})
        field = context.get("field") or str(problem["loc"][0])
        own = {"messages": self.INPUT_FIELD, **self.FIELDS}.get(field, field)
        fault = wrong(own, context.get("reason") or problem["msg"])
        return ValidationError.from_exception_data(error.title, [{"type": fault, "input": None}])

    def _format(self) -> dict[str, Any] | None:
        form = self.text.format if self.text else None
        if form is None:
            return None
        written = form.model_dump(by_alias=True, exclude_unset=True)
        if written["type"] != "json_schema":
            return written
        return {"type": written.pop("type"), "json_schema": written}

    def _messages(self) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        if self.instructions:
            messages.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            return [*messages, {"role": "user", "content": self.input}]
        for item in self.input:
            if isinstance(item, MessageItem):
                messages.append({"role": item.role, "content": _content(item)})
            elif isinstance(item, CallItem):
                # Calls that were made together belong to one message, with what was said before.
                if not messages or messages[-1]["role"] != "assistant":
                    messages.append({"role": "assistant"})
                function = {"name": item.name, "arguments": item.arguments}
                call = {"id": item.call_id, "type": "function", "function": function}
                messages[-1].setdefault("tool_calls", []).append(call)
            elif isinstance(item, CallOutputItem):
                said = {"role": "tool", "content": item.text, "tool_call_id": item.call_id}
                messages.append(said)
        return messages


def _content(item: MessageItem) -> str | list[dict[str, Any]]:
    if isinstance(item.content, str):
        return item.content
    if any(isinstance(part, InputImage) for part in item.content):
        return [_chat_part(part) for part in item.content]
    return "".join(part.text for part in item.content if not isinstance(part, InputImage))


def _chat_part(part: InputText | OutputText | InputImage) -> dict[str, Any]:
    if isinstance(part, InputImage):
        url = ImageUrl(url=part.image_url, detail=part.detail)
        return {"type": "image_url", "image_url": url.model_dump(exclude_none=True)}
    return {"type": "text", "text": part.text}


def _nested(flat: FunctionTool | ChosenFunction) -> dict[str, Any]:
    """Chat's shape of a tool or a choice, whose function is an object of its own."""
    written = flat.model_dump(exclude_unset=True)
    return {"type": written.pop("type"), "function": written}
