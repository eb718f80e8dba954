"""What vLLM and SGLang have in common: engines made to answer many requests at once."""

from __future__ import annotations

from typing import Any

from serving.contract.chat import ChatRequest
from serving.contract.errors import ApiError, invalid
from serving.contract.sampling import Request
from serving.engines.base import LocalEngine
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
