"""The contract as an OpenAPI document, generated from the very types that validate and encode.

`python -m serving.contract.openapi` prints it; the copy in `openapi.json` is committed, so that a
change of the contract shows in a diff.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec
from pydantic.json_schema import models_json_schema

from serving.contract.chat import ChatChunk, ChatCompletion, ChatRequest
from serving.contract.completions import Completion, CompletionRequest
from serving.contract.embeddings import EmbeddingList, EmbeddingRequest
from serving.contract.errors import ErrorReply
from serving.contract.models import Model, ModelList
from serving.contract.response_reply import Response, ResponseEvent
from serving.contract.responses import ResponsesRequest

REF = "#/components/schemas/{}"
NO_KEY = "No key, or none that is known, or no longer."


def document() -> dict[str, Any]:
    """The OpenAPI 3.1 document of what clients may depend on."""
    _, requests = models_json_schema(
        [
            (ChatRequest, "validation"),
            (CompletionRequest, "validation"),
            (EmbeddingRequest, "validation"),
            (ResponsesRequest, "validation"),
        ],
        ref_template=REF.format("{model}"),
    )
    _, replies = msgspec.json.schema_components(
        [
            ChatCompletion,
            ChatChunk,
            Completion,
            EmbeddingList,
            Response,
            ResponseEvent,
            Model,
            ModelList,
            ErrorReply,
        ],
        ref_template=REF.format("{name}"),
    )
    return {
        "openapi": "3.1.0",
        "info": {"title": "LLM service", "version": "1"},
        "security": [{"key": []}],
        "paths": {
            "/v1/chat/completions": {
                "post": _generation("createChatCompletion", ChatRequest, ChatCompletion, ChatChunk)
            },
            "/v1/completions": {
                "post": _generation("createCompletion", CompletionRequest, Completion, Completion)
            },
            "/v1/embeddings": {
                "post": _generation("createEmbedding", EmbeddingRequest, EmbeddingList)
            },
            "/v1/responses": {
                "post": _generation("createResponse", ResponsesRequest, Response, ResponseEvent)
            },
            "/v1/models": {"get": _reading("listModels", ModelList)},
            "/v1/models/{model}": {
                "get": {
                    **_reading("getModel", Model),
                    "parameters": [
                        {
                            "name": "model",
                            "in": "path",
                            "required": True,
                            "schema": {"type": "string"},
                        }
                    ],
                }
            },
        },
        "components": {
            "schemas": {**requests["$defs"], **replies},
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API key; not wanted where the service is open to everybody.",
                }
            },
        },
    }


def _generation(name: str, request: type, reply: type, event: type | None = None) -> dict[str, Any]:
    """An inference endpoint; `event` is what it streams, if it can."""
    return {
        "operationId": name,
        "requestBody": {"required": True, "content": _json(request)},
        "responses": {
            "200": {
                "description": "The reply, or with `stream` its events.",
                "headers": {
                    header: {"schema": {"type": "string"}}
                    for header in ("x-request-id", "x-served-version", "x-served-label")
                },
                "content": {**_json(reply), **(_events(event) if event else {})},
            },
            **{
                str(status): _error(description)
                for status, description in {
                    400: "A field is wrong, unknown, or beyond what the engine can do.",
                    401: NO_KEY,
                    403: "The key is not for this model, or not for this at all.",
                    404: "No such model.",
                    408: "The request came too slowly.",
                    413: "The body is too large.",
                    415: "The body is not JSON.",
                    429: "A limit of the key or the model is reached; see Retry-After.",
                    431: "The request's head is too large.",
                    500: "A defect of the service.",
                    502: "The engine failed.",
                    503: "Loading, overloaded or stopping; see Retry-After.",
                    504: "The engine was silent for too long.",
                }.items()
            },
        },
    }


def _reading(name: str, reply: type) -> dict[str, Any]:
    return {
        "operationId": name,
        "responses": {
            "200": {"description": "The reply.", "content": _json(reply)},
            "400": _error("The request's path is malformed."),
            "401": _error(NO_KEY),
            "403": _error("The key is not for this."),
            "404": _error("No such model."),
        },
    }


def _json(schema: type) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": REF.format(schema.__name__)}}}


def _events(schema: type) -> dict[str, Any]:
    """Of a stream the schema is that of one server-sent event: a part of the answer, its end, or
    the error that it ended with."""

    def data(inner: type) -> dict[str, Any]:
        reference = {"$ref": REF.format(inner.__name__)}
        return {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": reference,
        }

    part = {"type": "object", "required": ["data"], "properties": {"data": data(schema)}}
    end = {"type": "object", "required": ["data"], "properties": {"data": {"const": "[DONE]"}}}
    error = {
        "type": "object",
        "required": ["event", "data"],
        "properties": {"event": {"const": "error"}, "data": data(ErrorReply)},
    }
    ends = [] if schema is ResponseEvent else [end]
    return {"text/event-stream": {"schema": {"anyOf": [part, *ends, error]}}}


def _error(description: str) -> dict[str, Any]:
    return {"description": description, "content": _json(ErrorReply)}


if __name__ == "__main__":
    print(json.dumps(document(), indent=2, sort_keys=True))
