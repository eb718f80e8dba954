"""What vLLM and SGLang have in common: engines made to answer many requests at once."""

from __future__ import annotations

from typing import Any

from serving.contract.chat import ChatRequest
from serving.contract.errors import ApiError, invalid
from serving.contract.sampling import Generation, Request
from serving.engines.base import LocalEngine
from serving.engines.dialect import Decoder, StreamDecoder
from serving.settings import GpuEngine


class BatchingEngine(LocalEngine):
    settings: GpuEngine

    @property
    def lacks(self) -> frozenset[str]:
        """What it can do, but not as it is set up."""
        lacking = set(super().lacks)
        if self.settings.tool_parser is None:
            lacking |= {"tools", "tool_choice"}
        if not self.settings.priority_scheduling:
            lacking.add("priority")
        return frozenset(lacking)

    def decoder(self, request: Request) -> Decoder:
        if isinstance(request, Generation):
            return StreamDecoder(counts_on=True)
        return super().decoder(request)

    def _common(self, request: Generation) -> dict[str, Any]:
        """Every event tells what was counted so far, so that an answer that is cut short is counted
        as well as any other."""
        body = super()._common(request)
        body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
        return body

    def chat(self, request: ChatRequest) -> dict[str, Any]:
        body = super().chat(request)
        if "tool_choice" in body:
            # Only for strict functions do they force the arguments into their schema.
            for tool in body["tools"]:
                tool["function"]["strict"] = True
        return body

    def refusal(self, status: int, body: bytes, request: Request) -> ApiError:
        # "Grammar error: …", "Invalid grammar specification: …", "Failed to compile json grammar"
        if status == 400 and b"rammar" in body:
            field = "response_format" if "response_format" in request.inner.needs else "tools"
            return invalid(
                "The engine cannot hold an answer to this JSON schema; make it simpler.",
                request.FIELDS.get(field, field),
            )
        return super().refusal(status, body, request)

    def too_long(self, text: str) -> bool:
        said = ("context length", "max_model_len", "max_completion_tokens is too large")
        return any(words in text for words in said)
