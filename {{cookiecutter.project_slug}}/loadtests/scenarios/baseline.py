"""The same work to the bare engine and through the service, in turn: the gateway's cost, with its
interval.

The two are asked in pairs of stages that offer the same requests at the same moments, first the one
and then the other, and in the next pair the other way about: what drifts hits both.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from loadtests.bare import NAME, behind
from loadtests.figures import Interval, bootstrap, mean
from loadtests.results import StageResult, Summary
from loadtests.session import Session
from loadtests.words import seconds

SECONDS, USERS = 60.0, 1


def run(session: Session) -> None:
    options = session.options
    session.prepare(
        lambda target: behind(session.service, session.model, options.engine_url, target)
    )
    session.warm_up()
    length = (options.seconds or SECONDS) / options.rounds / 2
    pairs: list[tuple[StageResult, StageResult]] = []
    for number in range(options.rounds):
        sides = {}
        for target in ("", NAME) if number % 2 else (NAME, ""):
            name = f"{number + 1}: {target or 'service'}"
            stage = options.stage(name, length, users=USERS, target=target)
            sides[target] = session.run(stage, work=1000 + number)
        pairs.append((sides[""], sides[NAME]))
    session.judge_whole(session.of(*(result for pair in pairs for result in pair)))
    rows = [row for name, measure in MEASURES if (row := _row(name, measure, pairs))]
    session.table(
        f"The service beside its bare engine, in {len(pairs)} pairs (95 % intervals)",
        ["", "engine", "service", "added by the gateway", "of the engine's"],
        rows,
    )


def _p50(name: str) -> Callable[[Summary], float]:
    def measure(summary: Summary) -> float:
        spread = getattr(summary, name)
        return spread.p50 if spread else math.nan

    return measure


MEASURES: tuple[tuple[str, Callable[[Summary], float]], ...] = (
    ("TTFT p50", _p50("ttft")),
    ("TPOT p50", _p50("tpot")),
    ("ITL p50", _p50("itl")),
    ("end to end p50", _p50("e2e")),
)


def _row(
    name: str,
    measure: Callable[[Summary], float],
    pairs: list[tuple[StageResult, StageResult]],
) -> list[str]:
    values = np.asarray([[measure(side.summary) for side in pair] for pair in pairs])
    values = values[~np.isnan(values).any(axis=1)]
    if len(values) < 2:
        return []
    service, engine = (float(side.mean()) for side in values.T)
    added = bootstrap(mean, list(values[:, 0] - values[:, 1]))
    return [name, seconds(engine), seconds(service), _added(added), f"{added.value / engine:+.1%}"]


def _added(added: Interval) -> str:
    return f"{seconds(added.value)} ({seconds(added.low)} to {seconds(added.high)})"
