"""Which of a version's replicas gets a request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from operator import attrgetter
from zlib import crc32

from serving.runtime.replica import Replica

#: How much more than its fair share of the running requests a replica may have for the sake of its
#: cache.
HEADROOM = 1.25

#: Openings are told apart by so many hashes.
SLOTS = 1 << 16

_64_BITS = (1 << 64) - 1
_in_flight = attrgetter("in_flight")


def least_in_flight(replicas: Sequence[Replica], _: Callable[[], str]) -> Replica:
    """The one with the least to do."""
    return min(replicas, key=_in_flight)


def by_prefix(replicas: Sequence[Replica], opening: Callable[[], str]) -> Replica:
    """The one that answered the same opening before, whose KV cache has it, unless that one has too
    much to do; then the next that would have got it without that one.

    Rendezvous hashing (Thaler and Ravishankar, 1998), with the bound on loads of "Consistent
    Hashing with Bounded Loads" (Mirrokni, Thorup and Zadimoghaddam, 2016).
    """
    order = _order(tuple(replicas), crc32(opening().encode()) % SLOTS)
    running = 1  # this one
    for replica in order:
        running += replica.in_flight
    most = HEADROOM * running / len(order)
    for replica in order:
        if replica.in_flight < most:
            return replica
    raise AssertionError("somebody has no more than the mean")


@lru_cache(maxsize=1 << 14)
def _order(replicas: tuple[Replica, ...], slot: int) -> list[Replica]:
    """Whom openings of a slot prefer; kept, because it costs more than all the rest of routing."""
    return sorted(replicas, key=lambda replica: _mixed(slot << 16 | replica.index), reverse=True)


def _mixed(number: int) -> int:
    """All of its bits in each of the result's: the finalizer of SplitMix64 (Steele, Lea and Flood,
    2014)."""
    number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 & _64_BITS
    number = (number ^ number >> 27) * 0x94D049BB133111EB & _64_BITS
    return number ^ number >> 31


BALANCING = {"least_in_flight": least_in_flight, "prefix": by_prefix}
