"""Which replica answers a model address: `chat`, `chat@production` or `chat:3`; with a LoRA adapter
of the model, `chat/legal` and so on.

The reconciler publishes an immutable snapshot; request handlers read it without a lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from serving.contract.errors import ApiError, model_failed, model_loading, model_not_found
from serving.runtime.replica import Replica, State

PRODUCTION = "production"

_ADDRESS = re.compile(
    r"(?P<name>[^:@/]+)(/(?P<adapter>[^:@/]+))?"
    r"(?::(?P<number>[1-9]\d{0,8})|@(?P<label>[^:@]+))?"
)


@dataclass(frozen=True)
class Target:
    """A version that is to be served, and the replica that serves it now, if any.

    `load` asks for it to be loaded; only `lazy` ones wait for that, and are worth waiting for.
    """

    name: str
    number: int
    created: datetime
    state: State
    replica: Replica | None
    load: Callable[[], None]
    lazy: bool = False
    adapters: frozenset[str] = frozenset()

    @property
    def tag(self) -> str:
        return f"{self.name}:{self.number}"


@dataclass(frozen=True)
class Route:
    """Where one request goes, and how the reply names it. `adapter` is the LoRA adapter it asks
    for, or empty."""

    target: Target
    replica: Replica
    label: str
    adapter: str = ""


@dataclass(frozen=True)
class Snapshot:
    """What is served, by model name."""

    targets: Mapping[str, Target] = field(default_factory=dict)

    def find(self, address: str) -> tuple[Target, str]:
        """The version and the adapter. Raises `ApiError` (404) for an address that names nothing
        served."""
        parts = _ADDRESS.fullmatch(address)
        target = self.targets.get(parts["name"]) if parts else None
        if parts is None or target is None:
            raise model_not_found(address)
        if parts["number"] is not None and int(parts["number"]) != target.number:
            raise model_not_found(address)
        if parts["label"] is not None and parts["label"] != PRODUCTION:
            raise model_not_found(address)
        if parts["adapter"] is not None and parts["adapter"] not in target.adapters:
            raise model_not_found(address)
        return target, parts["adapter"] or ""


class Router:
    """Holds the newest snapshot."""

    def __init__(self, patience: float) -> None:
        self.snapshot = Snapshot()
        self._patience = patience  # seconds a request waits for a lazy model
        self._published = asyncio.Event()

    def publish(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        published, self._published = self._published, asyncio.Event()
        published.set()

    async def route(self, address: str) -> Route:
        """Raises `ApiError`: 404 for an unknown address, 503 when nothing can answer it now."""
        target, adapter = self.snapshot.find(address)
        waiting = target.lazy and target.state != State.FAILED
        if target.replica is None and (waiting or target.state == State.UNLOADED):
            target.load()
            target = await self._loaded(address)
        if target.replica is None:
            raise self._unavailable(address, target.state)
        return Route(target, target.replica, PRODUCTION, adapter)

    async def _loaded(self, address: str) -> Target:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._patience):
                while (target := self.snapshot.find(address)[0]).replica is None:
                    if target.state == State.FAILED:
                        break
                    await self._published.wait()
        return self.snapshot.find(address)[0]

    @staticmethod
    def _unavailable(address: str, state: State) -> ApiError:
        return model_failed(address) if state == State.FAILED else model_loading(address)
