"""One line of time for all processes of a run, and a look at whether this process keeps up."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

import gevent

#: Seconds between two looks; what a loop is late by is what every time stamp may be wrong by.
EVERY = 0.02
#: Seconds between two reports.
REPORT = 1.0


def still() -> None:
    """Takes what is loaded by now from the garbage collector: it stays, and walking it delays every
    time stamp."""
    gc.collect()
    gc.freeze()


class Clock:
    """Seconds since `epoch` (Unix time). Never goes back: the wall clock is read once."""

    def __init__(self, epoch: float) -> None:
        self._offset = time.time() - epoch - time.perf_counter()

    def now(self) -> float:
        return time.perf_counter() + self._offset


class Pulse:
    """Tells `report` once a second how late this process' loop was at worst, in seconds, and which
    share of one CPU it took."""

    def __init__(self, report: Callable[[float, float], None]) -> None:
        self._report = report

    def run(self) -> None:
        worst, began, cpu = 0.0, time.perf_counter(), time.process_time()
        while True:
            before = time.perf_counter()
            gevent.sleep(EVERY)
            now = time.perf_counter()
            worst = max(worst, now - before - EVERY)
            if now - began >= REPORT:
                self._report(worst, (time.process_time() - cpu) / (now - began))
                worst, began, cpu = 0.0, now, time.process_time()
