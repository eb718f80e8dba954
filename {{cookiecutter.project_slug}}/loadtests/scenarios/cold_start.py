"""The time from nothing to the first token, by phase, on a service started for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise

import gevent
import httpx

from loadtests.figures import spread
from loadtests.own_service import OwnService
from loadtests.service import CannotRun
from loadtests.session import Session
from loadtests.words import seconds

PHASES = {
    "process": "until the gateway answers",
    "load": "until the engine answers",
    "warm-up": "until the version is ready",
    "first token": "of the first request",
}
#: States of a version whose engine does not answer yet.
NOT_LOADED = frozenset({"", "unavailable", "loading"})
POLL = 0.02


def run(session: Session) -> None:
    service = session.service
    if not isinstance(service, OwnService):
        raise CannotRun("A cold start is of a service started for it: leave --url out.")
    session.prepare()
    starts = []
    for number in range(1, session.options.rounds + 1):
        service.stop()
        session.note("stopped", f"Start {number} begins from nothing.")
        service.start()
        starts.append(_watch(session, service))
        session.note("ready", f"First token after {seconds(sum(starts[-1].values()))}.")
    rows = [_row(name, [start[name] for start in starts]) for name in PHASES]
    session.table(
        f"{len(starts)} cold starts",
        ["phase", "", "median", "shortest", "longest"],
        [*rows, _row("all", [sum(start.values()) for start in starts])],
    )
    longest = max(sum(start.values()) for start in starts)
    limit = session.options.seconds
    session.judge(
        "first token came",
        limit is None or longest <= limit,
        f"after {seconds(longest)} at the latest"
        + (f"; {seconds(limit)} were allowed." if limit else "."),
    )


def _row(name: str, took: list[float]) -> list[str]:
    over = spread(took)
    assert over is not None
    return [name, PHASES.get(name, ""), *map(seconds, (over.p50, min(took), over.max))]


def _watch(session: Session, service: OwnService) -> dict[str, float]:
    """Seconds of each phase. The states are those that `serving status` tells."""
    marks = [service.started]
    _until(service, lambda: service.get("/livez").status_code == 200)
    marks.append(time.perf_counter())
    _until(service, lambda: _state(session, service) not in NOT_LOADED)
    marks.append(time.perf_counter())
    _until(service, service.ready)
    marks.append(time.perf_counter())
    sample = session.ask_once()
    marks.append(marks[-1] + (sample.ttft or sample.latency))
    return dict(zip(PHASES, (after - before for before, after in pairwise(marks)), strict=True))


def _state(session: Session, service: OwnService) -> str:
    versions = service.status()["models"][session.model]["versions"]
    return str(versions[-1]["state"]) if versions else ""


def _until(service: OwnService, ask: Callable[[], bool]) -> None:
    while True:
        try:
            if ask():
                return
        except httpx.HTTPError:
            pass  # not yet
        service.check_alive()
        gevent.sleep(POLL)
