"""Plots of latency: against rate, as distributions, and of versions side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from loadtests.drawing import (
    FAINT,
    GREY,
    INKS,
    MARKERS,
    RED,
    Plot,
    canvas,
    groups,
    log_seconds,
    seconds,
    styled,
    svg,
)
from loadtests.results import Gauge, Report, Sample, StageResult

#: Points of a curve, more of them towards its upper end, where the tail is.
_SHARES = np.concatenate([np.linspace(0, 0.9, 181), 1 - np.geomspace(0.1, 1e-5, 120)[1:], [1.0]])
#: Points of a gauge's curve: a pixel or two each.
_POINTS = 600


class _Measure(NamedTuple):
    title: str
    name: str
    of: Callable[[Sample], Sequence[float]]


def _known(value: float | None) -> Sequence[float]:
    return () if value is None else (value,)


_TTFT = _Measure("Time to first token", "ttft", lambda sample: _known(sample.ttft))
_TPOT = _Measure("Time per output token", "tpot", lambda sample: _known(sample.tpot))
_ITL = _Measure("Gap between tokens (ITL)", "itl", lambda sample: sample.gaps)
_E2E = _Measure("End to end", "e2e", lambda sample: (sample.latency,))


def rates(report: Report) -> Plot | None:
    """Latency and the share of good requests against the offered rate, or the number of users; None
    where fewer than two were measured."""
    measured = [stage for stage in report.stages if stage.stage.measured]
    opened = [stage for stage in measured if stage.stage.arrivals != "users"]
    closed = [stage for stage in measured if stage.stage.arrivals == "users"]
    if len({round(_rate(stage), 3) for stage in opened}) > 1:
        drawn, load, unit = opened, _rate, "offered requests/s"
    elif len({stage.stage.users for stage in closed}) > 1:
        drawn, load, unit = closed, _users, "users"
    else:
        return None
    name = "rates"
    label = f"Latency and share of good requests against {unit}"
    with styled(name):
        figure = canvas(5.6)
        panels = figure.subplots(2, 2, sharex=True)
        for axes, measure in zip(panels.flat, (_TTFT, _TPOT, _E2E), strict=False):
            _percentiles(axes, drawn, load, measure, getattr(report.slo, measure.name))
        good = panels[1][1]
        for number, (target, stages) in enumerate(_by_target(drawn).items()):
            style = {"color": INKS[number % len(INKS)], "marker": MARKERS[number % len(MARKERS)]}
            points = [(load(stage), stage.summary.good) for stage in stages]
            good.plot(*zip(*points, strict=True), label=target or None, **style)
        good.axhline(report.slo.share, color=RED, linestyle=":", linewidth=1.2)
        good.set_title("Good requests")
        good.set_ylim(-0.03, 1.03)
        good.yaxis.set_major_formatter(PercentFormatter(1.0))
        for axes in panels[1]:
            axes.set_xlabel(unit)
        for axes in panels.flat:
            axes.set_xlim(left=0)
            if report.knee and load is _rate:
                _knee(axes, report.knee.rate, report.knee.missed_at)
        if len(_by_target(drawn)) > 1:
            good.legend()
        panels[0][0].legend()
        drawing = svg(figure, name, label)
    caption = (
        f"Each point is a measured stage; {unit} grow to the right. Dotted red: the SLO."
        " p50 is solid, p99 dashed."
    )
    if report.knee and load is _rate:
        caption += " Green: the highest rate that met the SLO; shaded: from where it was missed."
    return Plot(name, label, caption, drawing)


def _rate(stage: StageResult) -> float:
    return stage.summary.offered_rate


def _users(stage: StageResult) -> float:
    return float(stage.stage.users)


def _by_target(stages: Sequence[StageResult]) -> dict[str, list[StageResult]]:
    found: dict[str, list[StageResult]] = {}
    for stage in stages:
        found.setdefault(stage.stage.target, []).append(stage)
    return found


def _percentiles(
    axes: Axes,
    stages: Sequence[StageResult],
    load: Callable[[StageResult], float],
    measure: _Measure,
    wanted: float | None,
) -> None:
    axes.set_title(measure.title)
    drawn: list[float] = [wanted] if wanted else []
    for number, of_target in enumerate(_by_target(stages).values()):
        ink, marker = INKS[number % len(INKS)], MARKERS[number % len(MARKERS)]
        for percentile, line in (("p50", "-"), ("p99", "--")):
            points = sorted(
                (load(stage), getattr(spread, percentile))
                for stage in of_target
                if (spread := getattr(stage.summary, measure.name)) and spread.p50 > 0
            )
            if points:
                x, y = zip(*points, strict=True)
                shown = None if number else percentile
                axes.plot(x, y, color=ink, linestyle=line, marker=marker, label=shown)
                drawn.extend(y)
    if not drawn:
        axes.text(0.5, 0.5, "none measured", transform=axes.transAxes, ha="center", color=GREY)
        axes.set_yticks([])
        return
    log_seconds(axes, "y", min(drawn), max(drawn))
    if wanted:
        axes.axhline(wanted, color=RED, linestyle=":", linewidth=1.2)


def _knee(axes: Axes, rate: float, missed_at: float) -> None:
    if rate:
        axes.axvline(rate, color=INKS[2], linewidth=1.4)
    if missed_at:
        right = max(axes.get_xlim()[1], missed_at)
        axes.axvspan(missed_at, right, color=FAINT, alpha=0.6, zorder=0)
        axes.set_xlim(right=right)


def distributions(report: Report) -> Plot | None:
    """How many answers were at least so fast: every raw TTFT and gap of the measured stages."""
    whole = _measured(report)
    found = [(measure, _values(whole, measure)) for measure in (_TTFT, _ITL)]
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
        + (" Dotted red: the SLO." if report.slo.ttft and found[0][0] is _TTFT else ""),
        drawing,
    )


def _measured(report: Report) -> list[Sample]:
    measured = {i for i, stage in enumerate(report.stages) if stage.stage.measured}
    return [sample for sample in report.samples if _counts(sample, measured)]


def _counts(sample: Sample, measured: set[int]) -> bool:
    return sample.outcome == "whole" and sample.stage in measured


def _values(samples: Sequence[Sample], measure: _Measure) -> NDArray[np.float64]:
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
        for measure in (_TTFT, _TPOT, _ITL)
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
