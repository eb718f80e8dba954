"""The same load for a long time, and whether the gateway grows by it."""

from __future__ import annotations

from itertools import accumulate

import gevent
import numpy as np
import psutil

from loadtests.results import Sample
from loadtests.service import CannotRun
from loadtests.session import Running, Session

SECONDS, USERS = 600.0, 4
#: Figures of the first part are of a process that is still filling its caches.
SETTLED = 0.4
#: What a process may grow by from there to the end: allocators and caches breathe.
GROWTH = 0.10
#: Open files that come and go; and for each request at once its client's and its engine's socket,
#: which are kept for the next one.
FILES, SOCKETS = 8, 2


def run(session: Session) -> None:
    options = session.options
    session.prepare()
    process = session.service.process()
    if process is None:
        raise CannotRun(
            f"The soak watches the processes of the service, and none of this machine listens at "
            f"{session.service.url}: run it where the service runs."
        )
    session.warm_up()
    running = session.start(options.stage("soak", options.seconds or SECONDS, users=USERS))
    engines = {replica.pid for replica in session.service.replicas(session.model)}
    _watch(session, process, engines, running)
    result = running.wait()
    samples = session.of(result)
    session.judge_whole(samples)
    _judge_growth(session, FILES + SOCKETS * _most_at_once(samples))
    session.judge_slo(result)


def _watch(
    session: Session, process: psutil.Process, engines: set[int | None], running: Running
) -> None:
    while not running.over:
        try:
            family = [process, *process.children(recursive=True)]
            gateway = [p for p in family if p.pid not in engines]
            engine = [p for p in family if p.pid in engines]
            session.gauge("gateway memory", "MiB", sum(map(_memory, gateway)))
            session.gauge("gateway open files", "", sum(p.num_fds() for p in gateway))
            session.gauge("engine memory", "MiB", sum(map(_memory, engine)))
        except psutil.NoSuchProcess:
            pass  # one that ended meanwhile; what that means, the answers tell
        gevent.sleep(1.0)


def _memory(process: psutil.Process) -> float:
    rss: int = process.memory_info().rss
    return rss / 2**20


def _most_at_once(samples: list[Sample]) -> int:
    moves = [move for s in samples for move in ((s.sent, 1), (s.end, -1))]
    return max(accumulate(step for _, step in sorted(moves)), default=0)


def _judge_growth(session: Session, files: int) -> None:
    for name, gauge in session.gauges.items():
        if name.startswith("engine"):
            continue  # an engine's memory is its KV cache, which fills: shown, not judged
        values = np.asarray(gauge.values[int(len(gauge.values) * SETTLED) :])
        if len(values) < 6:
            session.judge(name, False, "The soak was too short to tell: give it --seconds.")
            continue
        third = len(values) // 3
        before, after = np.median(values[:third]), np.median(values[-third:])
        limit = max(before * GROWTH, 8.0) if gauge.unit else files
        unit = f" {gauge.unit}" if gauge.unit else ""
        session.judge(
            f"{name} does not grow",
            bool(after - before <= limit),
            f"{before:.0f}{unit} once settled, {after:.0f}{unit} at the end "
            f"({limit:.0f}{unit} more are allowed).",
        )
