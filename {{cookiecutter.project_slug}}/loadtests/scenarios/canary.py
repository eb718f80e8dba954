"""Production and a canary side by side under the same load, and whether the canary is worse."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from loadtests.figures import Interval, difference, mean, median, p95, share
from loadtests.results import Sample
from loadtests.scenarios.versions import Production, other_version
from loadtests.session import Session
from loadtests.words import seconds

SECONDS, USERS = 60.0, 4
LABELS = ("production", "canary")
Statistic = Callable[[NDArray[np.float64]], float]


def run(session: Session) -> None:
    options, model, service = session.options, session.model, session.service
    session.prepare()
    with Production(session) as production:
        new = other_version(session, production.version)
        label, traffic = f"/models/{model}/labels/canary", f"/models/{model}/traffic"
        service.admin("PUT", label, {"version": new, "load": True})
        session.note("canary", f"{model}@canary is {model}:{new}, with {options.percent} %.")
        try:
            weights = {"production": 100 - options.percent, "canary": options.percent}
            service.admin("PUT", traffic, {"weights": weights})
            session.warm_up()
            stage = options.stage("canary", options.seconds or SECONDS, users=USERS)
            result = session.run(stage)
        finally:
            service.admin("PUT", traffic, {"weights": {}})
            service.admin("DELETE", label)
    samples = session.of(result)
    sides = [[sample for sample in samples if sample.label == name] for name in LABELS]
    session.judge_whole(samples)
    _compare(session, *sides)
    session.judge_slo(result)


def _compare(session: Session, production: list[Sample], canary: list[Sample]) -> None:
    if min(len(production), len(canary)) < 2:
        session.judge("canary", False, "One side got no answers to compare: run it longer.")
        return
    rows, worse = [], []
    for name, measure, statistic in MEASURES:
        one, other = measure(production), measure(canary)
        if min(len(one), len(other)) < 2:
            continue
        base = statistic(np.asarray(one))
        change = difference(statistic, other, one, session.options.seed)
        rows.append(
            [
                name,
                seconds(base),
                seconds(base + change.value),
                _signed(change),
                _percent(change, base),
            ]
        )
        if change.low > base * session.options.tolerance:
            worse.append(name)
    rows.append(_failures(production, canary))
    session.table(
        "Canary beside production (95 % intervals)",
        ["", "production", "canary", "difference", "of production"],
        rows,
    )
    session.judge(
        "canary is not worse",
        not worse,
        f"Beyond chance and {session.options.tolerance:.0%} worse: "
        f"{', '.join(worse) or 'nothing'}.",
    )


def _ttft(samples: list[Sample]) -> list[float]:
    return [sample.ttft for sample in samples if sample.ttft is not None]


def _tpot(samples: list[Sample]) -> list[float]:
    return [tpot for sample in samples if (tpot := sample.tpot) is not None]


def _latency(samples: list[Sample]) -> list[float]:
    return [sample.latency for sample in samples if sample.outcome == "whole"]


MEASURES: tuple[tuple[str, Callable[[list[Sample]], list[float]], Statistic], ...] = (
    ("TTFT p50", _ttft, median),
    ("TTFT p95", _ttft, p95),
    ("TPOT p50", _tpot, median),
    ("TPOT mean", _tpot, mean),
    ("end to end p50", _latency, median),
    ("end to end p95", _latency, p95),
)


def _failures(production: list[Sample], canary: list[Sample]) -> list[str]:
    shares = [
        share(sum(sample.outcome != "whole" for sample in side), len(side))
        for side in (production, canary)
    ]
    return ["not whole", *(f"{s.value:.2%} ({s.low:.2%} to {s.high:.2%})" for s in shares), "", ""]


def _signed(change: Interval) -> str:
    value, low, high = (f"{part * 1000:+.3g}" for part in change)
    return f"{value} ms ({low} to {high})"


def _percent(change: Interval, base: float) -> str:
    return f"{change.value / base:+.1%} ({change.low / base:+.1%} to {change.high / base:+.1%})"
