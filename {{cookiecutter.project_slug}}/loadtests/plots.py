"""Plots of latency as distributions, of versions side by side, and of gauges over time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from loadtests.drawing import (
    INKS,
    RED,
    Plot,
    canvas,
    groups,
    log_seconds,
    styled,
    svg,
)
from loadtests.measures import ITL, TPOT, TTFT, Measure
from loadtests.results import Gauge, Report, Sample
from loadtests.words import seconds

#: Points of a curve, more of them towards its upper end, where the tail is.
_SHARES = np.concatenate([np.linspace(0, 0.9, 181), 1 - np.geomspace(0.1, 1e-5, 120)[1:], [1.0]])
#: Points of a gauge's curve: a pixel or two each.
_POINTS = 600


def distributions(report: Report) -> Plot | None:
    """How many answers were at least so fast: every raw TTFT and gap of the measured stages."""
    whole = _measured(report)
    found = [(measure, _values(whole, measure)) for measure in (TTFT, ITL)]
    found = [(measure, values) for measure, values in found if len(values) > 1]
    if not found:
        return None
    name = "distributions"
    label = "Cumulative distribution of " + " and of ".join(m.title for m, _ in found)
    with styled(name):
        figure = canvas(3.3, width=9.6 if len(found) > 1 else 6.0)
        panels = figure.subplots(1, len(found), squeeze=False)[0]
        for axes, (measure, values) in zip(panels, found, strict=True):
            _curve(axes, values, getattr(report.slo, measure.name, None))
            axes.set_title(f"{measure.title}, {len(values):,} values")
            axes.set_xlabel("at most")
        panels[0].set_ylabel("share of the values")
        drawing = svg(figure, name, label)
    return Plot(
        name,
        label,
        "Cumulative shares of all raw values of the measured stages, on a logarithmic scale, drawn"
        f" through {len(_SHARES)} exact quantiles. The fastest 0.5 % may lie left of the plot."
        + (" Dotted red: the SLO." if report.slo.ttft and found[0][0] is TTFT else ""),
        drawing,
    )


def _measured(report: Report) -> list[Sample]:
    measured = {i for i, stage in enumerate(report.stages) if stage.stage.measured}
    return [sample for sample in report.samples if _counts(sample, measured)]


def _counts(sample: Sample, measured: set[int]) -> bool:
    return sample.outcome == "whole" and sample.stage in measured


def _values(samples: Sequence[Sample], measure: Measure) -> NDArray[np.float64]:
    found = (value for sample in samples for value in measure.of(sample))
    values = np.fromiter(found, np.float64)
    return values[values > 0]


def _curve(axes: Axes, values: NDArray[np.float64], wanted: float | None) -> None:
    quantiles = np.quantile(values, _SHARES)
    axes.plot(quantiles, _SHARES, color=INKS[0])
    for share, side in ((0.5, "left"), (0.9, "left"), (0.99, "right")):
        at = float(np.quantile(values, share))
        axes.plot([at], [share], marker="o", color=INKS[0])
        away, below = (7, -4) if side == "left" else (-7, 5)
        axes.annotate(
            f"p{share * 100:.0f} {seconds(at)}",
            (at, share),
            xytext=(away, below),
            textcoords="offset points",
            ha=side,
            va="top" if side == "left" else "bottom",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
        )
    low = float(np.quantile(values, 0.005))
    log_seconds(axes, "x", low, max(float(values.max()), wanted or 0.0), most=6)
    axes.set_ylim(0, 1.1)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1.0])
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    if wanted:
        axes.axvline(wanted, color=RED, linestyle=":", linewidth=1.2)


def versions(report: Report) -> Plot | None:
    """TTFT, TPOT and gaps by version, label or target; None where one alone answered."""
    by_group = groups(_measured(report), most=10)
    if len(by_group) < 2:
        return None
    found = [
        (measure, {name: _values(samples, measure) for name, samples in by_group.items()})
        for measure in (TTFT, TPOT, ITL)
    ]
    found = [(measure, of) for measure, of in found if any(len(values) for values in of.values())]
    if not found:
        return None
    name = "versions"
    label = f"{', '.join(measure.title for measure, _ in found)} of {', '.join(by_group)}"
    with styled(name):
        figure = canvas(1.3 + 0.42 * len(by_group))
        panels = figure.subplots(1, len(found), squeeze=False, sharey=True)[0]
        for axes, (measure, of) in zip(panels, found, strict=True):
            _boxes(axes, list(of.values()))
            axes.set_title(measure.title)
        panels[0].set_yticks(range(len(by_group)), list(by_group))
        panels[0].invert_yaxis()
        drawing = svg(figure, name, label)
    return Plot(
        name,
        label,
        "Boxes hold the middle half of the values and a line at the median; whiskers reach from p5"
        " to p95, a diamond marks p99.",
        drawing,
    )


def _boxes(axes: Axes, values_of: Sequence[NDArray[np.float64]]) -> None:
    low, high = math.inf, 0.0
    for row, values in enumerate(values_of):
        if not len(values):
            continue
        p5, q1, mid, q3, p95, p99 = np.percentile(values, (5, 25, 50, 75, 95, 99))
        low, high = min(low, p5), max(high, p99)
        ink = INKS[row % len(INKS)]
        axes.plot([p5, p95], [row, row], color=ink, linewidth=1.2)
        axes.barh(row, q3 - q1, left=q1, height=0.5, color=ink, alpha=0.35, edgecolor=ink)
        axes.plot([mid, mid], [row - 0.25, row + 0.25], color=ink, linewidth=2.4)
        axes.plot([p99], [row], color=ink, marker="D", markersize=4)
        axes.annotate(seconds(float(mid)), (mid, row - 0.28), ha="center", va="bottom", fontsize=8)
    log_seconds(axes, "x", low, high, most=4)
    axes.grid(axis="y", visible=False)
    axes.set_ylim(-0.7, len(values_of) - 0.4)


def gauges(report: Report) -> list[Plot]:
    """One small plot for each gauge that has at least two values."""
    return [
        _gauge(gauge, f"gauge{number}", report)
        for number, gauge in enumerate(report.gauges)
        if len(gauge.values) > 1
    ]


def _gauge(gauge: Gauge, name: str, report: Report) -> Plot:
    at, values = _extremes(np.asarray(gauge.at), np.asarray(gauge.values))
    label = f"{gauge.name} over time, in {gauge.unit}" if gauge.unit else f"{gauge.name} over time"
    with styled(name):
        figure = canvas(2.1, width=4.7)
        axes = figure.subplots()
        for event in report.events:
            axes.axvline(event.at, color=INKS[3], linestyle="--", linewidth=0.8, alpha=0.6)
        axes.plot(at, values, color=INKS[0], linewidth=1.3)
        axes.set_xlim(0, max(report.seconds, float(at.max())))
        axes.set_ylim(bottom=min(0.0, float(values.min())), top=float(values.max()) * 1.08 or 1.0)
        axes.set_title(gauge.name)
        axes.set_ylabel(gauge.unit)
        axes.set_xlabel("s since the start")
        drawing = svg(figure, name, label)
    ends = f"From {gauge.values[0]:,.4g} to {gauge.values[-1]:,.4g} {gauge.unit}".rstrip()
    caption = f"{ends}; at most {max(gauge.values):,.4g}."
    if len(at) < len(gauge.at):
        caption += f" Drawn through the extremes of {len(gauge.at):,} values."
    return Plot(name, label, caption, drawing)


def _extremes(
    at: NDArray[np.float64], values: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """At most `_POINTS` points that keep every peak: the lowest and highest of each part."""
    if len(at) <= _POINTS:
        return at, values
    parts = np.array_split(np.arange(len(at)), _POINTS // 2)
    kept = sorted({int(i) for part in parts for i in _ends(part, values)})
    return at[kept], values[kept]


def _ends(part: NDArray[np.int64], values: NDArray[np.float64]) -> tuple[int, int]:
    return int(part[values[part].argmin()]), int(part[values[part].argmax()])
