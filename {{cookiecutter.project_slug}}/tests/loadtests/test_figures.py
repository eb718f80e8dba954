"""The figures, against what is known."""

from __future__ import annotations

import time

import numpy as np
import pytest

from loadtests import figures
from loadtests.figures import Clusters
from loadtests.results import Sample, Slo

TENTHS = [float(number) for number in range(1, 101)]


def sample(**fields: object) -> Sample:
    """A whole one of 5 tokens, sent after 1 s, that took 1 s, unless `fields` say otherwise."""
    plain: dict[str, object] = {"stage": 0, "operation": "chat", "due": 1.0, "sent": 1.0}
    plain |= {"latency": 1.0, "outcome": "whole", "ttft": 0.2, "tokens_out": 5, "tokens_in": 10}
    return Sample(**(plain | fields))  # type: ignore[arg-type]


def test_percentiles_are_exact_and_interpolated() -> None:
    spread = figures.spread(TENTHS)
    assert spread is not None
    assert (spread.count, spread.mean, spread.p50, spread.max) == (100, 50.5, 50.5, 100.0)
    assert spread.p90 == pytest.approx(90.1)
    assert spread.p95 == pytest.approx(95.05)
    assert spread.p99 == pytest.approx(99.01)


def test_nothing_has_no_spread() -> None:
    assert figures.spread([]) is None


def test_one_value_is_all_its_percentiles() -> None:
    spread = figures.spread([3.0])
    assert spread is not None
    assert {spread.mean, spread.p50, spread.p90, spread.p95, spread.p99, spread.max} == {3.0}


def test_a_summary_counts_what_was_whole_good_and_wrong() -> None:
    samples = [
        sample(),
        sample(ttft=0.9),
        sample(outcome="refused", ttft=None, tokens_out=None, tokens_in=None, error="full"),
        sample(outcome="failed", error="broken"),
        sample(outcome="truncated", error="broken"),
    ]
    summary = figures.summarize(samples, Slo(ttft=0.5), began=0.0, ended=10.0)
    assert (summary.requests, summary.whole) == (5, 2)
    assert (summary.refused, summary.failed, summary.truncated) == (1, 1, 1)
    assert summary.good == pytest.approx(1 / 5)
    assert summary.goodput == pytest.approx(0.1)
    assert summary.errors == {"broken": 2, "full": 1}
    assert (summary.offered_rate, summary.achieved_rate) == (0.5, 0.2)
    assert (summary.tokens_in_rate, summary.tokens_out_rate) == (2.0, 1.0)


def test_rates_are_taken_until_the_last_answer() -> None:
    summary = figures.summarize([sample(latency=19.0)], Slo(), began=0.0, ended=10.0)
    assert summary.offered_rate == 0.1
    assert summary.achieved_rate == 0.05


def test_an_empty_stage_has_a_summary() -> None:
    summary = figures.summarize([], Slo(), began=0.0, ended=10.0)
    assert (summary.requests, summary.good, summary.goodput, summary.ttft) == (0, 0.0, 0.0, None)


def test_time_per_output_token_leaves_out_the_first() -> None:
    assert sample(latency=1.0, ttft=0.2, tokens_out=5).tpot == pytest.approx(0.2)
    assert sample(tokens_out=1).tpot is None
    assert sample(ttft=None).tpot is None


def test_wilsons_interval_is_the_published_one() -> None:
    # Newcombe 1998, table I, method 3: 81 of 263, 15 of 148, 0 of 20 and 1 of 29.
    for part, whole, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        interval = figures.share(part, whole)
        assert interval.low == pytest.approx(low, abs=5e-5)
        assert interval.high == pytest.approx(high, abs=5e-5)
        assert 0 <= interval.low <= interval.value <= interval.high <= 1


def test_a_share_of_nothing_may_be_anything() -> None:
    assert figures.share(0, 0)[1:] == (0.0, 1.0)


@pytest.mark.parametrize("statistic", [figures.median, figures.p95, figures.mean])
def test_a_bootstrap_holds_the_true_value_about_as_often_as_it_says(
    statistic: figures.Statistic,
) -> None:
    rng = np.random.default_rng(1)
    true = statistic(rng.lognormal(0, 0.5, 1_000_000))
    held = 0
    for run in range(200):
        found = figures.bootstrap(statistic, rng.lognormal(0, 0.5, 300), seed=run)
        held += found.low <= true <= found.high
    assert 0.89 < held / 200 < 0.99


@pytest.mark.parametrize("count", [1, 2, 7, 150])
def test_drawn_ranks_are_the_medians_of_resamples(count: int) -> None:
    values = np.sort(np.random.default_rng(2).exponential(size=2 * count - 1))
    picks = np.random.default_rng(3).integers(0, len(values), (20_000, len(values)))
    resampled = np.percentile(np.median(values[picks], axis=1), (2.5, 97.5))
    drawn = figures.bootstrap(figures.median, values)
    steps = np.searchsorted(values, [drawn.low, drawn.high]) - np.searchsorted(values, resampled)
    # Of a few ranks the end of the interval may be the one or the next.
    assert (abs(steps) <= 1 + len(values) // 100).all()


def test_a_difference_of_equals_holds_nothing_and_one_of_unequals_does_not() -> None:
    rng = np.random.default_rng(4)
    one, same, more = (rng.normal(mean, 1.0, 2000) for mean in (10, 10, 11))
    equal = figures.difference(figures.median, one, same)
    assert equal.low < 0 < equal.high
    unequal = figures.difference(figures.median, more, one)
    assert 0.8 < unequal.low < unequal.value < unequal.high < 1.2


def test_values_that_depend_on_each_other_widen_the_interval() -> None:
    rng = np.random.default_rng(5)
    held = plainly = 0
    for run in range(100):
        values, clusters = dependent(rng)
        other, others = dependent(rng)
        found = figures.difference(
            figures.median, values, other, seed=run, clusters=(clusters, others)
        )
        held += found.low <= 0 <= found.high
        found = figures.difference(figures.median, values, other, seed=run)
        plainly += found.low <= 0 <= found.high
    assert held >= 88
    assert plainly < 60


def dependent(rng: np.random.Generator) -> tuple[figures.Values, Clusters]:
    """40 times of 25 values, whose levels differ by time."""
    levels = rng.normal(10, 1, 40)
    values = np.repeat(levels, 25) + rng.normal(0, 0.3, 1000)
    return values, Clusters(np.zeros(1000, dtype=np.int64), np.repeat(np.arange(40), 25))


def test_that_strata_differ_is_no_chance() -> None:
    rng = np.random.default_rng(6)
    strata = np.repeat(np.arange(2), 3000)
    clusters = Clusters(strata, np.arange(6000) // 100)
    apart = np.where(strata == 0, 1.0, 5.0) * rng.lognormal(0, 0.2, 6000)
    known = figures.independent(apart <= 3.0, clusters)
    assert known >= 6000


def test_independent_values_in_clusters_are_nearly_as_many_as_they_are() -> None:
    held = np.random.default_rng(7).uniform(size=10_000) < 0.3
    clusters = Clusters(np.zeros(10_000, dtype=np.int64), np.arange(10_000) // 100)
    assert 6_000 < figures.independent(held, clusters) <= 10_001


def test_no_values_have_no_interval() -> None:
    with pytest.raises(ValueError, match="no values"):
        figures.bootstrap(figures.median, [])


def test_a_million_values_take_a_second_or_two() -> None:
    values = np.random.default_rng(8).exponential(size=1_000_000)
    clusters = Clusters(np.zeros(1_000_000, dtype=np.int64), np.arange(1_000_000) // 33_334)
    began = time.process_time()
    figures.difference(figures.p99, values, values, clusters=(clusters, clusters))
    figures.bootstrap(figures.mean, values)
    assert time.process_time() - began < 4


def test_the_same_seed_gives_the_same_interval() -> None:
    assert figures.bootstrap(figures.p99, TENTHS, 3) == figures.bootstrap(figures.p99, TENTHS, 3)
    assert figures.bootstrap(figures.mean, TENTHS, 3) != figures.bootstrap(figures.mean, TENTHS, 4)
