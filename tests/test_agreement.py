"""The arithmetic and the judgement of the benchmark beside `vllm bench serve`; its figures are for
`make bench-agreement` to measure."""

from __future__ import annotations

from dataclasses import replace

import pytest
from agreement import (
    MEDIANS,
    OURS,
    THEIRS,
    Measured,
    Watch,
    agrees,
    chance,
    of_ours,
    of_theirs,
    ratios,
    turns,
    verdict,
)


class Seen(Watch):
    """Counts and sums of TTFT and of gaps, as they were read one after the other."""

    def __init__(self, *seen: tuple[float, float, float, float]) -> None:
        super().__init__("http://127.0.0.1:1")
        self._seen = [[(a, b), (c, d)] for a, b, c, d in seen]


WATCH = Seen((5, 9.0, 50, 9.0), (7, 10.0, 50, 9.0), (8, 10.1, 51, 9.02), (9, 10.4, 60, 9.2))
SAMPLE = {"stage": 1, "tokens_in": 64, "tokens_out": 6, "gaps": [0.02] * 5}
SUMMARY = {
    "ttft": {"p50": 0.2, "mean": 0.21},
    "tpot": {"p50": 0.021, "mean": 0.022},
    "itl": {"p50": 0.02},
    "e2e": {"p50": 0.3},
    "tokens_out_rate": 9.0,
}
REPORT = {
    "stages": [
        {"stage": {"measured": False}, "summary": {}},
        {"stage": {}, "summary": SUMMARY},
    ],
    "samples": [{"stage": 0}, SAMPLE, SAMPLE],
}
RESULT = {
    "failed": 0,
    "completed": 2,
    "errors": ["", ""],
    "input_lens": [64, 66],
    "output_lens": [6, 6],
    "itls": [[0.02] * 5, [0.02] * 4],
    "median_ttft_ms": 200.0,
    "mean_ttft_ms": 210.0,
    "median_tpot_ms": 20.0,
    "mean_tpot_ms": 22.0,
    "median_itl_ms": 20.0,
    "median_e2el_ms": 300.0,
    "output_throughput": 9.0,
}
ONE = of_theirs(RESULT, 1, WATCH)


def rounds(ours: list[float], theirs: list[float], own: float = 1.0) -> list[Measured]:
    """Runs that differ only in TPOT; what the server counted of it is `own` of what is told."""
    return [
        replace(ONE, by=by, tpot=tpot, mean_tpot=tpot, own_tpot=tpot * own)
        for by, values in ((OURS, ours), (THEIRS, theirs))
        for tpot in values
    ]


def test_the_servers_own_time_is_that_of_the_measured_requests_alone() -> None:
    assert WATCH.own(2) == pytest.approx((200, 20))
    assert WATCH.own(3) == WATCH.own(4) == pytest.approx((350, 20))


def test_what_both_leave_is_read_alike() -> None:
    ours = of_ours(REPORT, 1, WATCH)
    assert (ours.by, ONE.by) == (OURS, THEIRS)
    assert (ours.requests, ours.prompt, ours.answer, ours.events) == (2, 64, 6, 1)
    assert (ONE.requests, ONE.prompt, ONE.answer) == (2, 65, 6)
    assert ONE.events == pytest.approx(11 / 12)
    assert (ours.ttft, ours.mean_ttft, ours.tokens) == (ONE.ttft, ONE.mean_ttft, ONE.tokens)
    assert (ours.tpot, ours.tpot_to_token) == pytest.approx((21, 20))
    assert (ours.own_ttft, ours.own_tpot) == pytest.approx((200, 20))


def test_a_failed_request_is_no_agreement() -> None:
    with pytest.raises(SystemExit, match="1 requests of vllm bench serve failed"):
        of_theirs({**RESULT, "failed": 1}, 1, WATCH)


def test_two_rounds_of_a_seed_are_asked_in_both_orders() -> None:
    assert list(turns(4)) == [
        (1, (OURS, THEIRS)),
        (1, (THEIRS, OURS)),
        (2, (OURS, THEIRS)),
        (2, (THEIRS, OURS)),
    ]


def test_they_agree_when_both_tell_what_the_server_counted() -> None:
    found = rounds([25.0, 20.0], [20.0, 20.0])
    assert ratios(found, MEDIANS)["TPOT p50, ms"] == pytest.approx(1.125)
    assert chance(found, MEDIANS)["TPOT p50, ms"] == pytest.approx(0.2)
    assert agrees(found)
    assert "TPOT +12.5% in ours" in verdict(found)
    assert verdict(found).endswith("They agree within 5%.")


def test_a_server_that_was_slower_excuses_no_more_than_it_was() -> None:
    found = [*rounds([25.0, 20.0], [], own=0.9), *rounds([], [20.0, 20.0])]
    assert not agrees(found)
    assert verdict(found).endswith("They do not agree within 5%.")


def test_tokens_per_second_must_agree_too() -> None:
    ours, theirs = rounds([20.0], [20.0])
    assert not agrees([replace(ours, tokens=ours.tokens * 0.94), theirs])
