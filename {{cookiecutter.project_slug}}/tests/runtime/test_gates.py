"""When a canary may go on, and when it may not."""

from __future__ import annotations

from typing import Any

import pytest

from serving.runtime.gates import KEPT, Answers, baseline_of, judge
from serving.runtime.outcome import Outcome
from serving.runtime.wanted import Rollout

PLAN: dict[str, Any] = {
    "steps": [10, 100],
    "every": 600,
    "max_error_rate": 0.01,
    "max_ttft_p95_ratio": 1.2,
    "min_answers": 100,
}


def rollout(**fields: Any) -> Rollout:
    return Rollout.model_validate({**PLAN, **fields})


def answers(good: int, bad: int = 0, ttft: float | None = 0.1, late: int = 0) -> Answers:
    """`good` ones, of which `late` take ten times their time, and `bad` ones."""
    side = Answers()
    for index in range(good + bad):
        outcome = Outcome("chat", 1, "canary").end(failed=index >= good)
        outcome.ttft = None if ttft is None else ttft * (10 if index < late else 1)
        side.note(outcome)
    return side


def test_the_rate_and_the_percentile_are_what_they_say() -> None:
    side = Answers()
    assert (side.error_rate, side.ttft_p95) == (0, None)
    for index in range(100):
        outcome = Outcome("chat", 1, "canary").end(failed=index % 4 == 0)
        outcome.ttft = index / 100
        side.note(outcome)
    assert (side.count, side.error_rate, side.ttft_p95) == (100, 0.25, 0.94)


def test_only_the_newest_times_are_kept() -> None:
    side = answers(KEPT, ttft=5)
    for _ in range(KEPT):
        outcome = Outcome("chat", 1, "canary").end(failed=False)
        outcome.ttft = 1.0
        side.note(outcome)
    assert (side.count, len(side.ttfts), side.ttft_p95) == (2 * KEPT, KEPT, 1)


@pytest.mark.parametrize(
    ("elapsed", "canary", "production", "decision", "told"),
    [
        (599, answers(500), answers(500), "wait", "0 of 500 answers failed, TTFT p95 100 ms"),
        (600, answers(500), answers(500), "pass", "TTFT p95 100 ms beside 100 ms"),
        (9999, answers(99), answers(500), "wait", "99 of 100 answers needed"),
        (9999, answers(500), answers(99), "wait", "99 of 100 answers needed of production"),
        (600, answers(99, 1), answers(500), "pass", "1 of 100 answers failed"),
        (600, answers(98, 2), answers(500), "breach", "over 1.00% of its answers fail"),
        (599, answers(98, 2), answers(500), "wait", "2 of 100 answers failed"),
        (5, answers(0, 1), answers(500), "wait", "1 of 1 answers failed"),
        (5, answers(0, 4), answers(0), "breach", "over 1.00% of its answers fail (4 of 4 answers"),
        (600, answers(500, ttft=0.12), answers(500), "pass", "120 ms beside 100 ms"),
        (600, answers(500, ttft=0.13), answers(500), "breach", "over 1.2 times production's"),
        (5, answers(4, ttft=0.13), answers(500), "wait", "4 of 100 answers needed"),
        (5, answers(5, ttft=0.13), answers(500), "breach", "over 1.2 times production's"),
        (5, answers(5, ttft=0.13), answers(99), "wait", "5 of 100 answers needed"),
        (599, answers(100, late=6), answers(500), "wait", "TTFT p95 1000 ms beside 100 ms"),
        (600, answers(100, late=6), answers(500), "breach", "TTFT p95 is over"),
        (600, answers(100, late=5), answers(500), "pass", "TTFT p95 100 ms"),
        (600, answers(100, ttft=None), answers(500, ttft=None), "pass", "0 of 100 answers failed"),
    ],
)
def test_a_step_is_judged_by_its_limits(
    elapsed: float, canary: Answers, production: Answers, decision: str, told: str
) -> None:
    verdict = judge(rollout(), canary, production, elapsed)
    assert verdict.decision == decision
    assert told in verdict.why


def test_a_limit_of_null_is_not_watched() -> None:
    plan = rollout(max_error_rate=None, max_ttft_p95_ratio=None)
    assert judge(plan, answers(0, 100, ttft=9), answers(500), 600).decision == "pass"


def test_without_any_error_allowed_the_first_one_ends_it() -> None:
    assert judge(rollout(max_error_rate=0), answers(99, 1), answers(0), 5).decision == "breach"


def test_where_production_answers_nothing_the_step_before_is_compared_with() -> None:
    plan = rollout(step=1, baseline=0.1)
    assert baseline_of(plan, answers(99, ttft=0.5)) == 0.1
    assert baseline_of(plan, answers(100, ttft=0.5)) == 0.5
    assert judge(plan, answers(100, ttft=0.13), answers(0), 600).decision == "breach"
    assert judge(plan, answers(100, ttft=0.11), answers(0), 600).decision == "pass"
