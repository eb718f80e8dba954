"""What an answer took, however it ended."""

from __future__ import annotations

from serving.accounts.ledger import Entry
from serving.contract.events import Delta, EngineEvent, ReasoningTokens, Usage
from serving.runtime.outcome import Outcome


def cut(*events: EngineEvent, counted: Usage | None = None) -> Entry:
    """The line of an answer that was cut short after these events, to a prompt of about 9."""
    outcome = Outcome("chat", 3, "", "vllm")
    outcome.note([*events])
    outcome.counted = counted
    outcome.cut_short(9)
    entry = Entry("r", None, "chat", 499)
    outcome.enter(entry)
    return entry


def tokens(entry: Entry) -> tuple[int, int, int]:
    return entry.prompt_tokens, entry.completion_tokens, entry.reasoning_tokens


WORD = EngineEvent([Delta(0, "a")])
THOUGHT = EngineEvent([Delta(0, "", reasoning="Hm")])


def test_an_answer_cut_short_is_what_its_engine_had_counted() -> None:
    counted = Usage(4, 7, 11, completion_tokens_details=ReasoningTokens(2))
    assert tokens(cut(WORD, WORD, counted=counted)) == (4, 7, 2)


def test_where_the_engine_had_counted_nothing_it_is_the_pieces_that_came() -> None:
    assert tokens(cut(THOUGHT, WORD, WORD)) == (9, 3, 1)


def test_an_answer_of_which_nothing_came_took_nothing() -> None:
    assert tokens(cut()) == (0, 0, 0)


def test_the_count_of_the_whole_answer_is_the_last_word() -> None:
    entry = cut(WORD, EngineEvent(usage=Usage(4, 8, 12)), counted=Usage(4, 7, 11))
    assert tokens(entry) == (4, 8, 0)
