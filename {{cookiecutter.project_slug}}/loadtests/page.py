"""The page of a load test: one file of HTML, with nothing to fetch and nothing that runs."""

from __future__ import annotations

import re
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import jinja2
from markupsafe import Markup

from loadtests import plots
from loadtests.drawing import Plot
from loadtests.rates import rates
from loadtests.results import Knee, Report, Slo, Stage, Table
from loadtests.timeline import timeline
from loadtests.words import figure, percent, seconds, span

#: Rows of the table of errors; the rest is counted.
_ERRORS = 40
_NUMBER = re.compile(r"[-+±−<>≤≥~≈]?\s*[\d.,]+\s*\D{0,12}|–|-|")


class _Error(NamedTuple):
    times: int
    outcome: str
    status: int
    text: str


def render(report: Report) -> str:
    """The page, whole."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        seconds=_seconds,
        span=span,
        percent=percent,
        figure=figure,
        load=_load,
        drawing=_drawing,
        numeric=_numeric,
        when=_when,
    )
    drawn = (
        rates(report),
        timeline(report),
        plots.versions(report),
        plots.distributions(report),
    )
    errors = _errors(report)
    return environment.get_template("page.html").render(
        report=report,
        outcome=_outcome(report),
        knee=_knee(report.knee),
        slo=_slo(report.slo),
        plots=[plot for plot in drawn if plot],
        gauges=plots.gauges(report),
        errors=errors[:_ERRORS],
        more_errors=sum(error.times for error in errors[_ERRORS:]),
    )


def _outcome(report: Report) -> str:
    if not report.verdicts:
        return "nothing judged"
    return "passed" if report.passed else "failed"


def _knee(knee: Knee | None) -> str:
    if knee is None:
        return ""
    if not knee.rate:
        return f"The SLO was missed at every rate tried, from {knee.missed_at:g} requests/s."
    held = f"The SLO held up to {knee.rate:g} requests/s"
    if not knee.missed_at:
        return f"{held}, the highest rate that was tried: the limit lies above."
    return f"{held} and was missed at {knee.missed_at:g}."


def _slo(slo: Slo) -> str:
    """The whole of it as a sentence's part."""
    limits = [
        f"{name} ≤ {seconds(limit)}"
        for name, limit in (("TTFT", slo.ttft), ("TPOT", slo.tpot), ("end to end", slo.e2e))
        if limit is not None
    ]
    return f"{percent(slo.share)} of the requests whole" + "".join(f", {one}" for one in limits)


def _errors(report: Report) -> list[_Error]:
    """What went wrong, by how it was told, the most frequent first."""
    counted = Counter(
        (sample.outcome, sample.status, sample.error)
        for sample in report.samples
        if sample.outcome != "whole"
    )
    return [_Error(times, *kind) for kind, times in counted.most_common()]


def _seconds(value: float | None) -> str:
    return "–" if value is None else seconds(value)


def _load(stage: Stage) -> str:
    if stage.arrivals == "users":
        think = f", thinking {seconds(stage.think)}" if stage.think else ""
        return f"{stage.users} user{'s' if stage.users != 1 else ''}{think}"
    ramp = f"{stage.ramp_from:g} to " if stage.ramp_from is not None else ""
    bursts = f", burstiness {stage.burstiness:g}" if stage.arrivals == "gamma" else ""
    return f"{ramp}{stage.rate:g}/s, {stage.arrivals}{bursts}"


def _drawing(plot: Plot) -> Markup:
    """The plot's own SVG, in which matplotlib has escaped every text."""
    return Markup(plot.svg)  # noqa: S704


def _numeric(table: Table, column: int) -> bool:
    """Whether all cells of the column are figures, which are read from the right."""
    cells = [row[column] for row in table.rows if column < len(row)]
    return any(cells) and all(_NUMBER.fullmatch(cell) for cell in cells)


def _when(began: str) -> str:
    """The time as people write it; as it was, where it is none."""
    try:
        at = datetime.fromisoformat(began)
    except ValueError:
        return began
    zone = at.tzname()
    return f"{at:%d %B %Y, %H:%M}" + (f" {zone}" if zone else "")
