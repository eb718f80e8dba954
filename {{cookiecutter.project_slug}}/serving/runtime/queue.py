"""Requests that wait for a place on one of a version's replicas.

Callers take turns, so that one with a thousand requests does not keep another's single one waiting
(fair queueing: Nagle, RFC 970). When the line is full, the newest request of whoever has the most
in it makes room (McKenney, "Stochastic Fairness Queueing", 1990).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from serving.contract.errors import ApiError, overloaded

Place = TypeVar("Place")


@dataclass(slots=True, eq=False)
class Turn(Generic[Place]):
    """One request that waits. `opening` tells how its conversation begins."""

    opening: Callable[[], str]
    place: asyncio.Future[Place | None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Line(Generic[Place]):
    """`length` requests wait in it."""

    def __init__(self) -> None:
        self.length = 0
        self._callers: dict[str, deque[Turn[Place]]] = {}  # whose turn is next comes first

    def join(self, caller: str, opening: Callable[[], str], most: int) -> Turn[Place]:
        """Raises `ApiError` (503) when `most` requests wait and the caller has its share of them.
        The turn is to be waited for, and to be left however that ends."""
        while self.length >= most:
            self._displace(caller)
        turn = Turn[Place](opening)
        self._callers.setdefault(caller, deque()).append(turn)
        self.length += 1
        return turn

    def leave(self, caller: str, turn: Turn[Place]) -> None:
        """Does nothing for a turn that has come."""
        turns = self._callers.get(caller)
        if turns is not None and turn in turns:
            turns.remove(turn)
            self._taken(caller, turns)

    def next(self) -> Turn[Place]:
        """Takes the one whose turn it is out of the line."""
        caller, turns = next(iter(self._callers.items()))
        turn = turns.popleft()
        self._callers[caller] = self._callers.pop(caller)  # behind all others
        self._taken(caller, turns)
        return turn

    def dissolve(self) -> None:
        """All who wait look again where they can go: here there is nothing to wait for any more."""
        while self.length:
            turn = self.next()
            if not turn.place.done():
                turn.place.set_result(None)

    def _displace(self, caller: str) -> None:
        own = len(self._callers.get(caller, ()))
        greediest = max(self._callers, key=lambda who: len(self._callers[who]), default=caller)
        turns = self._callers.get(greediest, deque())
        if len(turns) <= own + 1:
            raise _full()
        turn = turns.pop()
        self._taken(greediest, turns)
        if not turn.place.done():
            turn.place.set_exception(_full())

    def _taken(self, caller: str, turns: deque[Turn[Place]]) -> None:
        self.length -= 1
        if not turns:
            del self._callers[caller]


def _full() -> ApiError:
    return overloaded("Too many requests wait for the model already; ask again in a moment.")
