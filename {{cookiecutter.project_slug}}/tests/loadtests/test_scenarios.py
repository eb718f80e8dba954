"""Each scenario, on the service with a scripted engine behind it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import scripted_engine
from live_service import Service, free_port
from load_testing import load_test, own_service, passed
from versions import all_gone, family_of, import_versions, status_of

from serving.runtime.store import ModelStore

pytestmark = pytest.mark.integration

Serve = Callable[..., Service]
DEFAULT = {"tokens": 16, "first_delay_ms": 20, "delay_ms": 10}


@pytest.fixture(scope="module")
def two_versions(serve: Serve, model_template: Path) -> Service:
    service = serve(behaviour={"default": DEFAULT})
    import_versions(service, model_template, 2)
    return service.start().wait_ready()


def test_a_swap_breaks_no_stream_and_leaves_production_as_it_was(two_versions: Service) -> None:
    report = passed(
        *("swap", "--url", two_versions.url, "--rate", "10", "--seconds", "8s", "--version", "1")
    )
    assert [verdict.name for verdict in report.verdicts] == [
        "no broken answers",
        "both versions answered",
    ]
    assert [event.kind for event in report.events].count("swapped") == 2
    chat = status_of(two_versions)["models"]["chat"]
    assert chat["labels"]["production"]["version"] == 2
    assert not chat["pinned"]


def test_a_service_of_the_runs_own_gets_a_second_version_and_nothing_outside_changes(
    serve: Serve,
) -> None:
    service = serve(behaviour={"default": DEFAULT})
    report = passed("swap", "--rate", "10", "--seconds", "8s", **own_service(service))
    assert {sample.version for sample in report.samples} == {"chat:1", "chat:2"}
    assert ModelStore(service.home).numbers("chat") == [1]
    assert not (service.folder / "state").exists()


def test_a_swap_in_which_streams_break_fails(serve: Serve, model_template: Path) -> None:
    """With no time to drain, what runs at the swap is cut."""
    service = serve(
        behaviour={"default": {"tokens": 64, "delay_ms": 50}},
        settings={"timeouts": {"drain": 0.1, "start": 20, "warmup": 10}},
    )
    import_versions(service, model_template, 2)
    done = load_test(
        *("swap", "--url", service.start().wait_ready().url, "--rate", "10", "--seconds", "6s"),
        *("--version", "1", "--answer", "64"),
    )
    assert done.code == 1
    assert "FAILED  no broken answers" in done.out
    assert any("version_replaced" in sample.error for sample in done.report.samples)


def test_a_canary_is_compared_with_production(two_versions: Service) -> None:
    report = passed(
        *("canary", "--url", two_versions.url, "--rate", "30", "--seconds", "5s"),
        *("--version", "1", "--tolerance", "50%"),
    )
    sides = {(sample.label, sample.version) for sample in report.samples if sample.stage == 1}
    assert sides == {("production", "chat:2"), ("canary", "chat:1")}
    (table,) = report.tables
    assert [row[0] for row in table.rows][:3] == ["TTFT p50", "TTFT p95", "TPOT p50"]
    chat = status_of(two_versions)["models"]["chat"]
    assert "canary" not in chat["labels"]
    assert chat["traffic"] == {}


def test_a_worse_canary_fails(serve: Serve, model_template: Path) -> None:
    service = serve(behaviour={"default": DEFAULT})
    import_versions(service, model_template, 2)
    service.start().wait_ready()
    slow = {**DEFAULT, "first_delay_ms": 150}
    scripted_engine.behave(service.engine_home, default=slow)  # of engines from here on
    done = load_test(
        *("canary", "--url", service.url, "--rate", "30", "--seconds", "4s", "--version", "1")
    )
    assert done.code == 1
    assert "Beyond chance and 5% worse: TTFT p50" in done.out


def test_a_spike_is_refused_or_answered_and_then_over(serve: Serve) -> None:
    service = serve(
        behaviour={"default": {"tokens": 1, "first_delay_ms": 100}},
        settings={"limits": {"max_body_bytes": 65536, "in_flight": 2, "queue": 4}},
    )
    report = passed(
        *("spike", "--url", service.start().wait_ready().url, "--rate", "4", "--factor", "20"),
        *("--seconds", "9s", "--answer", "1"),
    )
    before, spike, after = (r.summary for r in report.stages if r.stage.measured)
    assert before.refused == after.refused == 0
    assert spike.refused > 10
    assert [table.title for table in report.tables][1] == "Refusals during the spike"


def test_a_soak_watches_memory_and_open_files(two_versions: Service) -> None:
    report = passed("soak", "--url", two_versions.url, "--rate", "20", "--seconds", "20s")
    names = {gauge.name: gauge for gauge in report.gauges}
    assert set(names) == {"gateway memory", "gateway open files", "engine memory"}
    assert len(names["gateway memory"].values) > 10
    assert min(names["gateway memory"].values) > 50
    assert [verdict.name for verdict in report.verdicts][1:] == [
        "gateway memory does not grow",
        "gateway open files does not grow",
    ]


def test_a_soak_of_a_service_elsewhere_is_refused(two_versions: Service) -> None:
    told = load_test("soak", "--url", f"http://127.0.0.1:{free_port()}").complaint
    assert "No OpenAI-compatible server answers" in told


def test_a_cold_start_is_told_by_phase(serve: Serve) -> None:
    service = serve(behaviour={"start_delay": 1, "default": {"first_delay_ms": 300}})
    report = passed("cold_start", "--rounds", "2", **own_service(service))
    (table,) = report.tables
    assert table.title == "2 cold starts"
    assert [row[0] for row in table.rows] == ["process", "load", "warm-up", "first token", "all"]
    took = {row[0]: row[2] for row in table.rows}
    assert took["load"].endswith(" s")
    assert float(took["first token"].removesuffix(" ms")) >= 300


def test_a_cold_start_that_takes_longer_than_allowed_fails(serve: Serve) -> None:
    service = serve(behaviour={"start_delay": 1})
    done = load_test("cold_start", "--rounds", "1", "--seconds", "500ms", **own_service(service))
    assert done.code == 1
    assert "500 ms were allowed" in done.out


def test_a_cold_start_needs_a_service_of_its_own(two_versions: Service) -> None:
    told = load_test("cold_start", "--url", two_versions.url).complaint
    assert "leave --url out" in told


def test_chaos_kills_engines_and_nothing_is_silently_cut(serve: Serve) -> None:
    service = serve(
        behaviour={"default": {"tokens": 40, "delay_ms": 25}},
        settings={"models": {"chat": {"replicas": 2}}},
    )
    report = passed(
        *("chaos", "--url", service.start().wait_ready().url, "--rate", "8", "--seconds", "10s"),
        *("--rounds", "3", "--answer", "40"),
    )
    assert [event.kind for event in report.events].count("killed") >= 2
    outcomes = {sample.outcome for sample in report.samples}
    assert "truncated" not in outcomes
    assert report.verdicts[0].name == "nothing silently truncated"
    assert all_gone(family_of(service)) is False


def test_a_baseline_tells_what_the_gateway_costs(two_versions: Service) -> None:
    report = passed(
        *("baseline", "--url", two_versions.url, "--rate", "10", "--rounds", "3"),
        *("--seconds", "9s", "--warm-up", "1s"),
    )
    (table,) = report.tables
    assert [row[0] for row in table.rows] == ["TTFT p50", "TPOT p50", "ITL p50", "end to end p50"]
    targets = [result.stage.target for result in report.stages if result.stage.measured]
    assert targets == ["engine", "", "", "engine", "engine", ""]
    first, second = (
        sorted(s.tokens_in or 0 for s in report.samples if s.stage == stage) for stage in (1, 2)
    )
    assert first == second
    assert {s.version for s in report.samples if s.target == "engine"} == {""}
