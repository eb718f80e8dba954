"""The reply of `POST /v1/responses`: one object of output items, or the events that build it."""

from __future__ import annotations

import secrets
from typing import Any, Literal

import msgspec

from serving.contract.events import CachedTokens, Delta, ReasoningTokens, TokenLogprob
from serving.contract.reply import Answer, Reply
from serving.contract.responses import ResponsesRequest

Status = Literal["in_progress", "completed", "incomplete"]


class OutputTextPart(msgspec.Struct, tag_field="type", tag="output_text"):
    text: str
    logprobs: list[TokenLogprob] = []
    annotations: list[None] = []


class ReasoningTextPart(msgspec.Struct, tag_field="type", tag="reasoning_text"):
    text: str


class OutputMessage(msgspec.Struct, tag_field="type", tag="message"):
    id: str
    status: Status
    content: list[OutputTextPart]
    role: Literal["assistant"] = "assistant"


class ReasoningOutput(msgspec.Struct, tag_field="type", tag="reasoning"):
    id: str
    status: Status
    content: list[ReasoningTextPart]
    summary: list[None] = []


class FunctionCallOutput(msgspec.Struct, tag_field="type", tag="function_call"):
    id: str
    status: Status
    call_id: str
    name: str
    arguments: str


Output = OutputMessage | ReasoningOutput | FunctionCallOutput


class InputDetails(CachedTokens):
    """Engines do not count what they write to their cache, so that is always 0."""

    cache_write_tokens: int = 0


class ResponseUsage(msgspec.Struct):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: ReasoningTokens
    total_tokens: int


class Incomplete(msgspec.Struct):
    reason: Literal["max_output_tokens"] = "max_output_tokens"


class Response(msgspec.Struct):
    """The whole reply. What the client asked stands in it again, as OpenAI does it."""

    id: str
    created_at: int
    status: Status
    model: str
    output: list[Output]
    usage: ResponseUsage | None
    incomplete_details: Incomplete | None
    instructions: str | None
    max_output_tokens: int | None
    parallel_tool_calls: bool
    reasoning: dict[str, Any]
    temperature: float | None
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_p: float | None
    top_logprobs: int
    user: str | None
    error: None = None
    metadata: dict[str, str] = {}
    previous_response_id: None = None
    store: Literal[False] = False
    truncation: Literal["disabled"] = "disabled"
    object: Literal["response"] = "response"


class ResponseEvent(msgspec.Struct, omit_defaults=True):
    """One event of a stream; each type has the fields it needs. `delta` adds to the item of that
    id; `item`, `part` and `response` are what is built so far, or done."""

    type: str
    sequence_number: int
    response: Response | None = None
    output_index: int | None = None
    item: Output | None = None
    item_id: str | None = None
    content_index: int | None = None
    part: OutputTextPart | ReasoningTextPart | None = None
    delta: str | None = None
    text: str | None = None
    name: str | None = None
    arguments: str | None = None
    logprobs: list[TokenLogprob] | None = None


class ResponseReply(Reply):
    """Writes the events of a response: items are added, grow by deltas, and are done.

    Reasoning and text take turns as the current item; tool calls stay open until the end, because
    an engine may go on with any of them.
    """

    prefix = "resp_"

    def __init__(self, request: ResponsesRequest, fingerprint: str) -> None:
        super().__init__(request.inner, fingerprint)
        self._request = request
        self._number = 0
        self._output: list[Output] = []
        self._open: OutputMessage | ReasoningOutput | None = None
        self._pieces: list[str] = []
        self._calls: dict[int, tuple[int, FunctionCallOutput]] = {}
        self._ending: Status = "completed"

    def _write(self, out: list[bytes], answer: Answer, delta: Delta) -> None:
        if not answer.begun:
            answer.begun = True
            for kind in ("response.created", "response.in_progress"):
                out.append(self._event(kind, response=self._response("in_progress")))
        if delta.reasoning:
            self._grow(out, ReasoningOutput, delta.reasoning, [])
        if delta.text or (delta.logprobs and self._may_say(delta)):
            self._grow(out, OutputMessage, delta.text, delta.logprobs)
        for piece in delta.tools:
            self._close(out)
            call = answer.call(piece)
            if call.position not in self._calls:
                item = FunctionCallOutput(_id("fc_"), "in_progress", call.id, call.name, "")
                self._calls[call.position] = len(self._output), item
                out.append(self._added(item))
            index, item = self._calls[call.position]
            item.arguments += piece.arguments
            if piece.arguments:
                kind = "response.function_call_arguments.delta"
                more = {"item_id": item.id, "output_index": index, "delta": piece.arguments}
                out.append(self._event(kind, **more))
        if delta.finish_reason is not None:
            if not self._output:  # an answer of nothing is still an answer
                self._grow(out, OutputMessage, "", [])
            if answer.finish(delta.finish_reason) == "length":
                self._ending = "incomplete"
            self._close(out)
            for index, item in self._calls.values():
                out.append(
                    self._event(
                        "response.function_call_arguments.done",
                        item_id=item.id,
                        output_index=index,
                        name=item.name,
                        arguments=item.arguments,
                    )
                )
                out.append(self._done(index, item))

    def _may_say(self, delta: Delta) -> bool:
        """Whether a delta without text, as half a character is, belongs to a message and not to
        thoughts or tool calls, whose probabilities have no place."""
        if delta.reasoning or delta.tools:
            return False
        return isinstance(self._open, OutputMessage) or not self._output

    def end(self) -> bytes:
        response = self._finished()
        return self._event(f"response.{response.status}", response=response)

    def whole(self) -> bytes:
        return self._encoder.encode(self._finished())

    def _keep(self, answer: Answer, delta: Delta) -> None:
        self._write([], answer, delta)

    def _finished(self) -> Response:
        usage = self.checked_usage()
        spent = ResponseUsage(
            usage.prompt_tokens,
            InputDetails(usage.prompt_tokens_details.cached_tokens),
            usage.completion_tokens,
            usage.completion_tokens_details,
            usage.total_tokens,
        )
        return self._response(self._ending, spent)

    def _grow(
        self,
        out: list[bytes],
        kind: type[OutputMessage] | type[ReasoningOutput],
        text: str,
        logprobs: list[TokenLogprob],
    ) -> None:
        """Adds to the current item, after making one of this kind the current one."""
        if not isinstance(self._open, kind):
            self._close(out)
            if kind is OutputMessage:
                self._open = OutputMessage(_id("msg_"), "in_progress", [])
                part: OutputTextPart | ReasoningTextPart = OutputTextPart("")
            else:
                self._open = ReasoningOutput(_id("rs_"), "in_progress", [])
                part = ReasoningTextPart("")
            out.append(self._added(self._open))
            out.append(self._part("response.content_part.added", part))
            self._open.content.append(part)  # type: ignore[arg-type]
        assert self._open is not None
        self._pieces.append(text)
        part = self._open.content[0]
        place = self._place
        if isinstance(part, OutputTextPart):
            part.logprobs = [*part.logprobs, *logprobs] if logprobs else part.logprobs
            out.append(
                self._event("response.output_text.delta", **place, delta=text, logprobs=logprobs)
            )
        else:
            out.append(self._event("response.reasoning_text.delta", **place, delta=text))

    def _close(self, out: list[bytes]) -> None:
        """Ends the current item."""
        if self._open is None:
            return
        part = self._open.content[0]
        part.text = "".join(self._pieces)
        self._pieces = []
        place = self._place
        if isinstance(part, OutputTextPart):
            kind = "response.output_text.done"
            out.append(self._event(kind, **place, text=part.text, logprobs=part.logprobs))
        else:
            out.append(self._event("response.reasoning_text.done", **place, text=part.text))
        out.append(self._part("response.content_part.done", part))
        out.append(self._done(len(self._output) - 1, self._open))
        self._open = None

    @property
    def _place(self) -> dict[str, Any]:
        """Where the current item's only part is."""
        assert self._open is not None
        index = len(self._output) - 1
        return {"item_id": self._open.id, "output_index": index, "content_index": 0}

    def _added(self, item: Output) -> bytes:
        self._output.append(item)
        index = len(self._output) - 1
        return self._event("response.output_item.added", output_index=index, item=item)

    def _done(self, index: int, item: Output) -> bytes:
        item.status = self._ending
        return self._event("response.output_item.done", output_index=index, item=item)

    def _part(self, kind: str, part: OutputTextPart | ReasoningTextPart) -> bytes:
        return self._event(kind, **self._place, part=part)

    def _event(self, kind: str, **fields: Any) -> bytes:
        event = ResponseEvent(kind, self._number, **fields)
        self._number += 1
        return b"event: " + kind.encode() + b"\n" + self.encode(event)

    def _response(self, status: Status, usage: ResponseUsage | None = None) -> Response:
        asked = self._request
        options = asked.text.model_dump(by_alias=True, exclude_none=True) if asked.text else {}
        choice = asked.tool_choice
        return Response(
            id=self.id,
            created_at=self.created,
            status=status,
            model=self.model,
            output=[] if status == "in_progress" else self._output,
            usage=usage,
            incomplete_details=Incomplete() if status == "incomplete" else None,
            instructions=asked.instructions,
            max_output_tokens=asked.max_output_tokens,
            parallel_tool_calls=asked.parallel_tool_calls is not False,
            reasoning={"effort": asked.reasoning.effort if asked.reasoning else None},
            temperature=asked.temperature,
            text={"format": {"type": "text"}, **options},
            tool_choice=(choice or "auto")
            if choice is None or isinstance(choice, str)
            else choice.model_dump(),
            tools=[tool.model_dump() for tool in asked.tools or ()],
            top_p=asked.top_p,
            top_logprobs=asked.top_logprobs or 0,
            user=asked.user,
        )


def _id(prefix: str) -> str:
    return prefix + secrets.token_hex(16)
