"""Engines killed at random moments under load. Answers may break then, but each must say so."""

from __future__ import annotations

import os
import signal
import time

import gevent
import numpy as np

from loadtests.service import CannotRun
from loadtests.session import Running, Session
from loadtests.words import count

SECONDS, USERS = 60.0, 4
#: Seconds for the last killed engine to be back.
PATIENCE = 300.0


def run(session: Session) -> None:
    options = session.options
    session.prepare()
    _victims(session)
    session.warm_up()
    running = session.start(options.stage("chaos", options.seconds or SECONDS, users=USERS))
    kills = _kill_at_random(session, running)
    result = running.wait()
    back = _back(session)
    samples = session.of(result)
    silent = [sample for sample in samples if sample.outcome == "truncated"]
    broken = sum(sample.outcome == "failed" for sample in samples)
    refused = sum(sample.outcome == "refused" for sample in samples)
    session.judge(
        "nothing silently truncated",
        not silent and kills > 0,
        f"{count(kills, 'engine')} killed: of {count(len(samples), 'answer')} {broken} broke and "
        f"said so, {refused} were refused, {len(silent)} ended as if they were complete.",
    )
    session.judge(
        "back again",
        back,
        "The service answers as before." if back else f"Not ready after {PATIENCE:g} s.",
    )


def _victims(session: Session) -> list[int]:
    """The engines' process ids. Raises `CannotRun` where they cannot be killed from here."""
    pids = [r.pid for r in session.service.replicas(session.model) if r.state == "ready" and r.pid]
    for pid in pids:
        try:
            os.kill(pid, 0)
        except OSError:
            raise CannotRun(
                f"The engines of {session.service.url} are not processes that this user of this "
                "machine may kill: run chaos where the service runs."
            ) from None
    return pids


def _kill_at_random(session: Session, running: Running) -> int:
    """Seeded moments, --rounds of them over the stage. Returns how many were killed."""
    rng = np.random.default_rng((session.options.seed, 7))
    kills = 0
    for share in np.sort(rng.uniform(0.1, 0.9, session.options.rounds)):
        running.until(float(share))
        victims = _victims(session)
        if not victims:
            session.note("nobody to kill", "No engine is ready at the moment.")
            continue
        pid = int(rng.choice(victims))
        os.kill(pid, signal.SIGKILL)
        kills += 1
        session.note("killed", f"Engine process {pid} was killed.")
    return kills


def _back(session: Session) -> bool:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if session.service.ready():
            try:
                session.ask_once()
            except CannotRun:
                return False
            session.note("back", "The service is ready and answers.")
            return True
        gevent.sleep(0.2)
    return False
