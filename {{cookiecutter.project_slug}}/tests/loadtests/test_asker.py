"""What the client of one request felt, from an engine that does as it is told."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from live_service import free_port
from load_testing import KEY, bare_engine
from scripted_engine import script

from loadtests.asker import Asker, Question, Target
from loadtests.results import Operation, Sample

pytestmark = pytest.mark.integration


class Now:
    def now(self) -> float:
        return time.monotonic()


@pytest.fixture(scope="module")
def engine(model_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with bare_engine(tmp_path_factory.mktemp("engine"), model_template) as url:
        yield url


def ask(
    url: str,
    operation: Operation = "chat",
    *,
    key: str = KEY,
    patience: float = 20,
    dialect: Literal["openai", "transformers"] = "openai",
    **fields: Any,
) -> tuple[Sample, str]:
    prompt = script(**fields)
    asker = Asker(Target(url, "chat", dialect=dialect), key, Now(), patience)
    try:
        return asker.ask(
            Question(operation, [{"role": "user", "content": prompt}], prompt, 64), stage=0, due=0
        )
    finally:
        asker.close()


@pytest.mark.parametrize("operation", ["chat", "completions"])
def test_a_stream_is_measured_from_the_outside(engine: str, operation: Operation) -> None:
    sample, _ = ask(engine, operation, tokens=5, first_delay_ms=200, delay_ms=60)
    assert (sample.outcome, sample.error, sample.status) == ("whole", "", 200)
    assert (sample.tokens_out, sample.finish) == (5, "stop")
    assert sample.tokens_in
    assert sample.ttft is not None
    assert 0.2 <= sample.ttft < 0.3
    assert len(sample.gaps) == 4
    assert all(0.03 < gap < 0.12 for gap in sample.gaps)
    assert sample.latency == pytest.approx(sample.ttft + sum(sample.gaps), abs=0.05)
    assert sample.tpot == pytest.approx(0.06, abs=0.01)


def test_the_answers_text_is_what_the_next_turn_needs(engine: str) -> None:
    _, text = ask(engine, text="It is Paris.")
    assert text == "It is Paris."


def test_tokens_are_counted_by_usage_and_not_by_events(engine: str) -> None:
    sample, _ = ask(engine, tokens=30, delay_ms=2, per_write=10)
    assert sample.tokens_out == 30
    assert sample.tpot is not None
    assert sample.ttft is not None
    assert sample.tpot == pytest.approx((sample.latency - sample.ttft) / 29)


def test_a_thought_is_content(engine: str) -> None:
    sample, text = ask(engine, tokens=6, thoughts=3, first_delay_ms=100, delay_ms=50)
    assert sample.ttft is not None
    assert sample.ttft < 0.2
    assert len(sample.gaps) == 5
    assert text.split() == ["w3", "w4", "w5"]


def test_events_cut_anywhere_are_whole_events(engine: str) -> None:
    sample, text = ask(engine, text="Größe ändert nichts 🙂", cut=3)
    assert (sample.outcome, text) == ("whole", "Größe ändert nichts 🙂")


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        ("no_done", "truncated"),
        ("no_end", "truncated"),
        ("reset", "truncated"),
        ("error_event", "failed"),
        ("status_429", "refused"),
        ("status_503", "refused"),
        ("status_500", "failed"),
        ("not_http", "failed"),
    ],
)
def test_how_an_answer_ended_is_told_apart(engine: str, fault: str, outcome: str) -> None:
    sample, _ = ask(engine, tokens=8, fault=fault)
    assert sample.outcome == outcome
    assert sample.error
    assert sample.outcome != "whole"


def test_a_bare_transformers_serve_is_asked_in_its_own_dialect(
    model_template: Path, tmp_path: Path
) -> None:
    with bare_engine(tmp_path, model_template, dialect="transformers") as url:
        sample, text = ask(url, dialect="transformers", tokens=5)
    assert (sample.outcome, sample.tokens_out, sample.finish) == ("whole", 5, "stop")
    assert text.split() == ["w0", "w1", "w2", "w3", "w4"]


def test_an_answer_that_takes_too_long_is_a_failure(engine: str) -> None:
    sample, _ = ask(engine, fault="stall", patience=0.5)
    assert sample.outcome == "failed"
    assert sample.error == "no whole answer within 0.5 s"
    assert sample.latency == pytest.approx(0.5, abs=0.2)


def test_a_server_that_is_not_there_is_a_failure(engine: str) -> None:
    sample, _ = ask(f"http://127.0.0.1:{free_port()}")
    assert (sample.outcome, sample.error) == ("failed", "Connection refused")


def test_a_wrong_key_is_a_failure_that_names_the_status(engine: str) -> None:
    sample, _ = ask(engine, key="wrong")
    assert (sample.outcome, sample.status) == ("failed", 401)
    assert sample.error.startswith("401")
