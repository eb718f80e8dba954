"""The requests a replica answers before its first client, and the project's own warm-up code."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from serving.contract.chat import ChatRequest
from serving.contract.completions import CompletionRequest
from serving.contract.embeddings import EmbeddingRequest
from serving.contract.errors import ApiError
from serving.contract.events import EngineEvent
from serving.contract.sampling import Request
from serving.engines.base import Engine
from serving.runtime.stream import EngineStream, read_all
from serving.runtime.wire import EngineGone, Wire
from serving.settings import Warmup


class WarmupFailed(Exception):
    """The replica may not serve. The message says which part of its warm-up failed, and how."""


@dataclass(frozen=True)
class WarmupClient:
    """What `warmup_hooks.py` gets: a way to ask the replica that is warming up, and only that one.

    `version` is its tag, `chat:3`; `patience` the seconds of silence it may take.
    """

    version: str
    engine: Engine
    wire: Wire
    patience: float

    async def chat(
        self, prompt: str, *, system: str | None = None, max_tokens: int = 16, **fields: Any
    ) -> str:
        """One chat turn, with any other field of the API; returns the answer's text."""
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": prompt})
        body = {"model": self.version, "messages": messages, "max_tokens": max_tokens, **fields}
        return await self._run(ChatRequest.model_validate(body))

    async def complete(self, prompt: str, *, max_tokens: int = 16) -> str:
        """One text completion; returns the continuation."""
        request = CompletionRequest.model_validate(
            {"model": self.version, "prompt": prompt, "max_tokens": max_tokens}
        )
        return await self._run(request)

    async def embed(self, text: str) -> int:
        """One embedding, for a model imported with `--task embed`; returns its dimensions."""
        request = EmbeddingRequest(model=self.version, input=text)
        events = await self._events(request)
        return sum(len(vector) // 4 for event in events for vector in event.vectors)

    async def _run(self, request: Request) -> str:
        events = await self._events(request)
        return "".join(delta.text for event in events for delta in event.deltas)

    async def _events(self, request: Request) -> list[EngineEvent]:
        call = self.engine.call(request)
        stream = EngineStream(self.engine, self.wire, request, call)
        return await read_all(stream, self.patience)


Hook = Callable[[WarmupClient], Awaitable[None]]


async def warm_up(client: WarmupClient, settings: Warmup, hook: Hook | None) -> None:
    """Prefixes first, then the rounds of prompts, log probabilities, and the project's own hook.

    Raises `WarmupFailed`.
    """
    try:
        for prefix in settings.prefixes:
            await client.chat(settings.prompts[0] if settings.prompts else "Hello!", system=prefix)
        for _ in range(settings.rounds):
            await _round(client, settings)
        compiles = client.engine.compiles_logprobs and client.engine.task == "generate"
        if settings.prompts and settings.logprobs and compiles:
            await client.chat(settings.prompts[0], max_tokens=2, logprobs=True, top_logprobs=1)
    except (ApiError, EngineGone) as error:
        raise WarmupFailed(f"a warm-up request failed: {error}") from None
    if hook is not None:
        try:
            await hook(client)
        except Exception as error:
            raise WarmupFailed(f"warmup_hooks.py raised {type(error).__name__}: {error}") from error


async def _round(client: WarmupClient, settings: Warmup) -> None:
    turn = asyncio.Semaphore(settings.concurrency)

    async def ask(prompt: str) -> None:
        async with turn:
            if client.engine.task == "embed":
                await client.embed(prompt)
            else:
                await client.chat(prompt, max_tokens=settings.max_tokens)

    # As many of each as run together: a batch of one size warms nothing of another size.
    await asyncio.gather(*map(ask, settings.prompts * settings.concurrency))


def load_hook(path: Path) -> Hook | None:
    """`warm_up` of the project's warmup_hooks.py, if it is there. Raises `WarmupFailed`."""
    if not path.is_file():
        return None
    spec = importlib.util.spec_from_file_location("warmup_hooks", path)
    assert spec is not None and spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise WarmupFailed(f"{path.name} cannot be imported: {error}") from error
    hook: Hook | None = getattr(module, "warm_up", None)
    if hook is not None and not asyncio.iscoroutinefunction(hook):
        raise WarmupFailed(f"{path.name}: warm_up must be `async def warm_up(client)`.")
    return hook
