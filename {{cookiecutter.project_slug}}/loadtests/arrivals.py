"""When requests are due: seeded arrivals of an open loop, the same in every run of a seed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from loadtests.results import Stage


def schedule(stage: Stage, seed: tuple[int, ...]) -> NDArray[np.float64]:
    """Seconds after the stage's beginning, ascending, shape (arrivals,).

    Arrivals of rate 1 are made first and then moved to where the stage's cumulated rate reaches
    them (Çinlar's inversion), so that a ramp keeps the nature of its arrivals.
    """
    start = stage.rate if stage.ramp_from is None else stage.ramp_from
    expected = (start + stage.rate) / 2 * stage.seconds
    due = _unit_arrivals(stage, expected, np.random.default_rng(seed))
    growth = (stage.rate - start) / stage.seconds
    if abs(growth) < 1e-12:
        return due / stage.rate
    # Cumulated rate: start * t + growth * t**2 / 2, solved for t without cancellation.
    root = np.sqrt(np.maximum(start * start + 2 * growth * due, 0.0))
    # The first arrival of a ramp from nothing is due at 0, not at 0 / 0.
    return np.divide(2 * due, start + root, out=np.zeros_like(due), where=due > 0)


def _unit_arrivals(stage: Stage, until: float, rng: np.random.Generator) -> NDArray[np.float64]:
    if stage.arrivals == "constant":
        return np.arange(0.0, until)
    shape = stage.burstiness if stage.arrivals == "gamma" else 1.0
    due: NDArray[np.float64] = np.empty(0)
    while not len(due) or due[-1] < until:
        gaps = rng.gamma(shape, 1 / shape, max(16, int(until * 1.1)))
        due = np.concatenate([due, np.cumsum(gaps) + (due[-1] if len(due) else 0.0)])
    return due[due < until]
