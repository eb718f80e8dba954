"""A version goes live under load, and back. Not one stream may break.

Of two versions in the store, production goes to the other (or to --version) and returns. A service
started for this run gets a second version of the same weights when it has one only. The load lasts
for as long as the swaps take, and `--seconds` more before, between and after them together.
"""

from __future__ import annotations

from collections.abc import Sequence

import gevent

from loadtests.figures import spread
from loadtests.results import Sample
from loadtests.scenarios.versions import Production, other_version
from loadtests.session import Running, Session
from loadtests.words import seconds

SECONDS, USERS = 30.0, 4
#: Answers that a version gives before production moves on, and seconds for them.
ANSWERS, PATIENCE = 5, 120.0
#: Seconds for all of it: models that take long to load do so here too.
LONGEST = 7200.0


def run(session: Session) -> None:
    options, model = session.options, session.model
    session.prepare()
    with Production(session) as production:
        old, new = production.version, other_version(session, production.version)
        session.warm_up()
        load = options.stage("swap", LONGEST, users=USERS)
        running = session.start(load)
        pause = (options.seconds or SECONDS) / 3
        _go_on(session, running, pause, old)
        moves = []
        for version in (new, old):
            began = session.now()
            session.note("swap begins", f"{model}:{version} is loaded for production.")
            production.move(version)
            moves.append((began, session.now()))
            session.note("swapped", f"{model}@production is {model}:{version}.")
            _go_on(session, running, pause, version)
        result = running.finish()
    samples = session.of(result)
    session.judge_whole(samples)
    answered = {sample.version for sample in samples if sample.outcome == "whole"}
    wanted = {f"{model}:{old}", f"{model}:{new}"}
    session.judge(
        "both versions answered",
        answered == wanted,
        f"{', '.join(sorted(answered)) or 'none'} answered; {', '.join(sorted(wanted))} had to.",
    )
    session.judge_slo(result)
    session.table(
        "What clients felt",
        ["", "requests", "TTFT p50", "TTFT p99", "ITL p50", "ITL p99", "longest gap"],
        [
            _row("outside the swaps", [s for s in samples if not _in(s, moves)]),
            _row("during a swap", [s for s in samples if _in(s, moves)]),
        ],
    )


def _go_on(session: Session, running: Running, seconds: float, version: int) -> None:
    """The load goes on for those seconds, and until the version has given answers enough."""
    tag, began = f"{session.model}:{version}", session.now()
    before = len(session.samples)
    while not running.over and (past := session.now() - began) < PATIENCE:
        answers = sum(sample.version == tag for sample in session.samples[before:])
        if past >= seconds and answers >= ANSWERS:
            return
        gevent.sleep(0.1)


def _in(sample: Sample, moves: Sequence[tuple[float, float]]) -> bool:
    return any(sample.sent < end and sample.end > begin for begin, end in moves)


def _row(name: str, samples: list[Sample]) -> list[str]:
    ttft = spread([sample.ttft for sample in samples if sample.ttft is not None])
    itl = spread([gap for sample in samples for gap in sample.gaps])
    return [
        name,
        str(len(samples)),
        *((seconds(ttft.p50), seconds(ttft.p99)) if ttft else ("", "")),
        *((seconds(itl.p50), seconds(itl.p99), seconds(itl.max)) if itl else ("", "", "")),
    ]
