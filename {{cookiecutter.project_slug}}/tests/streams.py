"""Many clients at once, who write down what they were told and by which version."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx


@dataclass
class Told:
    """One stream: when it was asked for and when its head came, which versions said something, and
    how it ended."""

    asked: float = field(default_factory=time.monotonic)
    begun: float = float("inf")
    status: int = 0
    versions: set[str] = field(default_factory=set)
    text: str = ""
    tokens: int = 0
    done: bool = False
    error: str = ""

    @property
    def version(self) -> str:
        """The only one that answered."""
        (version,) = self.versions
        return version


@dataclass
class Crowd:
    """Streams of a service at `url`: `body` is what each asks for."""

    url: str
    body: dict[str, Any]
    told: list[Told] = field(default_factory=list)

    @contextlib.asynccontextmanager
    async def asking(self, *, always: int, per_second: float) -> AsyncIterator[None]:
        """Keeps `always` streams running, each followed by the next, and begins `per_second` more.
        At the end no new ones are begun and all get to their own end."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=256)
        async with httpx.AsyncClient(base_url=self.url, limits=limits, timeout=60) as client:
            ends = asyncio.Event()
            async with asyncio.TaskGroup() as tasks:
                for _ in range(always):
                    tasks.create_task(self._again_and_again(client, ends))
                tasks.create_task(self._arrivals(client, ends, per_second, tasks))
                try:
                    yield
                finally:
                    ends.set()

    async def _again_and_again(self, client: httpx.AsyncClient, ends: asyncio.Event) -> None:
        while not ends.is_set():
            await self.ask(client)

    async def _arrivals(
        self,
        client: httpx.AsyncClient,
        ends: asyncio.Event,
        per_second: float,
        tasks: asyncio.TaskGroup,
    ) -> None:
        while not ends.is_set():
            tasks.create_task(self.ask(client))
            await asyncio.sleep(1 / per_second)

    async def ask(self, client: httpx.AsyncClient) -> None:
        told = Told()
        self.told.append(told)
        body = {**self.body, "stream": True, "stream_options": {"include_usage": True}}
        try:
            async with client.stream("POST", "/v1/chat/completions", json=body) as reply:
                told.status, told.begun = reply.status_code, time.monotonic()
                told.versions.add(reply.headers.get("x-served-version", ""))
                async for line in reply.aiter_lines():
                    self._note(told, line)
        except httpx.HTTPError as error:
            told.error = repr(error)

    @staticmethod
    def _note(told: Told, line: str) -> None:
        if line.startswith("event: error"):
            told.error = "an error event"
        if not line.startswith("data: "):
            return
        if line == "data: [DONE]":
            told.done = True
            return
        chunk = json.loads(line[6:])
        if "choices" not in chunk:
            told.error = line
            return
        told.versions.add(chunk["system_fingerprint"])
        for choice in chunk["choices"]:
            told.text += choice["delta"].get("content") or ""
        if chunk.get("usage"):
            told.tokens = chunk["usage"]["completion_tokens"]
