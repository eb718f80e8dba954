"""The scenarios, by name. A new one is one file with a `run(session)`, and a line here."""

from __future__ import annotations

from collections.abc import Callable

from loadtests.scenarios import (
    baseline,
    canary,
    chaos,
    cold_start,
    load,
    soak,
    spike,
    swap,
    sweep,
)
from loadtests.session import Session

SCENARIOS: dict[str, Callable[[Session], None]] = {
    "sweep": sweep.run,
    "load": load.run,
    "swap": swap.run,
    "canary": canary.run,
    "spike": spike.run,
    "soak": soak.run,
    "cold_start": cold_start.run,
    "chaos": chaos.run,
    "baseline": baseline.run,
}
