"""Which one version has the memory of a model that is swapped in place.

The new version starts when the old one is gone. When its first start fails, the old one comes back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass
class Place:
    """The place in memory of one model: `number` has it, or gets it as soon as it is free. While
    `swapping` no version has answered there since `before` left; that one comes back if need be.
    `failed` are those that were tried since a version answered, so that none is tried for ever.
    Where versions can sleep, `asleep` is the one that answered there last, which need not start to
    come back."""

    sleeps: bool = False
    asleep: int | None = None
    number: int | None = None
    before: int | None = None
    swapping: bool = False
    failed: set[int] = field(default_factory=set)

    def choose(
        self,
        asked: Sequence[int],
        *,
        ready: Callable[[int], bool],
        failed: Callable[[int], bool],
    ) -> None:
        """Gives the place to the first of those `asked` for that has not failed, or else back to
        who had it."""
        now = self.number
        if now is not None and ready(now):
            self.before, self.swapping = None, False
            self.failed.clear()
        known = [*asked, *(n for n in (now, self.before) if n is not None)]
        self.failed.update(n for n in known if failed(n))
        chosen = next((n for n in known if n not in self.failed), now or known[0])
        if chosen == now:
            self.swapping = self.swapping and now not in self.failed
            return
        if self.sleeps:
            left = now if now is not None and ready(now) else self.asleep
            self.asleep = None if left == chosen else left
        self.number = chosen
        self.swapping = now is not None
        self.before = None if now in self.failed else now
