"""Two runs compared: what is slower is told, and what is chance is not."""

from __future__ import annotations

import time

import pytest
from made_report import made_report

from loadtests.compare import compare
from loadtests.results import Event, Knee, Report, Slo, Table

LATENCIES = ["TTFT p50", "TTFT p99", "TPOT p50", "ITL p99", "end to end p50", "end to end p99"]
MEASURES = [*LATENCIES, "tokens/s", "good", "failed or truncated"]


def failed(old: Report, new: Report, tolerance: float = 0.05) -> set[str]:
    _, verdicts = compare(old, new, tolerance)
    return {verdict.name for verdict in verdicts if not verdict.passed}


def notes(table: Table) -> list[list[str]]:
    return [row[1:4] for row in table.rows if row[0] == "note"]


def test_a_run_is_no_worse_than_itself() -> None:
    report = made_report()
    table, verdicts = compare(report, report)
    assert [verdict.name for verdict in verdicts] == MEASURES
    assert all(verdict.passed for verdict in verdicts)
    assert notes(table) == []


def test_every_stage_has_a_row_for_each_measure_and_then_all_have() -> None:
    table, _ = compare(
        made_report(rates=[4, 8], seconds=150), made_report(rates=[4, 8], seconds=150, seed=1)
    )
    stages = ["4/s", "8/s", "all of these"]
    assert [row[:2] for row in table.rows] == [[s, m] for s in stages for m in MEASURES]
    assert {len(row) for row in table.rows} == {len(table.columns)}


def test_chance_alone_is_hardly_ever_told_as_worse() -> None:
    found = [failed(made_report(seed=2 * i), made_report(seed=2 * i + 1)) for i in range(12)]
    # Nine measures, each with one chance in forty, are not independent of each other.
    assert sum(len(names) for names in found) <= 8


def test_a_slower_run_is_told_by_every_latency() -> None:
    old = made_report(seconds=60)
    assert set(LATENCIES) <= failed(old, made_report(seconds=60, seed=1, slower=1.4))


def test_a_faster_run_passes() -> None:
    assert failed(made_report(seconds=60), made_report(seconds=60, seed=1, slower=0.6)) == set()


def test_what_is_surely_slower_but_within_the_tolerance_passes() -> None:
    old, new = made_report(seconds=60), made_report(seconds=60, slower=1.03)
    assert "TPOT p50" not in failed(old, new, tolerance=0.05)
    assert "TPOT p50" in failed(old, new, tolerance=0.01)


def test_the_change_is_told_as_a_part_of_the_old_value() -> None:
    _, verdicts = compare(made_report(seconds=60), made_report(seconds=60, slower=1.3))
    [told] = [verdict.text for verdict in verdicts if verdict.name == "TPOT p50"]
    assert ": +30.0 % (+2" in told


def test_more_failures_are_told_even_where_there_were_none() -> None:
    old, new = made_report(wrong=0.0), made_report(wrong=0.0, seed=1)
    assert failed(old, new) == set()
    for sample in new.samples[::20]:
        sample.outcome = "failed"
    assert "failed or truncated" in failed(old, new)


def test_fewer_tokens_are_told() -> None:
    old, new = made_report(seconds=60), made_report(seconds=60, tokens=12)
    assert "tokens/s" in failed(old, new)


def test_both_are_held_to_the_old_slo() -> None:
    old, new = made_report(), made_report()
    new.slo = Slo(ttft=60.0)
    table, verdicts = compare(old, new)
    assert all(verdict.passed for verdict in verdicts)
    assert notes(table) == [["SLO", "", "differs"]]
    [good] = [row for row in table.rows if row[:2] == ["all of these", "good"]]
    assert good[2] == good[3]


def test_a_tail_of_a_handful_of_requests_is_not_compared() -> None:
    table, verdicts = compare(made_report(rates=[4]), made_report(rates=[4], seed=1))
    named = {row[1] for row in table.rows} | {verdict.name for verdict in verdicts}
    assert {"TTFT p50", "end to end p50", "ITL p99"} <= named
    assert not {"TTFT p99", "end to end p99"} & named


def test_only_stages_of_both_are_compared() -> None:
    table, verdicts = compare(
        made_report(rates=[2, 4, 8], seconds=150), made_report(rates=[4, 8, 16], seconds=150)
    )
    assert {row[0] for row in table.rows} == {"4/s", "8/s", "all of these"}
    assert [verdict.name for verdict in verdicts] == MEASURES


def test_a_stage_alone_is_not_told_twice() -> None:
    table, _ = compare(made_report(rates=[4]), made_report(rates=[4]))
    assert {row[0] for row in table.rows} == {"4/s"}


def test_warm_up_is_not_compared() -> None:
    old, new = made_report(), made_report()
    for sample in new.samples:
        if sample.stage == 0:
            sample.outcome = "failed"
    assert failed(old, new) == set()


def test_two_stages_of_one_name_are_compared_in_their_order() -> None:
    table, _ = compare(made_report(rates=[4, 4]), made_report(rates=[4, 4]))
    assert {row[0] for row in table.rows} == {"4/s", "4/s 2", "all of these"}


def test_runs_with_no_common_stage_cannot_be_compared() -> None:
    table, [verdict] = compare(made_report(rates=[2]), made_report(rates=[4]))
    assert table.rows == []
    assert (verdict.name, verdict.passed) == ("comparable", False)
    assert "no measured stage is in both. The old one has 2/s; the new one 4/s." in verdict.text


def test_runs_of_two_scenarios_cannot_be_compared() -> None:
    other = made_report()
    other.scenario = "soak"
    _, [verdict] = compare(made_report(), other)
    assert not verdict.passed
    assert "one is of the scenario capacity, the other of soak" in verdict.text


def test_another_plan_and_machine_are_noted() -> None:
    old, new = made_report(rates=[4]), made_report(rates=[4], seconds=40)
    new.plan |= {"seed": "2"}
    new.machine |= {"cpu": "64 × EPYC", "gpu": "H100"}
    table, _ = compare(old, new)
    assert notes(table) == [
        ["plan: seed", "1", "2"],
        ["machine: cpu", "2 × Xeon", "64 × EPYC"],
        ["machine: gpu", "–", "H100"],
        ["seconds of: 4/s", "20 s", "40 s"],
    ]


@pytest.mark.parametrize(("now", "passed"), [(16.0, True), (15.5, True), (12.0, False)])
def test_a_lower_knee_is_told(now: float, passed: bool) -> None:
    old, new = made_report(), made_report()
    old.knee, new.knee = Knee(16.0, 18.0), Knee(now, 20.0)
    _, verdicts = compare(old, new)
    assert (verdicts[-1].name, verdicts[-1].passed) == ("knee", passed)
    assert f"up to 16 requests/s before, and to {now:g} now" in verdicts[-1].text


def test_what_was_not_measured_is_not_compared() -> None:
    old, new = made_report(), made_report()
    for sample in new.samples:
        sample.gaps = []
    new.events = [Event(1.0, "swap", "is of no matter here")]
    _, verdicts = compare(old, new)
    assert "ITL p99" not in [verdict.name for verdict in verdicts]


def test_a_run_in_which_all_failed_is_worse() -> None:
    old, new = made_report(), made_report()
    for sample in new.samples:
        sample.outcome = "failed"
    assert failed(old, new) == {"tokens/s", "good", "failed or truncated"}


def test_a_million_gaps_are_compared_within_seconds() -> None:
    old = made_report(rates=[17.0] * 2, seconds=1500.0, tokens=22)
    assert sum(len(sample.gaps) for sample in old.samples) > 1_000_000
    began = time.process_time()
    compare(old, old)
    assert time.process_time() - began < 12
