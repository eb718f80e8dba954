"""The four latencies: their names, and their values of a request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from loadtests.results import Sample


class Measure(NamedTuple):
    """`name` is its field of `Summary`, and of `Slo` where that limits it. Seconds."""

    name: str
    title: str
    of: Callable[[Sample], Sequence[float]]


def _known(value: float | None) -> Sequence[float]:
    return () if value is None else (value,)


TTFT = Measure("ttft", "Time to first token", lambda sample: _known(sample.ttft))
TPOT = Measure("tpot", "Time per output token", lambda sample: _known(sample.tpot))
ITL = Measure("itl", "Gap between tokens (ITL)", lambda sample: sample.gaps)
E2E = Measure("e2e", "End to end", lambda sample: (sample.latency,))
