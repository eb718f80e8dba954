"""Arrivals: those of the distribution that was asked for, and the same of one seed."""

from __future__ import annotations

import numpy as np
import pytest

from loadtests.arrivals import schedule
from loadtests.results import Arrivals, Stage


def gaps(stage: Stage) -> np.ndarray:
    return np.diff(schedule(stage, (7, 1)))


@pytest.mark.parametrize("arrivals", ["poisson", "gamma", "constant"])
def test_a_seed_gives_the_same_arrivals_and_another_seed_others(arrivals: Arrivals) -> None:
    stage = Stage("a", 100, arrivals, rate=10, burstiness=0.5)
    assert np.array_equal(schedule(stage, (1, 2)), schedule(stage, (1, 2)))
    same = np.array_equal(schedule(stage, (1, 2)), schedule(stage, (1, 3)))
    assert same == (arrivals == "constant")


@pytest.mark.parametrize(("shape", "variation"), [(1.0, 1.0), (0.25, 2.0), (4.0, 0.5)])
def test_gamma_varies_as_its_shape_says_at_the_rate_that_was_asked_for(
    shape: float, variation: float
) -> None:
    between = gaps(Stage("a", 4000, "gamma", rate=10, burstiness=shape))
    assert 1 / between.mean() == pytest.approx(10, rel=0.05)
    assert between.std() / between.mean() == pytest.approx(variation, rel=0.05)


def test_poisson_arrivals_are_exponential() -> None:
    between = np.sort(gaps(Stage("a", 1000, rate=10)))
    expected = 1 - np.exp(-10 * between)
    observed = np.arange(1, len(between) + 1) / len(between)
    # Kolmogorov's distance; 1.63 over the root of n is passed by one sample in a hundred.
    assert np.abs(expected - observed).max() < 1.63 / np.sqrt(len(between))


def test_constant_arrivals_are_evenly_spaced_from_the_beginning() -> None:
    due = schedule(Stage("a", 3, "constant", rate=4), (0,))
    assert due == pytest.approx(np.arange(12) / 4)


def test_a_ramp_grows_from_one_rate_to_the_other() -> None:
    due = schedule(Stage("a", 10, "constant", rate=100, ramp_from=0), (0,))
    assert len(due) == 500
    assert due[0] == 0
    rates, _ = np.histogram(due, bins=10, range=(0, 10))
    assert list(rates) == pytest.approx([5, 15, 25, 35, 45, 55, 65, 75, 85, 95], abs=1)


def test_a_ramp_may_fall() -> None:
    due = schedule(Stage("a", 10, rate=1, ramp_from=99), (0,))
    assert len(due) == pytest.approx(500, rel=0.15)
    assert np.all(np.diff(due) >= 0)
    assert due[-1] < 10
    assert np.sum(due < 5) > 2 * np.sum(due >= 5)


def test_a_rate_too_low_for_its_time_offers_nothing() -> None:
    assert len(schedule(Stage("a", 1, "constant", rate=0.001), (0,))) == 1
    assert not len(schedule(Stage("a", 0.001, rate=0.001), (0,)))
