"""A steady rate, a spike of several times as much, the steady rate again: what the spike costs, and
how soon it is over."""

from __future__ import annotations

from loadtests.results import Sample, StageResult
from loadtests.session import Session
from loadtests.words import seconds

SECONDS, RATE = 60.0, 2.0


def run(session: Session) -> None:
    options = session.options
    session.prepare()
    session.warm_up()
    length = (options.seconds or SECONDS) / 3
    before = session.run(options.stage("before", length, rate=RATE))
    session.note("spike", f"{options.factor:g} times the load.")
    spike = session.run(options.stage("spike", length, rate=RATE, times=options.factor))
    session.note("spike over", "The load is what it was.")
    after = session.run(options.stage("after", length, rate=RATE))
    samples = session.of(before, spike, after)
    session.judge_whole(samples, refusals=True)
    # What the spike left is worked off before "after" begins: its own answers are waited for.
    left = spike.finished - spike.ended
    session.judge(
        "recovered",
        _as_before(session, before, after),
        f"{after.summary.good:.1%} of the requests were good after the spike, "
        f"{before.summary.good:.1%} before it; its last answer came {seconds(left)} after its end.",
    )
    session.judge_slo(before, after)
    session.table(
        "Before, during and after the spike",
        ["", "offered/s", "answered/s", "good", "refused", "TTFT p50", "TTFT p99"],
        [_row(result) for result in (before, spike, after)],
    )
    _show_refusals(session, session.of(spike))


def _as_before(session: Session, before: StageResult, after: StageResult) -> bool:
    return after.summary.good >= min(before.summary.good, session.options.slo.share) - 0.01


def _row(result: StageResult) -> list[str]:
    summary = result.summary
    ttft = summary.ttft
    return [
        result.stage.name,
        f"{summary.offered_rate:.3g}",
        f"{summary.achieved_rate:.3g}",
        f"{summary.good:.1%}",
        str(summary.refused),
        *((seconds(ttft.p50), seconds(ttft.p99)) if ttft else ("", "")),
    ]


def _show_refusals(session: Session, samples: list[Sample]) -> None:
    refused = [sample.latency for sample in samples if sample.outcome == "refused"]
    if refused:
        session.table(
            "Refusals during the spike",
            ["refused", "told after, at most"],
            [[str(len(refused)), seconds(max(refused))]],
        )
