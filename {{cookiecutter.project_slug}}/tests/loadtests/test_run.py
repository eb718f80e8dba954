"""`python -m loadtests` as its user runs it, on the service with a scripted engine behind it."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from commands import new_key
from live_service import PROJECT, Service, eventually, free_port
from load_testing import (
    KEY,
    bare_engine,
    command,
    load_test,
    own_service,
    passed,
    start,
    surroundings,
    until_warm,
)

from loadtests.results import read

pytestmark = pytest.mark.integration

Serve = Callable[..., Service]
DEFAULT: dict[str, Any] = {"tokens": 8, "first_delay_ms": 20, "delay_ms": 5}


@pytest.fixture(scope="module")
def service(serve: Serve) -> Service:
    return serve(behaviour={"default": DEFAULT}).start().wait_ready()


def test_a_load_is_measured_stage_by_stage(service: Service) -> None:
    report = passed(
        *("load", "--url", service.url, "--answer", "8", "--arrivals", "constant"),
        *("--stage", "20/s:2s", "--stage", "1..20/s:2s", "--stage", "5u:2s"),
    )
    assert (report.scenario, report.target, report.model) == ("load", service.url, "chat")
    warm_up, even, ramp, users = report.stages
    assert not warm_up.stage.measured
    assert even.summary.requests == 40
    assert even.summary.offered_rate == pytest.approx(20)
    assert ramp.summary.requests == 21
    assert users.summary.requests > 20
    for result in (even, ramp, users):
        assert result.summary.whole == result.summary.requests
        assert result.summary.good == 1
        assert result.summary.ttft is not None
        assert 0.02 < result.summary.ttft.p50 < 0.1
    answered = [sample for sample in report.samples if sample.stage == 1]
    assert len(answered) == 40
    assert {sample.tokens_out for sample in answered} == {8}
    assert {(sample.version, sample.label) for sample in answered} == {("chat:1", "production")}
    assert {len(sample.gaps) for sample in answered} == {7}


def test_everything_is_in_the_files_it_leaves(service: Service) -> None:
    done = load_test("load", "--url", service.url, "--rate", "20", "--seconds", "1s")
    with (done.folder / "requests.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(done.report.samples)
    assert json.loads((done.folder / "report.json").read_text())["format"] == 1
    assert "<svg" in (done.folder / "report.html").read_text()
    assert f"The report: {done.folder / 'report.html'}" in done.out


@pytest.mark.parametrize("operation", ["completions", "chat"])
def test_each_operation_may_be_asked(service: Service, operation: str) -> None:
    report = passed(
        *("load", "--url", service.url, "--operation", operation),
        *("--rate", "20", "--seconds", "1s", "--warm-up", "0"),
    )
    assert {sample.operation for sample in report.samples} == {operation}


def test_conversations_go_on_with_what_was_answered(service: Service) -> None:
    report = passed(
        *("load", "--url", service.url, "--workload", "chat", "--think", "20ms", "--warm-up", "0"),
        *("--stage", "2u:1s", "--prefix", "30"),
    )
    lengths = [sample.tokens_in for sample in report.samples]
    assert len(set(lengths)) > 3


def test_a_file_of_ones_own_is_asked(service: Service, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "Hello world", "max_tokens": 3}\n')
    report = passed(
        *("load", "--url", service.url, "--file", str(path)),
        *("--rate", "10", "--seconds", "1s", "--warm-up", "0"),
    )
    assert {sample.tokens_out for sample in report.samples} == {3}


def test_workers_share_the_schedule_and_offer_the_same(service: Service) -> None:
    words = (
        *("load", "--url", service.url, "--rate", "40", "--seconds", "2s", "--warm-up", "0"),
        *("--prompt", "uniform:10:60"),
    )
    alone, together = passed(*words), passed(*words, "--workers", "2")

    def offered(report: object) -> list[tuple[float, int | None]]:
        first = alone if report is alone else together
        began = first.stages[0].began
        return sorted((round(s.due - began, 4), s.tokens_in) for s in first.samples)

    assert offered(alone) == offered(together)
    assert together.plan["generators"] == "2"


#: A worker that knows its messages only a while after its master knows it.
SLOW = """
import sys, gevent, locust
from loadtests import crew

begin = crew.Hand.__init__

def late(hand, runner):
    gevent.sleep(1)
    begin(hand, runner)

crew.Hand.__init__ = late
crew.work(sys.argv[1])
"""


@pytest.mark.parametrize(
    "program", [["-m", "loadtests", "worker"], ["-c", SLOW]], ids=["usual", "slow"]
)
def test_workers_of_other_machines_are_waited_for(
    program: list[str], service: Service, tmp_path: Path
) -> None:
    address = f"127.0.0.1:{free_port()}"
    master = start(
        tmp_path,
        "load",
        "--url",
        service.url,
        "--rate",
        "20",
        "--seconds",
        "1s",
        "--others",
        "1",
        "--bind",
        address,
    )
    other = subprocess.Popen([sys.executable, *program, address], cwd=PROJECT, env=surroundings({}))
    try:
        out, _ = master.communicate(timeout=60)
        assert master.returncode == 0, out
        assert other.wait(20) == 0
    finally:
        for process in (master, other):
            process.kill()
            process.wait()
    assert read(tmp_path / "report.json").stages[-1].summary.whole > 5


def test_a_sweep_finds_the_knee_of_an_engine_that_is_asked_too_much(
    serve: Serve,
) -> None:
    """One request at a time, each of a tenth of a second, is ten a second."""
    narrow = serve(
        behaviour={"default": {"tokens": 1, "first_delay_ms": 100}},
        settings={"limits": {"max_body_bytes": 65536, "in_flight": 1, "queue": 100}},
    )
    report = passed(
        *("sweep", "--seconds", "18s", "--rate", "4", "--arrivals", "constant"),
        *("--ttft", "300ms", "--answer", "1", "--url", narrow.start().wait_ready().url),
    )
    assert report.knee is not None
    assert 6 < report.knee.rate < 11
    assert report.knee.rate < report.knee.missed_at
    rates = [result.stage.rate for result in report.stages if result.stage.measured]
    assert rates[:3] == [4, 8, 16]


def test_an_slo_that_is_missed_is_exit_code_1(service: Service) -> None:
    done = load_test(
        *("load", "--url", service.url, "--rate", "20", "--seconds", "1s", "--ttft", "1ms")
    )
    assert done.code == 1
    assert "FAILED  SLO: 0.00% of" in done.out
    assert not done.report.passed


def test_a_knee_below_the_wanted_one_is_exit_code_1(service: Service) -> None:
    done = load_test(
        *("sweep", "--url", service.url, "--seconds", "2s", "--steps", "1", "--rate", "5"),
        *("--at-least", "50"),
    )
    assert done.code == 1
    assert "At least 50 were wanted" in done.out


def test_a_run_may_be_compared_with_an_earlier_one(serve: Serve, service: Service) -> None:
    words = ("load", "--rate", "20", "--seconds", "3s", "--url")
    fast = load_test(*words, service.url)
    slow = serve(behaviour={"default": {**DEFAULT, "first_delay_ms": 120}}).start().wait_ready()
    again = load_test(*words, slow.url, "--compare", str(fast.folder / "report.json"))
    assert (fast.code, again.code) == (0, 1)
    assert any("TTFT" in v.name and not v.passed for v in again.report.verdicts)
    back = load_test(*words, service.url, "--compare", str(again.folder / "report.json"))
    judged = {verdict.name: verdict.passed for verdict in back.report.verdicts}
    assert judged["TTFT p50"]
    assert judged["end to end p50"]
    assert "TTFT p99" not in judged  # of sixty requests


def test_a_late_generator_warns_that_its_times_are_wrong(service: Service) -> None:
    """Two thousand users in one process are more than it can look after in time."""
    done = load_test(
        *("load", "--url", service.url, "--stage", "400u:2s", "--answer", "64", "--warm-up", "0")
    )
    assert any("did not keep up" in warning for warning in done.report.warnings), done.out


def test_a_stopped_run_leaves_its_report(service: Service, tmp_path: Path) -> None:
    process = start(tmp_path, "load", "--url", service.url, "--rate", "20", "--seconds", "60s")
    until_warm(process)
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 130, out
    report = read(tmp_path / "report.json")
    assert not report.passed
    _, cut = report.stages
    assert cut.stage.seconds < 30
    assert cut.summary.requests == sum(sample.stage == 1 for sample in report.samples) > 10


# What goes wrong before anything is measured.


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nonsense"], "There is no scenario nonsense; there are sweep, load, swap"),
        (["load", "--seconds", "soon"], "'soon' is no time; write 200ms, 30s, 10m or 1h."),
        (["load", "--stage", "fast"], "'fast' is no stage; write 10/s:30s"),
        (["swap", "--stage", "1/s:1s"], "--stage belongs to the scenario load, not to swap."),
        (["load", "--prompt", "long"], "'long' is no length; write 128"),
        (["load", "--arrivals", "even"], "it is poisson, gamma or constant."),
        (["load", "--rate", "-1"], "--rate -1: it is above 0."),
        (["load", "--share", "150"], "'150' is no share"),
        (["load", "--workload", "heavy"], "There is no workload heavy; there are short"),
        (["load", "--file", "/nowhere.jsonl"], "/nowhere.jsonl cannot be read"),
        (["load", "--compare", "/nowhere.json"], "/nowhere.json cannot be read"),
        (["load", "--url", "http://127.0.0.1:9"], "No OpenAI-compatible server answers"),
        (["load", "--url", "nonsense"], "No OpenAI-compatible server answers at nonsense"),
        (["worker", "nowhere"], "'nowhere' is no address; write HOST:PORT."),
    ],
)
def test_a_bad_argument_is_one_sentence(words: list[str], told: str) -> None:
    assert told in load_test(*words).complaint


def test_a_folder_that_cannot_be_made_is_told_before_anything_is_asked(service: Service) -> None:
    done = subprocess.run(
        command(Path("/dev/null/results"), "load", "--url", service.url),
        cwd=PROJECT,
        env=surroundings({}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "The report could not be written to /dev/null/results (Not a directory)" in done.stderr


@pytest.mark.parametrize("model", ["chat:1", "chat@production"])
def test_a_version_or_label_may_be_asked(service: Service, model: str) -> None:
    report = passed(
        *("load", "--url", service.url, "--model", model, "--rate", "10", "--seconds", "1s"),
        *("--warm-up", "0"),
    )
    assert {sample.version for sample in report.samples} == {"chat:1"}


def test_a_model_that_is_not_served_is_told_with_those_that_are(service: Service) -> None:
    told = load_test("load", "--url", service.url, "--model", "talk").complaint
    assert "serves no model talk: name one of chat" in told


def test_a_key_that_is_no_header_is_told_and_not_shown(service: Service) -> None:
    done = load_test("load", "--url", service.url, SERVING_KEY="sk-secret\nx-other: y")
    assert "The key holds what no HTTP header can carry" in done.complaint
    assert "sk-secret" not in done.out + done.err


def test_a_workers_own_bad_key_ends_the_run(service: Service, tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    words = ("load", "--url", service.url, "--model", "chat", "--others", "1", "--bind", address)
    master = start(tmp_path, *words)
    worker = [sys.executable, "-m", "loadtests", "worker", address]
    environment = surroundings({"SERVING_KEY": "schlüssel"})
    other = subprocess.Popen(worker, cwd=PROJECT, env=environment)
    try:
        _, err = master.communicate(timeout=60)
    finally:
        for process in (master, other):
            process.kill()
            process.wait()
    assert master.returncode == 2
    assert "A load worker cannot work: The key holds" in err


def test_a_missing_and_a_wrong_key_are_told_and_the_right_one_is_taken(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    guarded = serve(settings={"auth": {"mode": "keys"}}, behaviour={"default": DEFAULT})
    monkeypatch.setenv("SERVING_CONFIG", str(guarded.config))
    guarded.start()
    eventually(lambda: guarded.status("/readyz") == 200, "ready")
    words = ("load", "--url", guarded.url, "--rate", "10", "--seconds", "1s")
    assert "it wants a key: put one" in load_test(*words).complaint
    wrong = load_test(*words, SERVING_KEY="sk-wrong").complaint
    assert "the key in SERVING_KEY is refused" in wrong
    assert "sk-wrong" not in wrong
    report = passed(*words, SERVING_KEY=new_key(guarded))
    assert report.stages[-1].summary.whole > 0


def test_a_service_that_does_not_start_says_why(serve: Serve, tmp_path: Path) -> None:
    broken = serve()
    broken.config.write_text("service: {name: test}\n")
    done = load_test("load", **own_service(broken))
    assert "serving.yaml" in done.complaint


def test_a_worker_that_goes_away_ends_the_run(service: Service, tmp_path: Path) -> None:
    import psutil

    process = start(
        tmp_path, "load", "--url", service.url, "--rate", "20", "--seconds", "60s", "--workers", "1"
    )
    try:
        me = psutil.Process(process.pid)
        worker = eventually(me.children, "the worker runs")[0]
        until_warm(process)
        worker.kill()
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 2
    assert "A load worker went away" in err


def test_a_server_that_is_none_of_ours_is_loaded_too(model_template: Path, tmp_path: Path) -> None:
    with bare_engine(tmp_path, model_template, **DEFAULT) as url:
        words = ("load", "--url", url, "--rate", "20", "--seconds", "1s")
        assert httpx.get(f"{url}/v1/models", timeout=5).status_code == 401
        report = passed(*words, "--model", "chat", SERVING_KEY=KEY)
    assert report.stages[-1].summary.whole > 5
