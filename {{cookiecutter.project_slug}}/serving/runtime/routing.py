"""Which replica answers a model address: `chat` by traffic, `chat@canary` by label, `chat:3` by
version; with a LoRA adapter of the model, `chat/legal` and so on.

The reconciler publishes an immutable snapshot; request handlers read it without a lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from itertools import accumulate
from zlib import crc32

from serving.contract.errors import (
    ApiError,
    model_failed,
    model_loading,
    model_not_found,
    overloaded,
)
from serving.runtime.balancing import least_in_flight
from serving.runtime.queue import Line
from serving.runtime.replica import Replica, State
from serving.runtime.wanted import PRODUCTION
from serving.settings import Settings

_ADDRESS = re.compile(
    r"(?P<name>[^:@/]+)(/(?P<adapter>[^:@/]+))?"
    r"(?::(?P<number>[1-9]\d{0,8})|@(?P<label>[^:@]+))?"
)


Balance = Callable[[Sequence[Replica], Callable[[], str]], Replica]


@dataclass(frozen=True)
class Target:
    """A version that is to be served, and the replicas that serve it now.

    `load` asks for it to be loaded. Requests wait for it only if it is `awaited`: loaded when the
    first of them comes, or swapped in place. In the `line` they wait for a place on a replica.
    """

    name: str
    number: int
    created: datetime
    state: State
    replicas: tuple[Replica, ...]
    load: Callable[[], None]
    awaited: bool = False
    adapters: frozenset[str] = frozenset()
    balance: Balance = least_in_flight
    line: Line[Route] = field(default_factory=Line)

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
    def _lanes(self) -> tuple[list[int], list[str]]:
        """Where each label's part of the traffic ends, and the labels. Production comes last, so
        that a caller who is in a canary stays in it while its part grows."""
        labels = sorted(
            (label for label, weight in self.traffic.items() if weight),
            key=lambda label: (label == PRODUCTION, label),
        )
        ends = list(accumulate(self.traffic[label] for label in labels))
        return (ends, labels) if labels else ([1], [PRODUCTION])

    def choose(self, caller: str) -> tuple[Target, str]:
        """The version and the label that this caller's requests go to, always the same while the
        weights are; but production while that version cannot answer."""
        ends, labels = self._lanes
        if len(labels) == 1:
            label = labels[0]
        else:
            # A checksum spread by Fibonacci hashing (Knuth, TAOCP 3, 6.4): a hash of Python's own
            # would be another after a restart, and a cryptographic one takes longer than the rest.
            point = (crc32(caller.encode()) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF) >> 32
            label = labels[bisect_right(ends, point * ends[-1] >> 32)]
        target = self.targets[self.labels[label]]
        if target.replicas or label == PRODUCTION:
            return target, label
        return self.targets[self.labels[PRODUCTION]], PRODUCTION


@dataclass(slots=True)
class Route:
    """Where one request goes. `label` is the one that sent it there, empty when the request named
    a version; `adapter` the LoRA adapter it asks for, or empty. It waited `queued` seconds for its
    place; `freed` is told when it leaves it and others wait.

    To be entered around the request, before anything else is awaited: a replica is not stopped
    while it has requests, within limits.
    """

    target: Target
    replica: Replica
    label: str
    adapter: str = ""
    queued: float = 0.0
    freed: Callable[[Target], None] | None = None
    entered: bool = False

    def __enter__(self) -> None:
        if not self.entered:  # a place that was waited for is taken already
            self.entered = True
            self.replica.in_flight += 1

    def __exit__(self, *_: object) -> None:
        self.replica.in_flight -= 1
        if self.target.line.length and self.freed is not None:
            self.freed(self.target)


@dataclass(frozen=True)
class Snapshot:
    """What is served, by model name."""

    models: Mapping[str, ServedModel] = field(default_factory=dict)

    def find(self, address: str, caller: str = "") -> tuple[Target, str, str]:
        """The version, the label that led to it, and the adapter. Raises `ApiError` (404) for an
        address that names nothing served."""
        model = self.models.get(address)
        if model is not None:
            target, label = model.choose(caller)
            return target, label, ""
        parts = _ADDRESS.fullmatch(address)
        model = self.models.get(parts["name"]) if parts else None
        if parts is None or model is None:
            raise model_not_found(address)
        _, _, adapter, number, label = parts.groups("")
        if number:
            found = model.targets.get(int(number))
        elif label:
            found = model.targets.get(model.labels.get(label, 0))
        else:
            found, label = model.choose(caller)
        if found is None or (adapter and adapter not in found.adapters):
            raise model_not_found(address)
        return found, label, adapter


class Router:
    """Holds the newest snapshot."""

    def __init__(self, settings: Settings) -> None:
        self.snapshot = Snapshot()
        self._settings = settings
        self._waiting = 0  # requests, for a version to load
        self._published = asyncio.Event()

    def publish(self, snapshot: Snapshot) -> None:
        before, self.snapshot = self.snapshot, snapshot
        for model in before.models.values():
            for target in model.targets.values():
                if target.line.length:
                    self._seat(target)
        published, self._published = self._published, asyncio.Event()
        published.set()

    async def route(
        self,
        address: str,
        caller: str = "",
        *,
        asker: str = "",
        opening: Callable[[], str] = str,
        but_not: Replica | None = None,
    ) -> Route:
        """For a request of `caller`, which any string may name: one caller's requests keep to one
        side of a canary. Where requests wait, each `asker` has turns; it is the caller unless it
        is given. `opening` tells how its conversation begins; `but_not` is a replica that
        just failed it.

        Raises `ApiError`: 404 for an unknown address, 503 when nothing can answer it now.
        """
        while True:
            target, label, adapter = self.snapshot.find(address, caller)
            if not target.replicas and target.awaited and target.state != State.FAILED:
                target.load()
                target = await self._loaded(address, caller)
            replicas = target.replicas
            if but_not is not None:  # it has waited once, and does not again
                replicas = tuple(r for r in replicas if r is not but_not)
            if not replicas:
                raise self._unavailable(address, target.state)
            replica = replicas[0] if len(replicas) == 1 else target.balance(replicas, opening)
            full = target.line.length or replica.in_flight >= self._settings.limits.in_flight
            if not full or but_not is not None:
                return Route(target, replica, label, adapter, freed=self._seat)
            route = await self._place(target, asker or caller, opening)
            if route is not None:
                route.label, route.adapter = label, adapter
                return route

    async def _place(self, target: Target, asker: str, opening: Callable[[], str]) -> Route | None:
        """Entered already; None when the version is served no more, so that another may be."""
        most = self._settings.limits.queue * len(target.replicas)
        line, began = target.line, time.perf_counter()
        turn = line.join(asker, opening, most)
        self._seat(target)
        route: Route | None = None
        try:
            async with asyncio.timeout(self._settings.timeouts.queue):
                route = await turn.place
        except TimeoutError:
            self._forgo(turn.place)
            raise overloaded(
                f"No place came free in {self._settings.timeouts.queue:g} s; ask again."
            ) from None
        except asyncio.CancelledError:
            self._forgo(turn.place)
            raise
        finally:
            line.leave(asker, turn)
        if route is not None:
            route.queued = time.perf_counter() - began
        return route

    def _seat(self, target: Target) -> None:
        """Gives free places to those who wait in the target's line."""
        model = self.snapshot.models.get(target.name)
        now = model.targets.get(target.number) if model is not None else None
        if now is None or not now.replicas or now.line is not target.line:
            target.line.dissolve()
            return
        while now.line.length:
            free = [r for r in now.replicas if r.in_flight < self._settings.limits.in_flight]
            if not free:
                return
            turn = now.line.next()
            if not turn.place.done():  # else its time was over just now
                route = Route(now, now.balance(free, turn.opening), "", freed=self._seat)
                route.__enter__()
                turn.place.set_result(route)

    @staticmethod
    def _forgo(place: asyncio.Future[Route | None]) -> None:
        """Somebody else may have the place that came too late."""
        if place.done() and not place.cancelled() and place.exception() is None:
            route = place.result()
            if route is not None:
                route.__exit__()

    async def _loaded(self, address: str, caller: str) -> Target:
        if self._waiting >= self._settings.limits.waiting:
            raise overloaded("Too many requests wait for a model to load; ask again in a moment.")
        self._waiting += 1
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.timeouts.lazy):
                    while not (target := self.snapshot.find(address, caller)[0]).replicas:
                        if target.state == State.FAILED:
                            break
                        await self._published.wait()
        finally:
            self._waiting -= 1
        return self.snapshot.find(address, caller)[0]

    @staticmethod
    def _unavailable(address: str, state: State) -> ApiError:
        return model_failed(address) if state == State.FAILED else model_loading(address)
