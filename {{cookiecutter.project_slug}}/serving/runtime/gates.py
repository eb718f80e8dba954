"""Whether a canary may go on: its answers beside production's, against the limits of its rollout.

A step ends with a plain comparison once its time is over. Before that, a canary is given up only
when chance cannot explain how it does, however few its answers are: nobody must wait ten minutes
for a version that fails every request, and none is lost for one bad answer.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from serving.runtime.outcome import Outcome
from serving.runtime.wanted import Rollout

#: Times to first token that are kept of each side: the newest.
KEPT = 4096
#: The probability under which chance is ruled out. It is asked every second, for minutes.
CHANCE = 1e-6


@dataclass
class Answers:
    """What one side has answered since the step began; times in seconds."""

    count: int = 0
    failed: int = 0
    ttfts: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))

    def note(self, outcome: Outcome) -> None:
        self.count += 1
        self.failed += outcome.failed
        if outcome.ttft is not None:
            self.ttfts.append(outcome.ttft)

    @property
    def error_rate(self) -> float:
        return self.failed / self.count if self.count else 0.0

    @property
    def ttft_p95(self) -> float | None:
        """By the nearest rank."""
        return sorted(self.ttfts)[math.ceil(0.95 * len(self.ttfts)) - 1] if self.ttfts else None


@dataclass(frozen=True)
class Verdict:
    """`why` is for the operator: the figures, and what is waited for or went wrong."""

    decision: Literal["wait", "pass", "breach"]
    why: str


def judge(rollout: Rollout, canary: Answers, production: Answers, elapsed: float) -> Verdict:
    """Of the step under way, `elapsed` seconds after it began."""
    baseline = baseline_of(rollout, production)
    over = elapsed >= rollout.every and canary.count >= rollout.min_answers
    told = _figures(canary, baseline)
    broken = [*_errors(rollout, canary, over=over), *_ttft(rollout, canary, baseline, over=over)]
    if broken:
        return Verdict("breach", f"{broken[0]} ({told})")
    if canary.count < rollout.min_answers:
        return Verdict("wait", f"{told}; {canary.count} of {rollout.min_answers} answers needed")
    if rollout.max_ttft_p95_ratio is not None and baseline is None and canary.ttfts:
        needed = f"{production.count} of {rollout.min_answers} answers needed of production"
        return Verdict("wait", f"{told}; {needed}")
    return Verdict("pass" if over else "wait", told)


def baseline_of(rollout: Rollout, production: Answers) -> float | None:
    """Production's 95th percentile of TTFT at this step, or at the one before when it has answered
    too little since: at 100 % it answers nothing."""
    enough = production.count >= rollout.min_answers
    return (production.ttft_p95 if enough else None) or rollout.baseline


def _errors(rollout: Rollout, canary: Answers, *, over: bool) -> Iterable[str]:
    limit = rollout.max_error_rate
    if limit is None:
        return
    if (over and canary.error_rate > limit) or _surely_over(canary.failed, canary.count, limit):
        yield f"over {limit:.2%} of its answers fail"


def _ttft(
    rollout: Rollout, canary: Answers, baseline: float | None, *, over: bool
) -> Iterable[str]:
    ratio, p95 = rollout.max_ttft_p95_ratio, canary.ttft_p95
    if ratio is None or baseline is None or p95 is None:
        return
    limit = ratio * baseline
    late = sum(ttft > limit for ttft in canary.ttfts)
    # What is over a 95th percentile is 5 % of all.
    if (over and p95 > limit) or _surely_over(late, len(canary.ttfts), 0.05):
        yield f"its TTFT p95 is over {ratio:g} times production's"


def _surely_over(hits: int, count: int, rate: float) -> bool:
    """Whether `hits` of `count` rule out that each was one with a probability of `rate` at most: by
    the bound of Chernoff and Hoeffding (Hoeffding 1963, theorem 1)."""
    share = hits / count if count else 0.0
    if share <= rate:
        return False
    if rate == 0:
        return True
    divergence = share * math.log(share / rate)
    if share < 1:
        divergence += (1 - share) * math.log((1 - share) / (1 - rate))
    return math.exp(-count * divergence) < CHANCE


def _figures(canary: Answers, baseline: float | None) -> str:
    told = f"{canary.failed} of {canary.count} answers failed"
    if canary.ttft_p95 is not None:
        beside = f" beside {baseline * 1000:.0f} ms" if baseline is not None else ""
        told += f", TTFT p95 {canary.ttft_p95 * 1000:.0f} ms{beside}"
    return told
