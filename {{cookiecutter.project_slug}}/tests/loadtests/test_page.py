"""The page of a load test in a real browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import Chromium, Tab
from debian import running
from made_report import ERROR, full_report, made_report

from loadtests import page, report
from loadtests.results import Knee, Report, Slo, Table, Verdict

PLOTS = ["rates", "timeline", "versions", "distributions", "gauge0", "gauge1", "gauge2"]

FIGURES = """[...document.querySelectorAll("figure")].map(figure => {
  const {width, height} = figure.querySelector("svg[role=img][aria-label]").getBoundingClientRect();
  return [figure.id, width, height, figure.querySelector("figcaption").textContent.trim()];
})"""

#: Texts of plots that lie outside of their drawing.
OUTSIDE = """[...document.querySelectorAll("svg")].flatMap(svg => {
  const frame = svg.getBoundingClientRect();
  return [...svg.querySelectorAll("text")].filter(text => {
    const box = text.getBoundingClientRect();
    return box.left < frame.left - 1 || box.right > frame.right + 1
      || box.top < frame.top - 1 || box.bottom > frame.bottom + 1;
  }).map(text => text.textContent);
})"""

#: What is wider than the window and lies in nothing that scrolls.
TOO_WIDE = """[...document.querySelectorAll("main *")].filter(element =>
  !element.closest(".scroll > *, svg *")
  && element.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5
).map(element => element.outerHTML.slice(0, 80))"""

#: Of A4 less the margins, in CSS pixels.
PRINTED_WIDTH = (210 - 24) / 25.4 * 96


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with running(Chromium, "chromium") as started:
        yield started


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report.write(full_report(), tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def tab(browser: Chromium, written: Path) -> Tab:
    return browser.open(written)


def test_every_plot_is_drawn_with_a_size_a_label_and_a_caption(tab: Tab) -> None:
    found = tab.evaluate(FIGURES)
    assert [name for name, *_ in found] == PLOTS
    for name, width, height, caption in found:
        assert width > 300, name
        assert height > 100, name
        assert caption.endswith("."), name


def test_no_text_of_a_plot_leaves_its_drawing(tab: Tab) -> None:
    assert tab.evaluate(OUTSIDE) == []


def test_nothing_but_the_file_itself_is_asked_for(tab: Tab) -> None:
    assert tab.requested == [tab.url]


def test_the_browser_has_nothing_to_complain_about(tab: Tab) -> None:
    assert tab.complaints == []
    assert tab.evaluate("document.compatMode") == "CSS1Compat"


def test_no_two_elements_have_one_id_and_every_reference_has_its_element(tab: Tab) -> None:
    ids = tab.evaluate("[...document.querySelectorAll('[id]')].map(element => element.id)")
    assert sorted(set(ids)) == sorted(ids)
    named = tab.evaluate(
        "[...document.querySelectorAll('use')].map(use => use.href.baseVal.slice(1))"
        ".concat([...document.querySelectorAll('[clip-path]')]"
        ".map(clipped => clipped.getAttribute('clip-path').slice(5, -1)))"
        ".concat([...document.querySelectorAll('[aria-labelledby]')]"
        ".map(section => section.getAttribute('aria-labelledby')))"
    )
    assert named
    assert set(named) <= set(ids)


def test_a_page_that_is_not_like_that_would_be_seen(browser: Chromium, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text(
        "<!DOCTYPE html><main><div style='width: 2000px'>wide</div><img src='missing.png'>"
        "<svg width='50' height='50'><text x='45' y='20'>outside</text></svg></main>"
        "<script>console.error('an error'); throw new Error('another')</script>"
    )
    tab = browser.open(broken)
    assert tab.requested == [tab.url, (tmp_path / "missing.png").as_uri()]
    assert len(tab.complaints) >= 2
    assert tab.evaluate(OUTSIDE) == ["outside"]
    assert len(tab.evaluate(TOO_WIDE)) == 1
    assert tab.evaluate("document.documentElement.scrollWidth") > 1280


@pytest.mark.parametrize("width", [1280, 768, 400])
def test_the_page_is_never_wider_than_its_window(
    browser: Chromium, written: Path, width: int
) -> None:
    tab = browser.open(written, width)
    assert tab.evaluate(TOO_WIDE) == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= width


def test_the_page_prints_onto_a_few_sheets_with_nothing_cut_off(
    browser: Chromium, written: Path
) -> None:
    tab = browser.open(written, int(PRINTED_WIDTH))
    sheets = len(re.findall(rb"/Type\s*/Page\b", tab.pdf()))
    assert 0 < sheets < 12
    tab.call("Emulation.setEmulatedMedia", media="print")
    assert tab.evaluate("document.documentElement.scrollWidth") <= int(PRINTED_WIDTH)


def test_texts_of_servers_are_shown_as_they_are_and_never_run(tab: Tab) -> None:
    assert tab.evaluate("document.scripts.length") == 0
    cells = tab.evaluate("[...document.querySelectorAll('td.text')].map(cell => cell.innerText)")
    assert ERROR in cells


def test_the_headings_tell_the_page_in_order(tab: Tab) -> None:
    found = tab.evaluate("[...document.querySelectorAll('h1, h2')].map(head => head.innerText)")
    assert found == [
        "Load test “capacity” FAILED",
        "Warnings",
        "Verdicts",
        "Stages",
        "Versions that answered",
        "Plots",
        "Events",
        "Gauges",
        "Errors",
        "Plan",
        "Machine",
        "How it is measured",
    ]


def test_every_header_of_a_table_says_what_it_heads(tab: Tab) -> None:
    assert tab.evaluate("document.querySelectorAll('th:not([scope])').length") == 0
    assert tab.evaluate("document.documentElement.lang") == "en"
    assert tab.evaluate("document.title") == "Load test capacity: failed"


def test_text_is_dark_enough_on_its_ground(tab: Tab) -> None:
    colours = tab.evaluate(
        "[...new Set([...document.querySelectorAll('main *:not(svg *)')]"
        ".map(element => getComputedStyle(element).color))]"
    )
    assert colours
    for colour in colours:
        assert 1.05 / (_luminance(colour) + 0.05) > 4.5, colour


def _luminance(colour: str) -> float:
    """WCAG 2.2's relative luminance of `rgb(r, g, b)`."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("width", [1280, 400])
def test_long_texts_and_many_stages_keep_the_page_within_its_window(
    browser: Chromium, tmp_path: Path, width: int
) -> None:
    long = made_report(rates=[float(rate) for rate in range(1, 17)], seconds=3.0)
    long.target = "http://" + "a-very-long-name." * 30
    long.model = "org/" + "m" * 300
    long.plan["workload"] = "w" * 300
    long.warnings = ["W" * 300]
    long.verdicts = [Verdict("v" * 300, False, "t" * 300)]
    long.tables = [Table("T", [f"column {i}" for i in range(30)], [["1.5 ms"] * 30] * 3)]
    for sample in long.samples:
        sample.version = f"v{'0' * 60}{sample.stage}"
        sample.error = "e" * 2000 if sample.outcome != "whole" else ""
    tab = browser.open(report.write(long, tmp_path), width)
    assert tab.evaluate(TOO_WIDE) == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= width


def test_a_report_of_nothing_is_still_a_page(browser: Chromium, tmp_path: Path) -> None:
    empty = Report("smoke", "now", 0.0, "http://x", "chat", Slo(), {}, {})
    tab = browser.open(report.write(empty, tmp_path))
    assert tab.evaluate("document.querySelector('.badge').textContent") == "nothing judged"
    assert tab.evaluate(FIGURES) == []
    assert tab.complaints == []


def test_embeddings_alone_are_drawn_by_their_latency(browser: Chromium, tmp_path: Path) -> None:
    embedded = made_report()
    for sample in embedded.samples:
        sample.operation, sample.ttft, sample.gaps, sample.tokens_out = "embeddings", None, [], None
    for stage in embedded.stages:
        stage.summary.ttft = stage.summary.tpot = stage.summary.itl = None
    tab = browser.open(report.write(embedded, tmp_path))
    assert [name for name, *_ in tab.evaluate(FIGURES)] == ["rates", "timeline"]
    assert tab.complaints == []


@pytest.mark.parametrize(
    ("knee", "said"),
    [
        (Knee(12.0, 14.0), "The SLO held up to 12 requests/s and was missed at 14."),
        (Knee(12.5, 0.0), "up to 12.5 requests/s, the highest rate that was tried"),
        (Knee(0.0, 2.0), "missed at every rate tried, from 2 requests/s."),
    ],
)
def test_the_knee_is_said_in_one_sentence(knee: Knee, said: str) -> None:
    made = made_report(rates=[2])
    made.knee = knee
    assert said in page.render(made)


@pytest.mark.parametrize(
    ("passed", "said"), [([], "nothing judged"), ([True], "passed"), ([True, False], "failed")]
)
def test_the_page_begins_with_the_verdict(passed: list[bool], said: str) -> None:
    made = made_report(rates=[2])
    made.verdicts = [Verdict("v", held, "t") for held in passed]
    assert re.search(rf'<h1>.*<span class="badge \w+">{said}</span></h1>', page.render(made))
