"""CPU time and memory of a program with all its processes."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil

#: By process and thread: CPU nanoseconds so far.
Times = dict[tuple[int, int], int]


class Tree:
    """A program's process and those below it; but for those with `without` in their command line,
    and what is below them."""

    def __init__(self, pid: int, without: str | None = None) -> None:
        self._root = psutil.Process(pid)
        self._without = without

    def processes(self) -> list[psutil.Process]:
        found, todo = [], [self._root]
        while todo:
            process = todo.pop()
            if self._without is None or not any(self._without in a for a in process.cmdline()):
                found.append(process)
                todo += process.children()
        return found

    def cpu(self) -> Times:
        return {key: time for process in self.processes() for key, time in _times(process).items()}

    def memory(self) -> int:
        """Resident bytes; what processes share is counted for each."""
        return sum(process.memory_info().rss for process in self.processes())


def used(before: Times, after: Times) -> float:
    """The CPU seconds between two readings."""
    return sum(time - before.get(key, 0) for key, time in after.items()) / 1e9


def _times(process: psutil.Process) -> Times:
    """Linux counts in nanoseconds for each thread; elsewhere there are only hundredths of seconds
    for all of the process."""
    if not Path("/proc/self/schedstat").exists():
        spent = process.cpu_times()
        return {(process.pid, 0): int((spent.user + spent.system) * 1e9)}
    times: Times = {}
    for task in Path(f"/proc/{process.pid}/task").iterdir():
        with contextlib.suppress(OSError):  # it ended just now
            times[process.pid, int(task.name)] = int((task / "schedstat").read_text().split()[0])
    return times
