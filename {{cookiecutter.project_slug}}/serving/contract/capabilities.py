"""The words in which an engine says what it can do, and a refusal what was asked in vain."""

from __future__ import annotations

from serving.contract.chat import ChatRequest
from serving.contract.completions import CompletionRequest
from serving.contract.embeddings import EmbeddingRequest

#: What a model that generates text can be asked for: kinds of request, then optional fields.
GENERATION = frozenset(
    {ChatRequest.TASK, CompletionRequest.TASK, *ChatRequest.OPTIONAL, *CompletionRequest.OPTIONAL}
    | {"image_url"}
)
#: What a model imported with `--task embed` can be asked for.
EMBEDDING = frozenset({EmbeddingRequest.TASK, *EmbeddingRequest.OPTIONAL})
CAPABILITIES = GENERATION | EMBEDDING
