"""Which of a version's replicas gets a request."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from hashlib import blake2b
from operator import attrgetter

from serving.runtime.replica import Replica

#: How much more than its fair share of the running requests a replica may have for the sake of its
#: cache.
HEADROOM = 1.25

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
    text = opening().encode()

    def weight(replica: Replica) -> bytes:
        return blake2b(text, digest_size=8, salt=replica.index.to_bytes(2)).digest()

    most = math.ceil(HEADROOM * (sum(map(_in_flight, replicas)) + 1) / len(replicas))
    ranked = sorted(replicas, key=weight, reverse=True)
    return next(replica for replica in ranked if replica.in_flight < most)


BALANCING = {"least_in_flight": least_in_flight, "prefix": by_prefix}
