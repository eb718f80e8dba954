"""Figures from raw samples: exact percentiles, goodput, intervals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from loadtests.results import Sample, Slo, Spread, Summary

#: Draws of a bootstrap: the ends of a 95 % interval are then known to a few per cent of its width.
DRAWS = 2000

#: The mean of so many drawn values is normal to more digits than are ever read.
NORMAL_FROM = 20_000

Statistic = Callable[[NDArray[np.float64]], float]
Values = Sequence[float] | NDArray[np.float64]


class Clusters(NamedTuple):
    """Where each value is from, by number; a cluster's number is its own over all strata.

    Values of one `cluster` depend on each other, as those of one second do, that met one queue; the
    clusters of a `stratum` do not. Strata are no chance: a run made again has the same stages.
    """

    stratum: NDArray[np.int64]
    cluster: NDArray[np.int64]


class Interval(NamedTuple):
    """A value and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def spread(values: Values) -> Spread | None:
    """None of nothing. Percentiles are interpolated between neighbours, as numpy does it."""
    if not len(values):
        return None
    array = np.asarray(values, dtype=np.float64)
    p50, p90, p95, p99 = (float(p) for p in np.percentile(array, (50, 90, 95, 99)))
    return Spread(len(array), float(array.mean()), p50, p90, p95, p99, float(array.max()))


def summarize(
    samples: Sequence[Sample], slo: Slo, began: float, ended: float, offered: int | None = None
) -> Summary:
    """Of a stage that asked from `began` to `ended`. `offered`: what the schedule held; by default
    what was sent."""
    whole = [sample for sample in samples if sample.outcome == "whole"]
    outcomes = Counter(sample.outcome for sample in samples)
    good = sum(slo.met_by(sample) for sample in samples)
    # Answers go on after the last request: what counts is how long it took to give them all.
    took = max([ended, *(sample.end for sample in samples)]) - began or 1.0
    gaps = [gap for sample in whole for gap in sample.gaps]
    late = spread([sample.sent - sample.due for sample in samples])
    return Summary(
        requests=len(samples),
        whole=outcomes["whole"],
        refused=outcomes["refused"],
        failed=outcomes["failed"],
        truncated=outcomes["truncated"],
        offered_rate=(len(samples) if offered is None else offered) / (ended - began or 1.0),
        achieved_rate=len(whole) / took,
        tokens_in_rate=sum(sample.tokens_in or 0 for sample in whole) / took,
        tokens_out_rate=sum(sample.tokens_out or 0 for sample in whole) / took,
        good=good / len(samples) if samples else 0.0,
        goodput=good / took,
        late_p99=late.p99 if late else 0.0,
        ttft=spread([sample.ttft for sample in whole if sample.ttft is not None]),
        itl=spread(gaps),
        tpot=spread([tpot for sample in whole if (tpot := sample.tpot) is not None]),
        e2e=spread([sample.latency for sample in whole]),
        errors=dict(Counter(s.error for s in samples if s.error).most_common(20)),
    )


def bootstrap(statistic: Statistic, values: Values, seed: int = 0) -> Interval:
    """The statistic of `values` with its percentile-bootstrap interval (Efron 1979).

    Raises `ValueError` for no values. Percentiles take the time of one sort, however many values.
    """
    array = np.asarray(values, dtype=np.float64)
    draws = _draws(statistic, array, np.random.default_rng(seed))
    return Interval(statistic(array), *_ends(draws))


def difference(
    statistic: Statistic,
    one: Values,
    other: Values,
    seed: int = 0,
    clusters: tuple[Clusters, Clusters] | None = None,
) -> Interval:
    """By how much the statistic of `one` is above that of `other`; the two drawn apart.

    `clusters`: those of `one` and of `other`, for percentiles, where values are not independent.
    """
    first, second = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    rng = np.random.default_rng(seed)
    of_first, of_second = clusters or (None, None)
    draws = _draws(statistic, first, rng, of_first) - _draws(statistic, second, rng, of_second)
    return Interval(statistic(first) - statistic(second), *_ends(draws))


def share(part: float, whole: float) -> Interval:
    """`part` of `whole` with Wilson's score interval, which stays within 0 and 1 (Wilson 1927)."""
    if not whole:
        return Interval(math.nan, 0.0, 1.0)
    z, p = 1.959964, part / whole
    centre = (p + z * z / (2 * whole)) / (1 + z * z / whole)
    half = z * math.sqrt(p * (1 - p) / whole + z * z / (4 * whole**2)) / (1 + z * z / whole)
    return Interval(p, max(0.0, centre - half), min(1.0, centre + half))


def independent(held: NDArray[np.bool_], clusters: Clusters) -> float:
    """How many independent values would know as well what share of them holds, from 2 up: Kish's
    effective size of a sample (1965), with each stratum's share taken as its own."""
    p, n = float(held.mean()), len(held)
    sizes = np.bincount(clusters.stratum)
    shares = np.bincount(clusters.stratum, held) / np.maximum(sizes, 1)
    off = np.bincount(clusters.cluster, held - shares[clusters.stratum])
    # A cluster more than one of each stratum is free to differ.
    count = len(np.unique(clusters.cluster))
    free = max(1, count - int(np.count_nonzero(sizes)))
    between = float((off**2).sum()) * count / free
    # Clusters may agree by luck better than independent values would.
    within = float((sizes * shares * (1 - shares)).sum())
    variance = max(between, within)
    return max(2.0, p * (1 - p) * n**2 / variance) if variance else float(n)


def median(values: NDArray[np.float64]) -> float:
    return float(np.median(values))


def p95(values: NDArray[np.float64]) -> float:
    return float(np.percentile(values, 95))


def p99(values: NDArray[np.float64]) -> float:
    return float(np.percentile(values, 99))


def mean(values: NDArray[np.float64]) -> float:
    return float(values.mean())


#: The statistics of which a draw needs no resample, by what share of the values lies below them.
_QUANTILES: dict[Statistic, float] = {median: 0.5, p95: 0.95, p99: 0.99}


def _draws(
    statistic: Statistic,
    values: NDArray[np.float64],
    rng: np.random.Generator,
    clusters: Clusters | None = None,
) -> NDArray[np.float64]:
    if not len(values):
        raise ValueError("no values to draw from")
    if statistic in _QUANTILES:
        return _quantile_draws(_QUANTILES[statistic], values, rng, clusters)
    assert clusters is None, "clusters are for percentiles"
    if statistic is mean and len(values) >= NORMAL_FROM:
        return rng.normal(values.mean(), values.std() / math.sqrt(len(values)), DRAWS)
    picks = (values[rng.integers(0, len(values), len(values))] for _ in range(DRAWS))
    return np.fromiter((statistic(pick) for pick in picks), np.float64, DRAWS)


def _quantile_draws(
    p: float, values: NDArray[np.float64], rng: np.random.Generator, clusters: Clusters | None
) -> NDArray[np.float64]:
    """A resample's k-th smallest value is the one at the k-th smallest of n uniform ranks, and that
    rank is Beta(k, n - k + 1): drawn from there, nothing need be resampled. Where values depend on
    each other there are in truth fewer of them: n is what gives the rank its spread over clusters.
    """
    ordered = np.sort(values)
    n = float(len(ordered))
    if clusters is not None:
        n = independent(values <= np.quantile(values, p), clusters)
    below = (n - 1) * p
    ranks = rng.beta(below + 1, n - below, DRAWS)
    return ordered[np.minimum((ranks * len(ordered)).astype(np.int64), len(ordered) - 1)]


def _ends(draws: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.percentile(draws, (2.5, 97.5))
    return float(low), float(high)
