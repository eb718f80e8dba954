"""The arithmetic and the judgement of the benchmark beside peers; its figures are for `make
bench-peers` to measure."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from answers import fault
from figures import Column, Sample, against, apart, table
from processes import Tree, used


def answer(texts: list[str], *, reason: str | None = "stop", done: bool = True) -> bytes:
    deltas: list[Any] = [
        {"role": "assistant", "content": ""},
        *({"content": text} for text in texts),
    ]
    chunks: list[Any] = [{"choices": [{"delta": delta, "finish_reason": None}]} for delta in deltas]
    chunks.append({"choices": [{"delta": {}, "finish_reason": reason}]})
    chunks.append({"choices": [], "usage": {"completion_tokens": len(texts)}})
    events = [*map(json.dumps, chunks), *(["[DONE]"] if done else [])]
    return "".join(f"data: {event}\n\n" for event in events).encode()


def test_the_cost_of_a_token_and_of_a_request_are_told_apart_by_two_lengths() -> None:
    def cost(requests: int, length: int) -> Sample:
        return Sample(requests, requests * length, requests * (800e-6 + length * 25e-6))

    assert apart(cost(500, 16), cost(100, 128)) == pytest.approx((25, 800))


def test_a_ratio_is_that_of_the_same_round() -> None:
    assert against([1, 20, 300], [1, 10, 100]) == 2
    assert against([1.0], []) is None
    assert against([1.0], [0.0]) is None


def test_a_table_shows_the_spread_and_leaves_out_what_was_not_measured() -> None:
    column = Column("us")
    for value in (10, 30, 20):
        column.note("gateway", value)
        column.note("peer", value * 2)
    lines = table("a title", ["gateway", "peer", "other"], [column], "gateway").splitlines()
    assert lines[0] == "a title"
    assert lines[2].split() == ["gateway", "10.0", "20.0", "30.0", "(", "1.00)"]
    assert lines[3].split() == ["peer", "20.0", "40.0", "60.0", "(", "2.00)"]
    assert lines[4].split() == ["other", "-"]


def test_a_whole_answer_has_no_fault() -> None:
    assert fault(answer(["w0", " w1", " w2"]), 3) == ""


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (answer(["w0", " w1"], done=False), "[DONE]"),
        (b"", "[DONE]"),
        (answer(["w0"]), "2 tokens came in 1 events"),
        (answer(["w0 w1"]), "2 tokens came in 1 events"),
        (answer([" w1", "w0"]), "another"),
        (answer(["w0", " w1"], reason=None), "finish reason"),
    ],
)
def test_what_is_wrong_with_an_answer_is_said(body: bytes, what: str) -> None:
    assert what in fault(body, 2)


def test_the_cpu_of_a_program_is_that_of_its_processes_but_for_the_engine() -> None:
    code = (
        "import subprocess, sys\n"
        "subprocess.Popen([sys.executable, '-c', 'input()', 'eng' + 'ine'])\n"
        "print(sum(range(10**6)), flush=True)\n"
        "input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        whole, without = Tree(process.pid), Tree(process.pid, without="engine")
        assert process.stdout is not None
        process.stdout.readline()
        found = whole.processes()
        try:
            assert len(found) == 2
            assert [one.pid for one in without.processes()] == [process.pid]
            assert used({}, without.cpu()) > 0
            assert without.memory() < whole.memory()
        finally:
            for one in found:
                one.kill()
