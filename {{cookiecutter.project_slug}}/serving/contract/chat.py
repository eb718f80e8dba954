"""`POST /v1/chat/completions`: the request, the reply and the stream.

Requests are pydantic models, because their errors must say which field is wrong. Replies are
msgspec structs, because one is made for every token.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from pydantic import Field, model_validator

from serving.contract.events import Delta, FinishReason, TokenLogprob, Usage
from serving.contract.messages import Message, images, plain
from serving.contract.reply import Answer, Call, ChunkReply
from serving.contract.sampling import HEAVY, NO_OTHER_KEYS, Generation, Tokens, wrong
from serving.contract.tools import ChosenTool, ResponseFormat, Tool, ToolChoice, Tools, as_sent

ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]
#: Variables for the model's own chat template, as `enable_thinking`; what the gateway fills in
#: itself is not theirs to set, nor are the other arguments of transformers' `apply_chat_template`.
TemplateVariable = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
TAKEN_VARIABLES = frozenset(
    {"messages", "tools", "documents", "chat_template", "add_generation_prompt", "tokenize"}
    | {"continue_final_message", "return_dict", "bos_token", "eos_token", "unk_token", "pad_token"}
    | {"self", "conversation", "padding", "truncation", "max_length", "return_tensors"}
    | {"return_assistant_tokens_mask", "tokenizer_kwargs", "sanitize_control_tokens"}
)


class ChatRequest(Generation):
    TASK: ClassVar[str] = "chat"
    INPUT_FIELD: ClassVar[str] = "messages"
    OPTIONAL: ClassVar[dict[str, Any]] = {
        **Generation.OPTIONAL,
        "logprobs": False,
        "response_format": {"type": "text"},
        "tools": [],
        "tool_choice": "auto",
        "reasoning_effort": None,
        "chat_template_kwargs": {},
    }
    FIELDS: ClassVar[dict[str, str]] = {"image_url": "messages"}
    NOT_OFFERED: ClassVar[dict[str, list[Any]]] = {
        "audio": [],
        "function_call": ["none", "auto"],
        "functions": [[]],
        "modalities": [["text"]],
        "prediction": [],
        "verbosity": [],
        "web_search_options": [],
    }

    # Bounded and checked only as far as the first fault: a long list of wrong things is no work.
    messages: Annotated[list[Message], Field(min_length=1, max_length=4096, fail_fast=True)]
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20, strict=True)] | None = None
    response_format: ResponseFormat | None = None
    tools: Tools[Tool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: ReasoningEffort | None = None
    chat_template_kwargs: (
        Annotated[
            dict[TemplateVariable, str | int | float | bool],
            Field(max_length=32, json_schema_extra=NO_OTHER_KEYS),
        ]
        | None
    ) = None

    @model_validator(mode="after")
    def _fields_that_hang_together(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise wrong("top_logprobs", "it needs logprobs: true")
        forced = self.tool_choice not in (None, "none", "auto")
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise wrong("tools", "two of them have the same name")
        if isinstance(self.tool_choice, ChosenTool):
            if self.tool_choice.function.name not in names:
                raise wrong("tool_choice", "it names no function of tools")
        elif self.tool_choice == "required" and not names:
            raise wrong("tool_choice", "there are no tools to call")
        if forced and self.response_format and self.response_format.type != "text":
            raise wrong("response_format", "a forced tool call has its own form; leave one out")
        if self.ignore_eos and not {"tools", "response_format"}.isdisjoint(self.asked()):
            # Grammars end where their form does, and parsers of calls take end tokens for text.
            raise wrong("ignore_eos", "it goes with no tools and no response_format")
        for name in self.chat_template_kwargs or ():
            if name in TAKEN_VARIABLES:
                raise wrong(f"chat_template_kwargs.{name}", "a request cannot set this variable")
        return self

    @property
    def token_limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @cached_property
    def characters(self) -> int:
        return sum(len(str(message["content"])) for message in self.plain_messages)

    @property
    def heavy(self) -> bool:
        return super().heavy or self.extras > HEAVY

    @cached_property
    def extras(self) -> int:
        """Roughly the characters a template shows beside the messages: tools and their calls."""
        calls = (c.function for m in self.messages for c in getattr(m, "tool_calls", None) or ())
        return sum(len(call.arguments) for call in calls) + len(str(self.asked().get("tools", "")))

    def opening(self) -> str:
        """All up to the first message of the user."""
        users = (at for at, message in enumerate(self.messages, 1) if message.role == "user")
        return str(self.plain_messages[: next(users, None)])

    @cached_property
    def plain_messages(self) -> list[dict[str, Any]]:
        """The conversation as every engine takes it; see `messages.plain`."""
        return [plain(message) for message in self.messages]

    def asked(self) -> dict[str, Any]:
        """As for any request; tools that may not be called are not there at all, on any engine."""
        asked = super().asked()
        if "response_format" in asked:
            asked["response_format"] = as_sent(asked["response_format"])
            if asked["response_format"]["type"] == "text":
                del asked["response_format"]
        if self.tool_choice == "none":
            asked.pop("tools", None)
            del asked["tool_choice"]
        if "tools" in asked:
            asked["tools"] = [as_sent(tool) for tool in asked["tools"]]
        if isinstance(self.tool_choice, ChosenTool):
            asked["tool_choice"] = as_sent(self.tool_choice)
        return asked

    @property
    def needs(self) -> list[str]:
        seen = any(images(message) for message in self.messages)
        return [*super().needs, *(["image_url"] if seen else [])]

    @property
    def one_call(self) -> bool:
        return self.parallel_tool_calls is False


class FunctionName(msgspec.Struct):
    name: str
    arguments: str


class MessageToolCall(msgspec.Struct):
    id: str
    function: FunctionName
    type: Literal["function"] = "function"


class AnswerMessage(msgspec.Struct):
    """`content` is null when the answer is nothing but tool calls."""

    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[MessageToolCall] | msgspec.UnsetType = msgspec.UNSET


class Logprobs(msgspec.Struct):
    content: list[TokenLogprob]
    refusal: None = None


class ChatChoice(msgspec.Struct):
    index: int
    message: AnswerMessage
    finish_reason: FinishReason
    logprobs: Logprobs | None = None


class ChatCompletion(msgspec.Struct):
    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    object: Literal["chat.completion"] = "chat.completion"


class FunctionDelta(msgspec.Struct):
    arguments: str
    name: str | msgspec.UnsetType = msgspec.UNSET


class ToolCallDelta(msgspec.Struct, omit_defaults=True):
    """The first of a call has its id, type and name; all add to the arguments."""

    index: int
    function: FunctionDelta
    id: str | None = None
    type: Literal["function"] | None = None


class ChatDelta(msgspec.Struct, omit_defaults=True):
    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChatChunkChoice(msgspec.Struct):
    index: int
    delta: ChatDelta
    finish_reason: FinishReason | None = None
    logprobs: Logprobs | None = None


class ChatChunk(msgspec.Struct):
    """One event of a stream. `usage` stands in the last one, and only when it was asked for."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET


class ChatReply(ChunkReply):
    """Writes chat's events: the role first, then reasoning, content and tool calls as they come,
    one finish reason, usage, `[DONE]`."""

    prefix = "chatcmpl-"

    def __init__(self, request: ChatRequest, fingerprint: str) -> None:
        super().__init__(request, fingerprint)
        self._asked_logprobs = bool(request.logprobs)

    def _opening(self, index: int) -> bytes | None:
        return self._chunk([ChatChunkChoice(index, ChatDelta(role="assistant", content=""))])

    def _text(self, index: int, text: str) -> bytes:
        return self._chunk([ChatChunkChoice(index, ChatDelta(content=text))])

    def _said(self, answer: Answer, delta: Delta) -> bytes:
        said = ChatDelta(content=delta.text or None, reasoning_content=delta.reasoning or None)
        if delta.tools:
            said.tool_calls = [_tool_delta(answer.call(piece)) for piece in delta.tools]
        logprobs = Logprobs(delta.logprobs) if delta.logprobs else None
        return self._chunk([ChatChunkChoice(delta.index, said, logprobs=logprobs)])

    def _finish(self, index: int, reason: FinishReason) -> bytes:
        return self._chunk([ChatChunkChoice(index, ChatDelta(), reason)])

    def _usage(self, usage: Usage) -> bytes:
        return self._chunk([], usage)

    def whole(self) -> bytes:
        usage = self.checked_usage()
        choices = [self._choice(index, answer) for index, answer in enumerate(self.answers)]
        return self._encoder.encode(
            ChatCompletion(self.id, self.created, self.model, self.fingerprint, choices, usage)
        )

    def _choice(self, index: int, answer: Answer) -> ChatChoice:
        assert answer.reason is not None
        message = AnswerMessage(answer.text)
        if answer.thoughts:
            message.reasoning_content = answer.reasoning
        if answer.calls:
            message.content = answer.text or None
            message.tool_calls = [
                MessageToolCall(call.id, FunctionName(call.name, call.arguments))
                for call in answer.calls.values()
            ]
        logprobs = Logprobs(answer.logprobs) if self._asked_logprobs else None
        return ChatChoice(index, message, answer.reason, logprobs)

    def _chunk(
        self, choices: list[ChatChunkChoice], usage: Usage | msgspec.UnsetType | None = None
    ) -> bytes:
        return self.encode(
            ChatChunk(
                self.id,
                self.created,
                self.model,
                self.fingerprint,
                choices,
                usage=self._no_usage if usage is None else usage,
            )
        )


def _tool_delta(call: Call) -> ToolCallDelta:
    """The newest fragment of a call, with its name when it is the first."""
    piece = FunctionDelta(call.fragments[-1])
    if len(call.fragments) > 1:
        return ToolCallDelta(call.position, piece)
    piece.name = call.name
    return ToolCallDelta(call.position, piece, call.id, "function")
