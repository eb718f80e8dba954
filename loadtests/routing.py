"""What it costs to find the replica for a request: CPU time of the gateway's own routing.

Run with the baked project's interpreter, which has its package: `make bench` does.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kept import kept
from serving.runtime.balancing import by_prefix
from serving.runtime.replica import State
from serving.runtime.routing import Router, ServedModel, Snapshot, Target
from serving.settings import Settings

SETTINGS = Settings.model_validate(
    {
        "service": {"name": "bench"},
        "engine": {"name": "vllm", "max_model_len": 256},
        "models": {"chat": {}},
    }
)
REQUESTS = 20_000
ROUNDS = 15


@dataclass(eq=False)
class Busy:
    """A replica as far as routing looks at it."""

    index: int
    in_flight: int = 8


def target(number: int, replicas: int, **more: Any) -> Target:
    made: Any = tuple(Busy(i) for i in range(replicas))
    return Target("chat", number, datetime.now(UTC), State.READY, made, lambda: None, **more)


def router(replicas: int = 1, traffic: dict[str, int] | None = None, **more: Any) -> Router:
    targets = {3: target(3, replicas, **more), 4: target(4, replicas, **more)}
    model = ServedModel(targets, {"production": 3, "canary": 4}, traffic or {})
    made = Router(SETTINGS)
    made.publish(Snapshot({"chat": model}))
    return made


async def routed(router: Router, address: str) -> None:
    for caller in CALLERS:
        route = await router.route(address, caller, opening=opening)
        with route:
            pass


async def nothing() -> None:
    """The loop and the call that each of the others has as well."""
    for caller in CALLERS:
        await _same(caller)


async def _same(caller: str) -> str:
    return caller


CALLERS = [f"caller-{n % 1000}" for n in range(REQUESTS)]


def opening() -> str:
    return "You are kind." * 100


CASES: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
    "nothing but the loop": nothing,
    "production only": lambda: routed(router(), "chat"),
    "a canary, sticky": lambda: routed(router(traffic={"production": 90, "canary": 10}), "chat"),
    "by label": lambda: routed(router(), "chat@canary"),
    "by version": lambda: routed(router(), "chat:4"),
    "four replicas, the idlest": lambda: routed(router(4), "chat"),
    "four replicas, by prefix": lambda: routed(router(4, balance=by_prefix), "chat"),
}


def main() -> None:
    with kept("routing"):
        measure()


def measure() -> None:
    spent: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(ROUNDS):  # by turns, so that a noisy moment is shared
        for name, case in CASES.items():
            began = time.process_time()
            asyncio.run(case())
            spent[name].append((time.process_time() - began) / REQUESTS * 1e6)
    loop = statistics.median(spent["nothing but the loop"])
    print(f"CPU microseconds a request, median of {ROUNDS} rounds of {REQUESTS}, without the loop:")
    for name, seconds in spent.items():
        print(f"  {name:28} {statistics.median(seconds) - loop:6.2f}")


if __name__ == "__main__":
    main()
