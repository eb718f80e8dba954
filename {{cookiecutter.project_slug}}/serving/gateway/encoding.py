"""A request in the words of the engine that is to answer it."""

from __future__ import annotations

import asyncio

from serving.contract.chat import ChatRequest
from serving.contract.completions import CompletionRequest
from serving.contract.embeddings import EmbeddingRequest
from serving.contract.errors import unsupported
from serving.contract.responses import ResponsesRequest
from serving.engines.base import Engine, EngineCall
from serving.runtime.routing import Route

AnyRequest = ChatRequest | CompletionRequest | EmbeddingRequest | ResponsesRequest


async def encode(request: AnyRequest, route: Route) -> EngineCall:
    """Raises `ApiError` (400) for what the engine cannot do or its context does not hold."""
    engine = route.replica.engine
    if request.inner.heavy:  # counting a long prompt's tokens takes a while
        return await asyncio.to_thread(_encode, engine, request, route.adapter)
    return _encode(engine, request, route.adapter)


def _encode(engine: Engine, request: AnyRequest, adapter: str) -> EngineCall:
    for capability in request.inner.needs:
        if capability not in engine.capabilities:
            field = None if capability == request.TASK else capability
            raise unsupported(capability, request.model, request.FIELDS.get(capability, field))
    return engine.call(request.inner, adapter)
