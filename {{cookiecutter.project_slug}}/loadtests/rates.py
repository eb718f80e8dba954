"""The plot of latency, and of the share of good requests, against the load."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from loadtests.drawing import (
    FAINT,
    INKS,
    MARKERS,
    RED,
    Plot,
    canvas,
    log_seconds,
    styled,
    svg,
)
from loadtests.measures import E2E, TPOT, TTFT, Measure
from loadtests.results import Knee, Report, Slo, StageResult
from loadtests.words import short

_Load = Callable[[StageResult], float]
_ByTarget = dict[str, list[StageResult]]


def rates(report: Report) -> Plot | None:
    """Against the offered rate, or the number of users where those differ; None where fewer than
    two loads were measured."""
    measured = [stage for stage in report.stages if stage.stage.measured]
    opened = [stage for stage in measured if stage.stage.arrivals != "users"]
    closed = [stage for stage in measured if stage.stage.arrivals == "users"]
    if len({stage.stage.rate for stage in opened}) > 1:
        return _against(_rate, "offered requests/s", _by_target(opened, _rate), report)
    if len({stage.stage.users for stage in closed}) > 1:
        return _against(_users, "users", _by_target(closed, _users), report)
    return None


def _rate(stage: StageResult) -> float:
    return stage.summary.offered_rate


def _users(stage: StageResult) -> float:
    return float(stage.stage.users)


def _by_target(stages: Sequence[StageResult], load: _Load) -> _ByTarget:
    found: _ByTarget = {}
    for stage in sorted(stages, key=load):
        found.setdefault(stage.stage.target, []).append(stage)
    # In the order in which other plots have them, for the same colours.
    return dict(sorted(found.items()))


def _against(load: _Load, unit: str, stages: _ByTarget, report: Report) -> Plot:
    name, label = "rates", f"Latency and share of good requests against {unit}"
    knee = report.knee if load is _rate else None
    measures = [measure for measure in (TTFT, TPOT, E2E) if _is_known(measure, stages)]
    rows = math.ceil((len(measures) + 1) / 2)
    with styled(name):
        figure = canvas(2.8 * rows)
        panels = list(figure.subplots(rows, 2, sharex=True, squeeze=False).flat)
        for axes in panels[len(measures) + 1 :]:
            axes.remove()
        for axes, measure in zip(panels, measures, strict=False):
            _percentiles(axes, measure, stages, load, report.slo)
        _good(panels[len(measures)], stages, load, report.slo)
        for axes in panels[: len(measures) + 1]:
            axes.set_xlim(left=0)
            _knee(axes, knee)
        for axes in panels[-2:]:
            axes.set_xlabel(unit)
        drawing = svg(figure, name, label)
    caption = f"Each point is a measured stage, by its {unit}. p50 is solid, p99 dashed."
    caption += " Dotted red: the SLO."
    if knee and knee.rate:
        caption += " Green: the highest rate that met the SLO."
    if knee and knee.missed_at:
        caption += " Shaded: from where it was missed."
    return Plot(name, label, caption, drawing)


def _is_known(measure: Measure, stages: _ByTarget) -> bool:
    every = (stage for of_target in stages.values() for stage in of_target)
    return any(getattr(stage.summary, measure.name) for stage in every)


def _percentiles(axes: Axes, measure: Measure, stages: _ByTarget, load: _Load, slo: Slo) -> None:
    limit: float | None = getattr(slo, measure.name)
    drawn = [limit] if limit else []
    for number, of_target in enumerate(stages.values()):
        known = [stage for stage in of_target if getattr(stage.summary, measure.name)]
        for percentile, line in (("p50", "-"), ("p99", "--")):
            heights = [
                float(getattr(getattr(stage.summary, measure.name), percentile)) for stage in known
            ]
            axes.plot(
                [load(stage) for stage in known],
                heights,
                color=INKS[number % len(INKS)],
                marker=MARKERS[number % len(MARKERS)],
                linestyle=line,
                label=None if number else percentile,
            )
            drawn.extend(heights)
    log_seconds(axes, "y", min(drawn), max(drawn))
    if limit:
        axes.axhline(limit, color=RED, linestyle=":", linewidth=1.2)
    axes.set_title(measure.title)
    axes.legend(loc="upper left")


def _good(axes: Axes, stages: _ByTarget, load: _Load, slo: Slo) -> None:
    for number, (target, of_target) in enumerate(stages.items()):
        axes.plot(
            [load(stage) for stage in of_target],
            [stage.summary.good for stage in of_target],
            color=INKS[number % len(INKS)],
            marker=MARKERS[number % len(MARKERS)],
            label=short(target) or "no target",
        )
    axes.axhline(slo.share, color=RED, linestyle=":", linewidth=1.2)
    axes.set_title("Good requests")
    axes.set_ylim(-0.03, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    if len(stages) > 1:
        axes.legend(loc="lower left")


def _knee(axes: Axes, knee: Knee | None) -> None:
    if knee and knee.rate:
        axes.axvline(knee.rate, color=INKS[2], linewidth=1.4)
    if knee and knee.missed_at:
        right = max(axes.get_xlim()[1], knee.missed_at * 1.05)
        axes.axvspan(knee.missed_at, right, color=FAINT, alpha=0.6, zorder=0)
        axes.set_xlim(right=right)
