"""The plots: what they draw, what they leave out, and that they are the same each time."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from itertools import pairwise

import pytest
from made_report import full_report, made_report

from loadtests import drawing, plots
from loadtests.drawing import Plot
from loadtests.rates import rates
from loadtests.results import Event, Gauge, Report, Slo, Stage
from loadtests.timeline import POINTS, SLOWEST, thinned, timeline

ALL = [rates, timeline, plots.distributions, plots.versions]
EMPTY = Report("smoke", "now", 0.0, "http://x", "chat", Slo(), {}, {})
HOSTILE = "--></svg><script>alert(1)</script>$x^{$ & \"quoted\" 'too' 漢字"


def drawn(plot: Plot | None) -> ET.Element:
    """Its SVG, which is well-formed XML."""
    assert plot is not None
    return ET.fromstring(plot.svg)


def texts(plot: Plot | None) -> list[str]:
    return ["".join(text.itertext()).strip() for text in drawn(plot).iter() if is_text(text)]


def is_text(element: ET.Element) -> bool:
    return element.tag.endswith("}text")


def points(plot: Plot | None) -> int:
    return sum(element.tag.endswith("}use") for element in drawn(plot).iter())


@pytest.mark.parametrize("draw", ALL)
def test_a_plot_is_the_same_each_time(draw: Callable[[Report], Plot | None]) -> None:
    once, again = draw(full_report()), draw(full_report())
    assert once is not None
    assert once == again


@pytest.mark.parametrize("draw", ALL)
def test_nothing_is_drawn_of_nothing(draw: Callable[[Report], Plot | None]) -> None:
    assert draw(EMPTY) is None
    assert plots.gauges(EMPTY) == []


@pytest.mark.parametrize("draw", ALL)
def test_a_plot_can_be_read_aloud_and_selected(draw: Callable[[Report], Plot | None]) -> None:
    plot = draw(full_report())
    root = drawn(plot)
    assert root.get("role") == "img"
    assert plot is not None
    assert root.get("aria-label") == plot.label
    assert len(texts(plot)) > 5


@pytest.mark.parametrize("draw", ALL)
def test_a_plot_names_nothing_outside_itself(draw: Callable[[Report], Plot | None]) -> None:
    plot = draw(full_report())
    assert plot is not None
    references = re.findall(r'href="([^"]*)"|url\(([^)]*)\)', plot.svg)
    assert all((one or other).startswith(f"#{plot.name}-") for one, other in references)
    assert set(re.findall(r"https?://[^\"]*", plot.svg)) == {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_names_of_any_kind_are_drawn_as_text() -> None:
    report = full_report()
    report.gauges[0].name = report.gauges[0].unit = HOSTILE
    report.slo = Slo()
    for sample in report.samples[::2]:
        sample.version = HOSTILE
    for plot in (timeline(report), plots.versions(report), *plots.gauges(report)):
        assert plot is not None
        assert "<script" not in plot.svg
        drawn(plot)
    assert HOSTILE in texts(plots.gauges(report)[0])


def test_latency_is_drawn_against_rates_once_there_are_two() -> None:
    assert rates(made_report(rates=[4])) is None
    assert rates(made_report(rates=[4, 4])) is None
    plot = rates(made_report(rates=[4, 8]))
    assert {"p50", "p99", "offered requests/s", "Good requests"} <= set(texts(plot))


def test_closed_loops_are_drawn_against_their_users() -> None:
    report = made_report(rates=[4, 8])
    for users, result in enumerate(report.stages):
        stage = result.stage
        result.stage = Stage(
            stage.name, stage.seconds, arrivals="users", users=users, measured=stage.measured
        )
    plot = rates(report)
    assert "users" in texts(plot)
    assert plot is not None
    assert "rate" not in plot.caption


def test_only_what_was_measured_is_drawn_against_rates() -> None:
    report = made_report(rates=[4, 8])
    measures = {"Time to first token", "Time per output token", "End to end"}
    assert measures <= set(texts(rates(report)))
    for result in report.stages:
        result.summary.tpot = None
    assert "Time per output token" not in texts(rates(report))


def test_percentiles_are_written_beside_the_curve() -> None:
    report = made_report(rates=[4])
    for sample in report.samples:
        sample.ttft = 0.1
    report.samples[-1].ttft = 0.2
    assert {"p50 100 ms", "p90 100 ms"} <= set(texts(plots.distributions(report)))


def test_warm_up_is_in_no_distribution() -> None:
    report = made_report(rates=[4], wrong=0.0)
    measured = sum(sample.stage == 1 for sample in report.samples)
    assert f"Time to first token, {measured} values" in texts(plots.distributions(report))


def test_versions_are_drawn_once_two_answered() -> None:
    assert plots.versions(made_report()) is None
    assert {"v1", "v2"} <= set(texts(plots.versions(made_report(versions=["v1", "v2"]))))


def test_targets_and_labels_stand_side_by_side_like_versions() -> None:
    report = made_report()
    for number, sample in enumerate(report.samples):
        sample.target, sample.label = f"engine {number % 2}", "canary" if number % 3 else ""
    names = {f"engine {number} · {label}" for number in (0, 1) for label in ("canary", "none")}
    assert names <= set(texts(plots.versions(report)))


def test_what_went_wrong_is_counted_beside_its_marks() -> None:
    report = made_report()
    outcomes = [sample.outcome for sample in report.samples]
    said = {f"{outcomes.count(kind)} {kind}" for kind in ("refused", "failed", "truncated")}
    assert said <= set(texts(timeline(report)))


def test_a_run_in_which_all_failed_has_a_timeline() -> None:
    report = made_report(rates=[4], wrong=1.0)
    for sample in report.samples:
        sample.outcome = "failed"
    assert "no whole answer" in texts(timeline(report))


def test_events_are_numbered_where_there_is_room() -> None:
    report = made_report()
    report.events = [Event(10.0, "swap", "a"), Event(10.01, "swap", "b"), Event(40.0, "swap", "c")]
    plot = timeline(report)
    found = texts(plot)
    assert found.count("1") == 1
    assert "3" in found
    assert plot is not None
    assert "numbered" in plot.caption


def test_a_large_run_is_thinned_to_the_slowest_and_some_others_and_says_so() -> None:
    report = made_report(rates=[17.0], seconds=700.0, tokens=2, wrong=0.0)
    plot = timeline(report)
    assert plot is not None
    assert POINTS <= points(plot) < POINTS + 200
    assert f"{POINTS:,} of {len(report.samples):,} answers are drawn" in plot.caption
    assert len(plot.svg) < 1_000_000
    slowest = sorted(report.samples, key=lambda sample: sample.ttft or 0.0)[-SLOWEST:]
    kept = thinned(report.samples, of_ttft=True)
    assert len({id(sample) for sample in kept}) == POINTS
    assert {id(sample) for sample in slowest} <= {id(sample) for sample in kept}
    sent = sorted(sample.sent for sample in kept)
    assert max(later - sooner for sooner, later in pairwise(sent)) < 5.0


def test_many_failures_are_thinned_too() -> None:
    report = made_report(rates=[17.0], seconds=300.0, tokens=2, wrong=1.0)
    for sample in report.samples:
        sample.outcome = "refused"
    plot = timeline(report)
    assert plot is not None
    assert points(plot) < 1500
    assert "At most 1,000 marks" in plot.caption


def test_a_long_gauge_keeps_its_peaks() -> None:
    report = made_report(rates=[4])
    values = [1.0] * 50_000
    values[31_234] = 97.0
    report.gauges = [Gauge("g", "MiB", [i / 1000 for i in range(50_000)], values)]
    [plot] = plots.gauges(report)
    assert "at most 97." in plot.caption
    assert "extremes of 50,000 values" in plot.caption
    assert len(plot.svg) < 60_000
    heights = re.findall(r"[ML] [\d.]+ ([\d.]+)", plot.svg)
    assert min(map(float, heights)) < 40


def test_a_gauge_of_one_value_is_no_plot() -> None:
    report = made_report(rates=[4])
    report.gauges = [Gauge("g", "", [1.0], [2.0]), Gauge("none", "", [], [])]
    assert plots.gauges(report) == []


@pytest.mark.parametrize("low", [1e-6, 0.0009, 0.001, 0.021, 0.5, 3.0])
@pytest.mark.parametrize("times", [1.0, 1.5, 30, 1e5])
def test_every_logarithmic_axis_has_two_ticks_or_more_and_holds_all(
    low: float, times: float
) -> None:
    with drawing.styled("axis"):
        axes = drawing.canvas(2).subplots()
        drawing.log_seconds(axes, "y", low, low * times, most=4)
        bottom, top = axes.get_ylim()
        ticks = [tick for tick in axes.get_yticks() if bottom * 0.999 <= tick <= top * 1.001]
    assert bottom <= low * 1.001
    assert top >= low * times * 0.999
    assert len(ticks) >= 2
