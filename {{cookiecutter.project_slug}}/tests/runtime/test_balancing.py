"""Which replica gets a request: the idlest, or the one that knows how it begins."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import cast

import pytest

from serving.contract.chat import ChatRequest
from serving.contract.completions import CompletionRequest
from serving.runtime.balancing import by_prefix, least_in_flight
from serving.runtime.replica import Replica


@dataclass(eq=False)
class Fake:
    """What balancing needs of a replica."""

    index: int
    in_flight: int


def replicas(*in_flight: int) -> list[Replica]:
    return [cast(Replica, Fake(index, count)) for index, count in enumerate(in_flight)]


def chosen(opening: str, among: list[Replica]) -> int:
    return by_prefix(among, lambda: opening).index


def test_the_idlest_is_taken() -> None:
    assert least_in_flight(replicas(3, 1, 2), str).index == 1


def test_one_opening_meets_one_replica_and_openings_are_spread() -> None:
    idle = replicas(0, 0, 0, 0)
    met = Counter(chosen(f"opening {n}", idle) for n in range(4000))
    assert set(met) == {0, 1, 2, 3}
    # Four standard deviations of a binomial with n = 4000, p = 1/4.
    assert all(abs(count - 1000) < 4 * (4000 * 0.25 * 0.75) ** 0.5 for count in met.values())
    assert [chosen("once", idle) for _ in range(10)] == [chosen("once", idle)] * 10


def test_a_replica_that_is_gone_moves_only_its_own_openings() -> None:
    whole = replicas(0, 0, 0, 0)
    for n in range(200):
        before = chosen(f"opening {n}", whole)
        after = chosen(f"opening {n}", [r for r in whole if r.index != 3])
        assert before in (after, 3)


def test_no_replica_gets_much_more_than_its_share_for_the_sake_of_its_cache() -> None:
    among = replicas(0, 0, 0, 0)
    for _ in range(100):
        by_prefix(among, lambda: "the same for everybody").in_flight += 1
    counts = sorted(replica.in_flight for replica in among)
    assert counts[-1] <= 1.25 * 100 / 4 + 1
    assert counts[-1] > 25


@pytest.mark.parametrize("loads", [(0,), (5, 5), (0, 0, 9), (7, 0)])
def test_there_is_always_one(loads: tuple[int, ...]) -> None:
    assert chosen("x", replicas(*loads)) in range(len(loads))


def test_the_turns_of_a_conversation_begin_alike_and_other_conversations_do_not() -> None:
    def opening(*said: tuple[str, str]) -> str:
        messages = [{"role": role, "content": content} for role, content in said]
        return ChatRequest.model_validate({"model": "chat", "messages": messages}).opening()

    first = [("system", "Be kind."), ("user", "Hello")]
    later = [*first, ("assistant", "Hi!"), ("user", "Who are you?")]
    assert opening(*first) == opening(*later)
    assert opening(*first) != opening(("system", "Be kind."), ("user", "Bye"))
    assert opening(("assistant", "Hi!"))


def test_a_completion_begins_as_its_prompt_does() -> None:
    long = CompletionRequest(model="chat", prompt="x" * 5000)
    assert long.opening() == CompletionRequest(model="chat", prompt="x" * 4000).opening()
