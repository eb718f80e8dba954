"""A version goes live under load, and back. Not one stream may break.

Of two versions in the store, production goes to the other (or to --version) and returns. A service
started for this run gets a second version of the same weights when it has one only.
"""

from __future__ import annotations

from collections.abc import Sequence

from loadtests.figures import spread
from loadtests.results import Sample
from loadtests.scenarios.versions import Production, other_version
from loadtests.session import Session
from loadtests.words import seconds

SECONDS, USERS = 40.0, 4


def run(session: Session) -> None:
    options, model = session.options, session.model
    session.prepare()
    with Production(session) as production:
        old, new = production.version, other_version(session, production.version)
        session.warm_up()
        stage = options.stage("swap", options.seconds or SECONDS, users=USERS)
        running = session.start(stage)
        running.until(0.15)
        moves = []
        for share, version in ((0.55, new), (1.0, old)):
            began = session.now()
            session.note("swap begins", f"{model}:{version} is loaded for production.")
            production.move(version)
            moves.append((began, session.now()))
            session.note("swapped", f"{model}@production is {model}:{version}.")
            running.until(share)
        result = running.wait()
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
