"""Which replica answers a model address: `chat` by traffic, `chat@canary` by label, `chat:3` by
version; with a LoRA adapter of the model, `chat/legal` and so on.

The reconciler publishes an immutable snapshot; request handlers read it without a lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from hashlib import blake2b

from serving.contract.errors import ApiError, model_failed, model_loading, model_not_found
from serving.runtime.balancing import least_in_flight
from serving.runtime.replica import Replica, State
from serving.runtime.wanted import PRODUCTION

_ADDRESS = re.compile(
    r"(?P<name>[^:@/]+)(/(?P<adapter>[^:@/]+))?"
    r"(?::(?P<number>[1-9]\d{0,8})|@(?P<label>[^:@]+))?"
)


Balance = Callable[[Sequence[Replica], Callable[[], str]], Replica]


@dataclass(frozen=True)
class Target:
    """A version that is to be served, and the replicas that serve it now.

    `load` asks for it to be loaded; only `lazy` ones wait for that, and are worth waiting for.
    """

    name: str
    number: int
    created: datetime
    state: State
    replicas: tuple[Replica, ...]
    load: Callable[[], None]
    lazy: bool = False
    adapters: frozenset[str] = frozenset()
    balance: Balance = least_in_flight

    @property
    def tag(self) -> str:
        return f"{self.name}:{self.number}"


@dataclass(frozen=True)
class ServedModel:
    """The versions under one model name, which of them each label means now, the relative weights
    of labels, and the percentage of requests that `shadow` gets a copy of. `production` is always
    among the labels."""

    targets: Mapping[int, Target]
    labels: Mapping[str, int]
    traffic: Mapping[str, int] = field(default_factory=dict)
    shadow: float = 0

    @cached_property
    def _lanes(self) -> list[tuple[int, str]]:
        """Labels with the ends of their parts of the traffic. Production comes last, so that a
        caller who is in a canary stays in it while its part grows."""
        lanes, end = [], 0
        for label in sorted(self.traffic, key=lambda label: (label == PRODUCTION, label)):
            if self.traffic[label]:
                end += self.traffic[label]
                lanes.append((end, label))
        return lanes or [(1, PRODUCTION)]

    def label_for(self, caller: str) -> str:
        """The label that this caller's requests go to, always the same while the weights are; but
        `production` while that label's version cannot answer."""
        lanes = self._lanes
        if len(lanes) == 1:
            label = lanes[0][1]
        else:
            digest = blake2b(caller.encode(), digest_size=8).digest()
            point = int.from_bytes(digest) % lanes[-1][0]
            label = next(label for end, label in lanes if point < end)
        return label if self.targets[self.labels[label]].replicas else PRODUCTION


@dataclass(frozen=True)
class Route:
    """Where one request goes. `label` is the one that sent it there, empty when the request named
    a version; `adapter` the LoRA adapter it asks for, or empty."""

    target: Target
    replica: Replica
    label: str
    adapter: str = ""

    @contextlib.contextmanager
    def lease(self) -> Iterator[None]:
        """Around the request: a replica is not stopped while it is leased, within limits. To be
        entered before anything else is awaited."""
        self.replica.in_flight += 1
        try:
            yield
        finally:
            self.replica.in_flight -= 1


@dataclass(frozen=True)
class Snapshot:
    """What is served, by model name."""

    models: Mapping[str, ServedModel] = field(default_factory=dict)

    def find(self, address: str, caller: str = "") -> tuple[Target, str, str]:
        """The version, the label that led to it, and the adapter. Raises `ApiError` (404) for an
        address that names nothing served."""
        model = self.models.get(address)
        if model is not None:
            label = model.label_for(caller)
            return model.targets[model.labels[label]], label, ""
        parts = _ADDRESS.fullmatch(address)
        model = self.models.get(parts["name"]) if parts else None
        if parts is None or model is None:
            raise model_not_found(address)
        number, label = parts["number"], parts["label"]
        if number is None:
            label = label or model.label_for(caller)
            target = model.targets.get(model.labels.get(label, 0))
        else:
            label = ""
            target = model.targets.get(int(number))
        adapter = parts["adapter"] or ""
        if target is None or (adapter and adapter not in target.adapters):
            raise model_not_found(address)
        return target, label, adapter


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

    async def route(
        self,
        address: str,
        caller: str = "",
        *,
        opening: Callable[[], str] = str,
        but_not: Replica | None = None,
    ) -> Route:
        """For a request of `caller`, which any string may name: one caller's requests keep to one
        side of a canary. `opening` tells how its conversation begins; `but_not` is a replica that
        just failed it.

        Raises `ApiError`: 404 for an unknown address, 503 when nothing can answer it now.
        """
        target, label, adapter = self.snapshot.find(address, caller)
        if not target.replicas and target.lazy and target.state != State.FAILED:
            target.load()
            target = await self._loaded(address, caller)
        replicas = [r for r in target.replicas if r is not but_not] if but_not else target.replicas
        if not replicas:
            raise self._unavailable(address, target.state)
        replica = replicas[0] if len(replicas) == 1 else target.balance(replicas, opening)
        return Route(target, replica, label, adapter)

    async def _loaded(self, address: str, caller: str) -> Target:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._patience):
                while not (target := self.snapshot.find(address, caller)[0]).replicas:
                    if target.state == State.FAILED:
                        break
                    await self._published.wait()
        return self.snapshot.find(address, caller)[0]

    @staticmethod
    def _unavailable(address: str, state: State) -> ApiError:
        return model_failed(address) if state == State.FAILED else model_loading(address)
