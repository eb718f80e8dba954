"""One run: its stages, and what its scenario notes, measures and judges."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import gevent
import msgspec

from loadtests.arrivals import schedule
from loadtests.asker import Asker, Question, Target
from loadtests.clock import Clock
from loadtests.crew import LEAD, Crew, CrewError, Setup
from loadtests.figures import summarize
from loadtests.machine import machine
from loadtests.options import Options
from loadtests.own_service import context_length
from loadtests.results import (
    Event,
    Gauge,
    Knee,
    Report,
    Sample,
    Stage,
    StageResult,
    Table,
    Verdict,
)
from loadtests.service import CannotRun, Service
from loadtests.workload import WORDS, Plan, Scale, fit, measured

#: Seconds by which a generator may be late before its times are no longer to be trusted.
LATE = 0.01
#: The share of a CPU above which a generator of one process is itself what is slow.
BUSY = 0.8
#: What is asked where it does not matter what.
HELLO = " ".join(WORDS[:8])


class _UnderWay(NamedTuple):
    """A stage that is offered: by which number, since when, and how many samples there were."""

    stage: Stage
    number: int
    began: float
    before: int


def plain(model: str) -> str:
    """A model's own name: without the label or version that a client may add."""
    return re.split("[@:]", model, maxsplit=1)[0]


@dataclass
class Session:
    """What a scenario works with. `told` is called with each line worth reading as it happens."""

    scenario: str
    options: Options
    service: Service
    model: str
    folder: Path
    told: Callable[[str], None]
    target: Target = field(init=False)
    plan: Plan = field(init=False)
    samples: list[Sample] = field(default_factory=list)
    stages: list[StageResult] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    gauges: dict[str, Gauge] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    knee: Knee | None = None

    def __post_init__(self) -> None:
        self._began = datetime.now(UTC)
        self._epoch = time.time()
        self._clock = Clock(self._epoch)
        self._numbers = 0
        self._pulses: list[tuple[float, float, float]] = []
        self._crew: Crew | None = None
        self._enough_at = math.inf
        self._under_way: _UnderWay | None = None

    def now(self) -> float:
        """Seconds since the run began."""
        return self._clock.now()

    # Before the load.

    def prepare(self, other: Callable[[Target], Target] | None = None) -> None:
        """Learns what the server makes of our words, and brings the load generators together.
        `other` names a second server to ask, given the first. Raises `CannotRun`."""
        served = self.service.models()
        if served and not {self.model, plain(self.model)} & set(served):
            raise CannotRun(
                f"{self.service.url} serves no model {self.model}: name one of "
                f"{', '.join(served)} with --model."
            )
        plan = self.options.plan
        self.target = Target(self.service.url, self.model, temperature=self.options.temperature)
        scale = Scale()
        if not plan.path:
            scale, fixed = self._calibrate(plan)
            self.target = Target(
                self.service.url,
                self.model,
                fixed_length=fixed and self.options.fixed_length,
                temperature=self.options.temperature,
            )
            context = self.options.context or context_length(plain(self.model)) or 0
            self.plan = fit(plan, context, scale) if context else plan
            if self.plan != plan:
                self.told(f"The work is cut to fit a window of {context} tokens.")
        else:
            self.plan = plan
        setup = Setup(
            [self.target, *([other(self.target)] if other else [])],
            self.plan,
            scale,
            self.options.seed,
            self._epoch,
            self.options.patience,
        )
        self._crew = Crew(
            setup,
            self.samples.extend,
            lambda late, cpu: self._pulses.append((self.now(), late, cpu)),
            workers=self.options.workers,
            others=self.options.others,
            bind=self.options.bind,
        )

    def _calibrate(self, plan: Plan) -> tuple[Scale, bool]:
        """How many tokens our words are, and whether answers can be given a length."""
        fixed = plan.operation != "embeddings" and self._ask(fixed=True).outcome == "whole"
        scale = measured(lambda text: self.ask_once(text).tokens_in)
        if scale is None:
            self.warn(
                "The server tells no usage: lengths are taken for words, and TPOT is missing."
            )
            return Scale(0.0, 1.0), fixed
        return scale, fixed

    def ask_once(self, text: str = HELLO) -> Sample:
        """A request besides the load, for one token. Raises `CannotRun` when it is not answered."""
        sample = self._ask(text, fixed=False)
        if sample.outcome != "whole":
            raise CannotRun(
                f"{self.service.url} does not answer a first request of {self.model} "
                f"({sample.operation}): {sample.error or sample.outcome}."
            )
        return sample

    def _ask(self, text: str = HELLO, *, fixed: bool) -> Sample:
        operation = self.options.plan.operation
        messages = [{"role": "user", "content": text}]
        question = Question(operation, messages, text, None if operation == "embeddings" else 1)
        asker = Asker(
            Target(self.service.url, self.model, fixed_length=fixed, temperature=None),
            os.environ.get("SERVING_KEY", ""),
            self._clock,
            self.options.patience,
        )
        try:
            return asker.ask(question, stage=0, due=self.now())[0]
        finally:
            asker.close()

    def close(self) -> None:
        if self._crew is not None:
            self._crew.close()

    # The load.

    def warm_up(self) -> None:
        """A little of the same work, which nobody counts."""
        if self.options.warm_up:
            stage = Stage(
                "warm-up", self.options.warm_up, arrivals="users", users=2, measured=False
            )
            self.run(stage)

    def run(self, stage: Stage, *, work: int | None = None) -> StageResult:
        """Offers the stage and waits for its answers. `work`: the number whose work is offered; two
        stages of one number offer the same. Raises `CannotRun`."""
        assert self._crew is not None
        self._numbers += 1
        number = self._numbers if work is None else work
        self._under_way = _UnderWay(stage, number, self.now() + LEAD, len(self.samples))
        self._enough_at = math.inf
        try:
            self._crew.run(number, stage, self._under_way.began)
        except CrewError as error:
            raise CannotRun(str(error)) from None
        return self._end_stage()

    def _end_stage(self) -> StageResult:
        """What came of the stage under way."""
        assert self._under_way is not None
        stage, number, began, before = self._under_way
        self._under_way = None
        samples = self.samples[before:]
        for sample in samples:
            sample.stage = len(self.stages)
        ended = min(began + stage.seconds, self._enough_at)
        if ended == self._enough_at:
            stage = msgspec.structs.replace(stage, seconds=max(0.001, ended - began))
        offered = None
        if stage.arrivals != "users" and self.plan.turns == 1 and not self.plan.path:
            offered = len(schedule(stage, (self.options.seed, number)))
        summary = summarize(samples, self.options.slo, began, ended, offered)
        finished = max([ended, *(sample.end for sample in samples)])
        result = StageResult(stage, began, ended, finished, summary)
        self.stages.append(result)
        return result

    def start(self, stage: Stage) -> Running:
        """Offers the stage while the scenario does something else."""
        return Running(self, stage)

    def enough(self) -> None:
        """Ends the running stage before its time; its answers are waited for."""
        assert self._crew is not None
        self._enough_at = self.now()
        self._crew.enough()

    def of(self, *results: StageResult) -> list[Sample]:
        """The samples of those stages."""
        places = {self.stages.index(result) for result in results}
        return [sample for sample in self.samples if sample.stage in places]

    @property
    def running(self) -> Stage | None:
        return self._under_way.stage if self._under_way else None

    # What a scenario has to say.

    def note(self, kind: str, text: str) -> None:
        """An event, for the timeline."""
        self.events.append(Event(self.now(), kind, text))
        self.told(text)

    def warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)

    def gauge(self, name: str, unit: str, value: float) -> None:
        gauge = self.gauges.setdefault(name, Gauge(name, unit))
        gauge.at.append(self.now())
        gauge.values.append(value)

    def table(self, title: str, columns: list[str], rows: list[list[str]]) -> None:
        self.tables.append(Table(title, columns, rows))

    def judge(self, name: str, passed: bool, text: str) -> None:
        self.verdicts.append(Verdict(name, passed, text))

    def judge_slo(self, *results: StageResult) -> None:
        """Only where somebody said what is wanted."""
        if not self.options.slo_given:
            return
        slo = self.options.slo
        samples = self.of(*results)
        good = sum(slo.met_by(sample) for sample in samples)
        share = good / len(samples) if samples else 0.0
        self.judge(
            "SLO",
            share >= slo.share,
            f"{share:.2%} of {len(samples)} requests met it ({slo.share:.4g} wanted).",
        )

    def judge_whole(self, samples: list[Sample], *, refusals: bool = False) -> None:
        """No answer broke, and there were some. With `refusals`, being refused is no break."""
        whole = sum(sample.outcome == "whole" for sample in samples)
        refused = sum(sample.outcome == "refused" for sample in samples)
        broken = len(samples) - whole - refused * refusals
        told = f", {refused} refused" if refusals and refused else ""
        self.judge(
            "no broken answers",
            whole > 0 and broken == 0,
            f"{whole} of {len(samples)} answers were whole{told}, {broken} broke.",
        )

    # The end.

    def report(self) -> Report:
        if self._under_way is not None:  # the run was stopped in it
            self._enough_at = min(self._enough_at, self.now())
            self._end_stage()
        self._check_generators()
        return Report(
            scenario=self.scenario,
            began=self._began.isoformat(timespec="seconds"),
            seconds=self.now(),
            target=self.service.url,
            model=self.model,
            slo=self.options.slo,
            machine=machine(),
            plan=self.options.described(self.plan) if hasattr(self, "plan") else {},
            stages=self.stages,
            events=self.events,
            gauges=list(self.gauges.values()),
            tables=self.tables,
            verdicts=self.verdicts,
            warnings=self.warnings,
            knee=self.knee,
            samples=self.samples,
        )

    def _check_generators(self) -> None:
        """A generator that is itself too slow measures itself."""
        spans = [(r.began, r.finished) for r in self.stages if r.stage.measured]
        seen = [p for p in self._pulses if any(a <= p[0] <= b for a, b in spans)]
        if not seen:
            return
        late = sorted(late for _, late, _ in seen)[int(len(seen) * 0.9)]
        busy = sorted(cpu for *_, cpu in seen)[int(len(seen) * 0.9)]
        behind = max((r.summary.late_p99 for r in self.stages if r.stage.measured), default=0.0)
        if late > LATE or busy > BUSY or behind > LATE:
            self.warn(
                f"The load generator did not keep up: its loop was {late * 1000:.0f} ms late, it "
                f"took {busy:.0%} of a CPU and sent {behind * 1000:.0f} ms after schedule, each at "
                "its worst. Times are too long by as much: use --workers, or another machine."
            )


class Running:
    """A stage under way."""

    def __init__(self, session: Session, stage: Stage) -> None:
        self._greenlet = gevent.spawn(session.run, stage)
        self._seconds = stage.seconds
        self._session = session
        self._began = session.now()

    def until(self, share: float) -> None:
        """Waits until that share of the stage's time is over."""
        wait = self._began + share * self._seconds - self._session.now()
        if wait > 0:
            gevent.sleep(wait)

    @property
    def over(self) -> bool:
        return bool(self._greenlet.ready())

    def finish(self) -> StageResult:
        """Ends it before its time, and waits for its answers."""
        self._session.enough()
        return self.wait()

    def wait(self) -> StageResult:
        result: StageResult = self._greenlet.get()
        return result
