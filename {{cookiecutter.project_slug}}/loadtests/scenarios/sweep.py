"""Finds the knee: the highest rate at which the wanted share of requests meets the SLO.

The rate is doubled until a stage misses; what is left of the stages halves the gap between the
highest rate that held and the lowest that did not.
"""

from __future__ import annotations

import math

from loadtests.options import Options
from loadtests.results import Knee, Stage, StageResult
from loadtests.session import Session

SECONDS, FIRST_RATE = 60.0, 1.0
#: Rates nearer to each other than this are not told apart by a stage of seconds.
NEAR = 1.05


def run(session: Session) -> None:
    options = session.options
    session.prepare()
    session.warm_up()
    seconds = (options.seconds or SECONDS) / options.steps
    rate = options.rate or FIRST_RATE
    held, missed = 0.0, math.inf
    results: list[StageResult] = []
    for _ in range(options.steps):
        result = session.run(_stage(options, seconds, rate))
        results.append(result)
        if holds(result, options.slo.share):
            held = max(held, rate)
        else:
            missed = min(missed, rate)
        if held and missed / held < NEAR:
            break
        rate = following(rate, held, missed)
    session.knee = Knee(held, 0.0 if math.isinf(missed) else missed)
    _warn_of_few(session, results, held)
    _judge(session, results)


def _stage(options: Options, seconds: float, rate: float) -> Stage:
    name = f"{rate:.3g}/s"
    return Stage(name, seconds, options.arrivals, rate=rate, burstiness=options.burstiness)


def holds(result: StageResult, share: float) -> bool:
    """A stage that offered nothing shows nothing."""
    return result.summary.requests > 0 and result.summary.good >= share


def following(rate: float, held: float, missed: float) -> float:
    """The rate to try after `rate`."""
    if math.isinf(missed):
        return rate * 2
    return math.sqrt(held * missed) if held else rate / 2


def _warn_of_few(session: Session, results: list[StageResult], held: float) -> None:
    """Of ten good requests nobody can tell that 99 of a hundred are."""
    wanted = math.ceil(1 / max(1 - session.options.slo.share, 0.001))
    seen = max((r.summary.requests for r in results if r.stage.rate == held), default=wanted)
    if seen < wanted:
        session.warn(
            f"The knee rests on {seen} requests; {session.options.slo.share:.4g} of them being "
            f"good takes {wanted} to show: give it --seconds or fewer --steps."
        )


def _judge(session: Session, results: list[StageResult]) -> None:
    knee, wanted = session.knee, session.options.at_least
    assert knee is not None
    told = f"{knee.rate:.3g} requests a second met the SLO"
    told += f", {knee.missed_at:.3g} did not." if knee.missed_at else "; no rate tried missed it."
    if wanted is not None:
        session.judge("knee", knee.rate >= wanted, f"{told} At least {wanted:g} were wanted.")
    else:
        session.judge("knee", knee.rate > 0, told)
    truncated = sum(result.summary.truncated for result in results)
    session.judge(
        "nothing truncated", truncated == 0, f"{truncated} streams ended as if they were complete."
    )
