"""The stages that were asked for, one after the other."""

from __future__ import annotations

from loadtests.session import Session

SECONDS, RATE = 30.0, 1.0


def run(session: Session) -> None:
    options = session.options
    session.prepare()
    session.warm_up()
    stages = options.stages or (options.stage("load", options.seconds or SECONDS, rate=RATE),)
    results = [session.run(stage) for stage in stages]
    session.judge_whole(session.of(*results), refusals=True)
    session.judge_slo(*results)
