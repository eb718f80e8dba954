"""Reports as a load test would leave them, made of seeded chance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from loadtests import figures
from loadtests.results import (
    Event,
    Gauge,
    Knee,
    Outcome,
    Report,
    Sample,
    Slo,
    Stage,
    StageResult,
    Table,
    Verdict,
)

SLO = Slo(ttft=0.5, tpot=0.05)
PLAN = {"seed": "1", "workload": "chat", "arrivals": "poisson", "stages": "2, 4, 8, 16/s of 20 s"}
MACHINE = {"cpu": "2 × Xeon", "memory": "8 GiB", "python": "3.11.7", "locust": "2.47.0"}
#: Errors that would be markup, were they not escaped.
ERROR = '503 <script>alert("x")</script> & no replica is ready'


def made_report(
    rates: Sequence[float] = (2, 4, 8, 16),
    seconds: float = 20.0,
    seed: int = 0,
    slower: float = 1.0,
    tokens: int = 24,
    versions: Sequence[str] = ("",),
    wrong: float = 0.01,
) -> Report:
    """Latency grows with the rate up to 18/s, and is multiplied by `slower`.

    The share `wrong` of the requests is refused, fails or is truncated. Versions follow each other.
    """
    rng = np.random.default_rng(seed)
    stages = [Stage("warm-up", 5.0, rate=2.0, measured=False)]
    stages += [Stage(f"{rate:g}/s", seconds, rate=rate) for rate in rates]
    report = Report(
        scenario="capacity",
        began="2026-11-26T12:00:00Z",
        seconds=5.0 + len(rates) * seconds,
        target="http://127.0.0.1:3000",
        model="chat",
        slo=SLO,
        machine=dict(MACHINE),
        plan=dict(PLAN),
    )
    began = 0.0
    for number, stage in enumerate(stages):
        count = round(stage.rate * stage.seconds)
        busy = 1 / max(0.1, 1 - stage.rate / 18)
        due = np.sort(rng.uniform(began, began + stage.seconds, count))
        ttfts = 0.08 * busy * slower * rng.lognormal(0, 0.5, count)
        gaps = 0.012 * slower * busy**0.3 * rng.lognormal(0, 0.4, (count, tokens - 1))
        kinds: list[Outcome] = ["refused", "failed", "truncated"]
        bad = rng.uniform(size=count) < wrong
        samples = []
        for i in range(count):
            outcome = kinds[int(rng.integers(3))] if bad[i] else "whole"
            version = versions[min(int(i / count * len(versions)), len(versions) - 1)]
            samples.append(
                _sample(number, float(due[i]), float(ttfts[i]), gaps[i].tolist(), outcome, version)
            )
        report.samples += samples
        ended = began + stage.seconds
        finished = max([ended, *(sample.end for sample in samples)])
        summary = figures.summarize(samples, SLO, began, ended)
        report.stages.append(StageResult(stage, began, ended, finished, summary))
        began = ended
    return report


def _sample(
    stage: int, due: float, ttft: float, gaps: list[float], outcome: Outcome, version: str
) -> Sample:
    sample = Sample(stage, "chat", due, due + 0.001, ttft + sum(gaps), outcome, status=200)
    sample.version = version
    if outcome in ("whole", "truncated"):
        sample.ttft, sample.gaps, sample.tokens_in = ttft, gaps, 60
        sample.tokens_out, sample.finish = len(gaps) + 1, "stop"
    if outcome != "whole":
        sample.status = {"refused": 503, "failed": 500, "truncated": 200}[outcome]
        sample.error = ERROR if outcome == "refused" else f"{outcome}: the stream ended"
    return sample


def full_report() -> Report:
    """One that has something in every place of the page."""
    report = made_report(versions=("v0007", "v0008"), seed=3, wrong=0.02)
    report.verdicts = [
        Verdict("no failed requests", True, "0 of 600 requests failed."),
        Verdict("TTFT p99", False, "p99 was 2.1 s at 16/s, and at most 500 ms are allowed."),
    ]
    report.warnings = [
        "The load generator was 35 ms late at p99: its figures may be too good.",
        "The machine had other work: load average 3.2 on 2 cores.",
    ]
    report.knee = Knee(4.0, 8.0)
    report.events = [
        Event(25.0, "swap", "chat: v0007 → v0008"),
        Event(46.5, "killed", "replica 1 of chat, with SIGKILL"),
        Event(49.0, "ready", "replica 1 of chat is ready again"),
    ]
    at = [float(second) for second in range(int(report.seconds))]
    grown = [180 + 20 * (1 - 2 ** (-second / 10)) for second in at]
    report.gauges = [
        Gauge("gateway memory", "MiB", at, grown),
        Gauge("gateway CPU", "%", at, [30 + 25 * (second // 20) for second in at]),
        Gauge("requests waiting", "", at, [max(0.0, second - 70) * 2 for second in at]),
    ]
    report.tables = [
        Table(
            "Versions that answered",
            ["version", "requests", "TTFT p50", "share"],
            [["v0007", "295", "96 ms", "49.2 %"], ["v0008", "305", "101 ms", "50.8 %"]],
        )
    ]
    return report
