"""`POST /v1/embeddings`: texts in, one vector each out."""

from __future__ import annotations

import base64
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

import msgspec
import numpy
from pydantic import (
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
)

from serving.contract.errors import engine_error
from serving.contract.events import EngineEvent
from serving.contract.sampling import Request, whole

#: OpenAI's own bound.
MAX_INPUTS = 2048
Text = Annotated[str, Field(min_length=1)]
Token = Annotated[int, Field(ge=0, strict=True)]
Tokens = Annotated[list[Token], Field(min_length=1, fail_fast=True)]
Texts = Annotated[list[Text], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]
TokenLists = Annotated[list[Tokens], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]


def _kind(given: Any) -> str:
    """Told by the first element, so that an error is about what the client meant."""
    if not isinstance(given, list):
        return "Text"
    first = given[0] if given else ""
    if isinstance(first, list):
        return "TokenLists"
    return "Tokens" if isinstance(first, int | float) else "Texts"


class EmbeddingRequest(Request):
    """`input` is one text, several, or the same as token ids. `dimensions` cuts the vectors, which
    only models trained for that (Matryoshka representations) survive."""

    TASK: ClassVar[str] = "embeddings"
    INPUT_FIELD: ClassVar[str] = "input"
    OPTIONAL: ClassVar[dict[str, Any]] = {"dimensions": None}

    input: Annotated[
        Annotated[Text, Tag("Text")]
        | Annotated[Texts, Tag("Texts")]
        | Annotated[Tokens, Tag("Tokens")]
        | Annotated[TokenLists, Tag("TokenLists")],
        Discriminator(_kind),
    ]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, strict=True)] | None = None

    @field_validator("input", mode="wrap")
    @classmethod
    def _whole_tokens(cls, given: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(given)
        except ValidationError:
            if not isinstance(given, list):
                raise
            read = [list(map(whole, row)) if isinstance(row, list) else whole(row) for row in given]
            return handler(read)

    @property
    def stream(self) -> bool:
        return False

    @cached_property
    def inputs(self) -> list[str] | list[list[int]]:
        """One entry for each vector that is asked for."""
        if isinstance(self.input, str):
            return [self.input]
        if isinstance(self.input[0], int):
            return [self.input]
        return self.input

    @cached_property
    def characters(self) -> int:
        return sum(map(len, self.inputs))


class Embedding(msgspec.Struct):
    """A vector as numbers, or as base64 of little-endian float32."""

    index: int
    embedding: list[float] | str
    object: Literal["embedding"] = "embedding"


class EmbeddingUsage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct):
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
    object: Literal["list"] = "list"


class EmbeddingReply:
    """Collects the vectors of one request."""

    def __init__(self, request: EmbeddingRequest, fingerprint: str) -> None:
        self._request = request
        self._events: list[EngineEvent] = []

    def feed(self, events: list[EngineEvent]) -> bytes:
        self._events += events
        return b""

    def end(self) -> bytes:
        raise NotImplementedError("embeddings are not streamed")

    def whole(self) -> bytes:
        """The whole reply as JSON. Raises `ApiError` when the engine left something out."""
        vectors = [vector for event in self._events for vector in event.vectors]
        usage = next((event.usage for event in self._events if event.usage), None)
        if usage is None or len(vectors) != len(self._request.inputs):
            raise engine_error()
        data = [Embedding(index, self._written(vector)) for index, vector in enumerate(vectors)]
        spent = EmbeddingUsage(usage.prompt_tokens, usage.prompt_tokens)
        return msgspec.json.encode(EmbeddingList(data, self._request.model, spent))

    def _written(self, vector: bytes) -> list[float] | str:
        # Matryoshka representations are cut to their first components, at length 1 again
        # (Kusupati et al. 2022, https://arxiv.org/abs/2205.13147). All are of length 1, as OpenAI's
        # are, which engines that compute in 16 bits only nearly keep to.
        numbers = numpy.frombuffer(vector, "<f4")[: self._request.dimensions]
        numbers = numbers / max(float(numpy.linalg.norm(numbers)), 1e-12)
        if self._request.encoding_format == "base64":
            return base64.b64encode(numbers.astype("<f4").tobytes()).decode()
        return [float(number) for number in numbers]
