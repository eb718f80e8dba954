"""The work that is offered: of the lengths asked for, and the same of one seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadtests.asker import Question
from loadtests.lengths import Length, LengthError
from loadtests.prompts import PromptsError, Recorded
from loadtests.workload import PRESETS, WORDS, Plan, Scale, Workload, fit, measured

SCALE = Scale(fixed=0, per_word=1)


def questions(workload: Workload, *number: int, answer: str = "Yes.") -> list[Question]:
    """All turns of a conversation whose answers are all the same."""
    asked = []
    conversation = workload.conversation(*number)
    for question in conversation:
        asked.append(question)
        conversation.heard(answer)
    return asked


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_two_runs_of_a_seed_offer_the_same_work(name: str) -> None:
    one, other, third = (Workload(PRESETS[name], seed, SCALE) for seed in (1, 1, 2))
    assert questions(one, 3, 5) == questions(other, 3, 5)
    assert questions(one, 3, 5) != questions(third, 3, 5)
    assert questions(one, 3, 5) != questions(one, 3, 6)


def test_a_prompt_has_the_tokens_asked_for_by_the_servers_own_count() -> None:
    workload = Workload(Plan(prompt=Length("fixed", 100)), 0, Scale(fixed=10, per_word=1.5))
    (question,) = questions(workload, 1, 1)
    assert len(question.messages[0]["content"].split()) == 60
    assert question.max_tokens == 32


@pytest.mark.parametrize("frame", [0, 11])
def test_a_prompt_is_as_long_as_asked_for_where_rare_words_are_many_tokens(frame: int) -> None:
    def tokens(text: str) -> int:
        return frame + sum(1 + WORDS.index(word) // 60 for word in text.split())

    scale = measured(tokens)
    assert scale is not None
    assert scale.fixed == frame
    workload = Workload(Plan(prompt=Length("fixed", 100)), 0, scale)
    asked = [questions(workload, n)[0].messages[0]["content"] for n in range(400)]
    assert np.mean([tokens(text) for text in asked]) == pytest.approx(100, rel=0.02)


def test_a_server_that_counts_no_tokens_has_no_scale() -> None:
    assert measured(lambda _: None) is None
    assert measured(lambda _: 0) is None


@pytest.mark.parametrize(
    ("text", "mean", "low", "high"),
    [
        ("50", 50, 50, 50),
        ("uniform:10:90", 50, 10, 90),
        ("normal:50:5", 50, 25, 75),
        ("lognormal:50:0.1", 50.25, 25, 100),
    ],
)
def test_lengths_are_drawn_as_they_are_written(text: str, mean: float, low: int, high: int) -> None:
    length, rng = Length.parse(text), np.random.default_rng(0)
    drawn = [length.draw(rng) for _ in range(4000)]
    assert np.mean(drawn) == pytest.approx(mean, rel=0.02)
    assert low <= min(drawn) <= max(drawn) <= high
    assert str(length) == text


@pytest.mark.parametrize("text", ["", "-3", "x", "uniform:9:3", "normal:0:1", "pareto:1:2"])
def test_what_is_no_length_is_told_with_what_is(text: str) -> None:
    with pytest.raises(LengthError, match=r"write 128, uniform:64:256"):
        Length.parse(text)


def test_conversations_share_as_many_openings_as_there_are() -> None:
    plan = Plan(prefix=Length("fixed", 30), prefixes=3)
    workload = Workload(plan, 0, SCALE)
    asked = [questions(workload, 1, n)[0].messages for n in range(200)]
    assert len({messages[0]["content"] for messages in asked}) == 3
    assert {messages[0]["role"] for messages in asked} == {"system"}
    assert len({messages[1]["content"] for messages in asked}) == 200


def test_a_later_turn_has_all_that_was_said_before() -> None:
    one, two, three = questions(Workload(Plan(turns=3), 0, SCALE), 1, 1, answer="No.")
    assert [len(question.messages) for question in (one, two, three)] == [1, 3, 5]
    assert three.messages[:3] == two.messages
    assert two.messages[1] == {"role": "assistant", "content": "No."}
    assert one.user == three.user


@pytest.mark.parametrize("name", sorted(PRESETS))
@pytest.mark.parametrize("context", [256, 2048, 32768])
def test_work_that_is_cut_to_a_window_fits_it(name: str, context: int) -> None:
    scale = Scale(fixed=6, per_word=1.3)
    workload = Workload(fit(PRESETS[name], context, scale), 0, scale)
    for number in range(50):
        for question in questions(workload, 1, number, answer=""):
            said = [*(m["content"] for m in question.messages), question.text]
            frame = scale.fixed * max(1, len(question.messages))
            prompt = sum(len(text.split()) for text in said) * scale.per_word + frame
            answers = (question.max_tokens or 0) * (1 + len(question.messages) // 2)
            assert prompt + answers <= context * 1.05


def test_a_window_wide_enough_changes_nothing() -> None:
    assert fit(PRESETS["short"], 4096, SCALE) == PRESETS["short"]


# The user's own prompts.


def written(tmp_path: Path, *entries: Any, whole: bool = False) -> Path:
    path = tmp_path / "prompts.jsonl"
    text = json.dumps(entries) if whole else "\n".join(map(json.dumps, entries))
    path.write_text(text, "utf-8")
    return path


def own(path: Path, answer: Length | None = None) -> list[Question]:
    plan = Plan(answer=answer, path=str(path))
    return questions(Workload(plan, 0, SCALE, Recorded.read(path)), 1, 1)


def test_a_line_may_be_a_prompt(tmp_path: Path) -> None:
    (question,) = own(written(tmp_path, {"prompt": "Hello?", "max_tokens": 7}))
    assert question.messages == [{"role": "user", "content": "Hello?"}]
    assert question.max_tokens == 7


def test_a_line_may_be_messages_whose_answers_the_model_gives_anew(tmp_path: Path) -> None:
    said = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Recorded."},
        {"role": "user", "content": "Two?"},
    ]
    first, second = own(written(tmp_path, {"messages": said}), Length("fixed", 9))
    assert [message["content"] for message in first.messages] == ["Be short.", "One?"]
    assert [message["content"] for message in second.messages[2:]] == ["Yes.", "Two?"]
    assert first.max_tokens == 9


@pytest.mark.parametrize("whole", [True, False])
def test_sharegpts_answers_give_the_length_of_ours(tmp_path: Path, whole: bool) -> None:
    said = [
        {"from": "human", "value": "Hello?"},
        {"from": "gpt", "value": "one two three four five six seven eight nine ten"},
    ]
    nobody = {"conversations": [{"from": "gpt", "value": "I say nothing."}]}
    (question,) = own(written(tmp_path, nobody, {"id": "x", "conversations": said}, whole=whole))
    assert question.messages == [{"role": "user", "content": "Hello?"}]
    assert question.max_tokens == 13


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", r"Line 2 of .*prompts.jsonl is no JSON"),
        ('{"text": "Hello?"}', r"The line 2 of .*prompts.jsonl is no prompt; it may be"),
        ('{"prompt": "Hello?", "max_tokens": -1}', r"The line 2 of .* has max_tokens of -1"),
        ('{"messages": [{"role": "user", "content": [1]}]}', r"The line 2 .* no text of a known"),
        ('{"messages": [{"role": "assistant", "content": "x"}]}', r"has no message of a user"),
    ],
)
def test_a_bad_line_is_told_by_its_number(tmp_path: Path, line: str, told: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(f'{{"prompt": "Hello?"}}\n{line}\n', "utf-8")
    with pytest.raises(PromptsError, match=told):
        Recorded.read(path)


def test_a_file_that_is_missing_empty_or_no_text_is_told(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    with pytest.raises(PromptsError, match=r"cannot be read \(No such file"):
        Recorded.read(path)
    path.write_bytes(b"")
    with pytest.raises(PromptsError, match="holds no prompt"):
        Recorded.read(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(PromptsError, match="no text in UTF-8"):
        Recorded.read(path)
