"""The plot of a whole run: every request when it was sent, what went wrong, rates and events."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

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
    styled,
    svg,
)
from loadtests.results import Report, Sample
from loadtests.words import short

#: Points of answers that are drawn; a page of more is slow to open.
POINTS = 5000
#: Of those, the slowest, which are always drawn; were they many, they would look like a group.
SLOWEST = 100
#: Marks in each row of what went wrong.
_MARKS = 1000
_BARS = 240
#: About so many letters fit above the plot.
_LETTERS = 110

_WRONG = (("refused", INKS[5], "v"), ("failed", RED, "x"), ("truncated", INKS[6], "|"))


def timeline(report: Report) -> Plot | None:
    """None where nothing was asked."""
    if not report.samples:
        return None
    name = "timeline"
    of_ttft = any(sample.ttft is not None for sample in report.samples)
    measured = "Time to first token" if of_ttft else "Latency"
    label = f"{measured}, outcomes and rates of all requests over the time of the run"
    with styled(name):
        figure = canvas(6.4)
        rows = {"height_ratios": [3.2, 0.8, 1.5]}
        points, wrong, rate = figure.subplots(3, 1, sharex=True, gridspec_kw=rows)
        drawn, whole = _points(points, report, of_ttft)
        points.set_title(f"{measured} of each request, by when it was sent", pad=18)
        marks = _wrong(wrong, report.samples)
        _rates(rate, report)
        end = max(report.seconds, *(sample.end for sample in report.samples))
        rate.set_xlim(0, end)
        rate.set_xlabel("s since the start")
        _stages(report, end, [points, wrong, rate])
        _events(report, end, [points, wrong, rate])
        drawing = svg(figure, name, label)
    caption = "Grey lines: a stage begins; grey areas are warm-up."
    if report.events:
        caption += " Dashed lines: events, numbered as in the list below."
    if drawn < whole:
        caption += (
            f" {drawn:,} of {whole:,} answers are drawn: the slowest {SLOWEST:,} of all, and of"
            " the others one every few."
        )
    if marks:
        caption += f" At most {_MARKS:,} marks of each kind of outcome are drawn."
    return Plot(name, label, caption, drawing)


def _points(axes: Axes, report: Report, of_ttft: bool) -> tuple[int, int]:
    """How many answers were drawn, of how many."""
    whole = [s for s in report.samples if s.outcome == "whole" and _height(s, of_ttft) > 0]
    if not whole:
        axes.text(0.5, 0.5, "no whole answer", transform=axes.transAxes, ha="center", color=RED)
        axes.set_yticks([])
        return 0, 0
    kept = thinned(whole, of_ttft)
    by_group = groups(kept)
    for number, (group, samples) in enumerate(by_group.items()):
        axes.plot(
            [sample.sent for sample in samples],
            [_height(sample, of_ttft) for sample in samples],
            linestyle="none",
            marker=MARKERS[number % len(MARKERS)],
            markersize=2.8,
            markeredgewidth=0,
            alpha=0.65,
            color=INKS[number % len(INKS)],
            label=group,
        )
    heights = [_height(sample, of_ttft) for sample in whole]
    wanted = report.slo.ttft if of_ttft else report.slo.e2e
    log_seconds(axes, "y", min(heights), max([*heights, wanted or 0.0]), most=12)
    if wanted:
        axes.axhline(wanted, color=RED, linestyle=":", linewidth=1.2)
    if len(by_group) > 1:
        columns = max(1, _LETTERS // (max(map(len, by_group)) + 10))
        axes.legend(loc="lower right", ncols=columns, markerscale=2, frameon=True, framealpha=0.85)
    return len(kept), len(whole)


def _height(sample: Sample, of_ttft: bool) -> float:
    return (sample.ttft or 0.0) if of_ttft else sample.latency


def thinned(whole: Sequence[Sample], of_ttft: bool) -> list[Sample]:
    """At most `POINTS` of them: the `SLOWEST`, and others at even distances in time."""
    if len(whole) <= POINTS:
        return list(whole)
    slowest = sorted(whole, key=lambda sample: _height(sample, of_ttft))
    others, kept = slowest[:-SLOWEST], slowest[-SLOWEST:]
    others.sort(key=lambda sample: sample.sent)
    chosen = np.linspace(0, len(others) - 1, POINTS - SLOWEST).astype(int)
    return kept + [others[i] for i in chosen]


def _wrong(axes: Axes, samples: Sequence[Sample]) -> bool:
    """Whether some marks were left out."""
    left_out = False
    for row, (outcome, ink, marker) in enumerate(_WRONG):
        at = [sample.sent for sample in samples if sample.outcome == outcome]
        if len(at) > _MARKS:
            left_out = True
            at = [at[i] for i in np.linspace(0, len(at) - 1, _MARKS).astype(int)]
        axes.plot(at, [row] * len(at), linestyle="none", color=ink, marker=marker)
    counts = [sum(sample.outcome == outcome for sample in samples) for outcome, *_ in _WRONG]
    names = [f"{count:,} {name}" for count, (name, *_) in zip(counts, _WRONG, strict=True)]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="x", visible=False)
    return left_out


def _rates(axes: Axes, report: Report) -> None:
    end = max(report.seconds, *(sample.end for sample in report.samples))
    width = max(1.0, end / _BARS)
    edges = np.arange(0, end + width, width)
    sent, _ = np.histogram([sample.sent for sample in report.samples], edges)
    ended = [sample.end for sample in report.samples if sample.outcome == "whole"]
    answered, _ = np.histogram(ended, edges)
    axes.stairs(answered / width, edges, fill=True, color=INKS[4], alpha=0.6, label="answered")
    axes.stairs(sent / width, edges, color=INKS[6], linewidth=1.1, label="sent")
    # Room for the legend above what it names.
    axes.set_ylim(0, max(sent.max(), answered.max()) / width * 1.35 or 1.0)
    axes.set_ylabel("requests/s")
    axes.legend(loc="upper left", ncols=2, frameon=True, framealpha=0.85)


def _stages(report: Report, end: float, panels: Sequence[Axes]) -> None:
    free_from = 0.0
    for stage in report.stages:
        for axes in panels:
            if stage.stage.measured:
                axes.axvline(stage.began, color=GREY, linewidth=0.7)
            else:
                axes.axvspan(stage.began, stage.ended, color=FAINT, alpha=0.5, zorder=0)
        name = short(stage.stage.name)
        needed = (len(name) + 1) / _LETTERS * end
        if stage.began >= free_from and needed < max(stage.ended - stage.began, end / 12):
            place = panels[0].get_xaxis_transform()
            panels[0].text(stage.began, 1.015, name, transform=place, fontsize=8, color=GREY)
            free_from = stage.began + needed


def _events(report: Report, end: float, panels: Sequence[Axes]) -> None:
    free_from = 0.0
    for number, event in enumerate(report.events, 1):
        for axes in panels:
            axes.axvline(event.at, color=INKS[3], linestyle="--", linewidth=0.9)
        if event.at >= free_from:
            place = panels[0].get_xaxis_transform()
            box = {"facecolor": "white", "edgecolor": INKS[3], "pad": 1.5, "linewidth": 0.7}
            panels[0].text(
                event.at, 0.95, str(number), transform=place, fontsize=8, ha="center", bbox=box
            )
            free_from = event.at + end / 50
