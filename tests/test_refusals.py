"""Impossible answers are refused with what to answer instead, and leave nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from baking import ANSWERS
from cookiecutter.exceptions import FailedHookException

Bake = Callable[..., Path]

SLUG = "answer 2 to 50 lower-case letters, digits and dashes"
NAME = "answer up to 63 lower-case letters, digits, dots, dashes and underscores"
LENGTH = "answer a number of tokens such as 4096"
GPUS = "answer 0 for a CPU, or 1 or more"
HUB = "answer ORG/NAME or ORG/NAME@REVISION"
PATH = "answer a path of letters, digits and"
LINE = "answer one line of plain text"

REFUSED: list[tuple[dict[str, str], str]] = [
    ({"project_name": ""}, "project_name is empty: answer a name"),
    ({"project_name": "   "}, "project_name is empty: answer a name"),
    ({"project_name": "two\nlines"}, LINE),
    ({"author": "two\nlines"}, LINE),
    ({"description": "a\ttab"}, LINE),
    *(
        ({"project_slug": slug}, SLUG)
        for slug in ("x", "Chat", "1chat", "my_chat", "my chat", "chat-", "-chat", "chät", "a" * 51)
    ),
    *(
        ({"served_model_name": name}, NAME)
        for name in ("", "Chat", "org/chat", "chat:1", "-chat", "chat-", "my chat", "a" * 64)
    ),
    *(
        ({"max_context_length": length}, LENGTH)
        for length in ("", "0", "-1", "4k", "4096.0", "1e3", "0512", " 512", "٤")
    ),
    ({"max_context_length": "1025"}, "answer 512, or choose another model_source"),
    *(({"gpus_per_replica": gpus}, GPUS) for gpus in ("", "-1", "one", "1.5", "01")),
    ({"gpus_per_replica": "2", "engine": "vllm"}, "tiny demo model: answer 0 or 1"),
    (
        {"gpus_per_replica": "2", "model_source": "huggingface"},
        "answer 1, or choose the engine vllm or sglang",
    ),
    *(
        ({"model_source": "huggingface", "model_id": model}, HUB)
        for model in ("", "gpt2", "org/", "/name", "a/b/c", "org/na me", "org/name@", "org/$(x)")
    ),
    ({"project_slug": "null"}, "project_slug 'null' is a word of YAML's own"),
    ({"model_source": "local", "model_id": ""}, "model_id is empty: answer the path"),
    *(
        ({"model_source": "local", "model_id": model}, PATH)
        for model in ("my models/x", "a;b", "$(x)", "a#b", "'a'", "-x")
    ),
]

ACCEPTED: list[dict[str, str]] = [
    {"project_slug": "ab"},
    {"project_slug": "a" * 50},
    {"served_model_name": "qwen3-0.6b_chat"},
    {"max_context_length": "1024"},
    {"gpus_per_replica": "1"},
    {"engine": "vllm", "gpus_per_replica": "0"},
    {"engine": "sglang", "gpus_per_replica": "0"},
    {"engine": "vllm", "model_source": "huggingface", "gpus_per_replica": "8"},
    {"model_source": "huggingface", "model_id": "org/name@refs/pr/1"},
    {"model_source": "local", "model_id": "~/models/Qwen3-0.6B"},
    *({"deployment": deployment} for deployment in ANSWERS["deployment"]),
]


@pytest.mark.parametrize(("answers", "reason"), REFUSED, ids=lambda value: str(value)[:60])
def test_an_impossible_answer_is_refused_with_its_reason_and_leaves_nothing(
    bake: Bake,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    answers: dict[str, str],
    reason: str,
) -> None:
    with pytest.raises(FailedHookException):
        bake(**answers)
    told = [line for line in capfd.readouterr().err.splitlines() if reason in line]
    assert len(told) == 1
    assert told[0].startswith(tuple(ANSWERS))
    assert list((tmp_path / "projects").iterdir()) == []


@pytest.mark.parametrize("answers", ACCEPTED, ids=str)
def test_an_answer_at_the_edge_of_what_is_possible_is_accepted(
    bake: Bake, answers: dict[str, str]
) -> None:
    assert (bake(**answers) / "serving.yaml").is_file()


def test_every_wrong_answer_is_told_on_a_line_of_its_own(
    bake: Bake, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(FailedHookException):
        bake(project_slug="X", gpus_per_replica="2", max_context_length="0")
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith(tuple(ANSWERS))]
    assert [line.split()[0] for line in told] == [
        "project_slug",
        "max_context_length",
        "gpus_per_replica",  # too many for the demo
        "gpus_per_replica",  # too many for transformers
    ]
