"""What a run is asked to do, checked."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from loadtests.results import Arrivals, Slo, Stage
from loadtests.workload import Plan

STAGE_FORMS = "10/s:30s, 1..20/s:1m (a ramp) or 50u:30s (users)"
_STAGE = re.compile(
    r"(?:(?:(?P<start>\d+(?:\.\d+)?)\.\.)?(?P<rate>\d+(?:\.\d+)?)/s|(?P<users>\d+)u):(?P<time>\S+)"
)
_TIME = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class OptionError(Exception):
    """The message says which option is wrong, and what it may be."""


def duration(text: str) -> float:
    """Seconds of `200ms`, `30s`, `10m` or `1h`. Raises `OptionError`."""
    parts = _TIME.fullmatch(text)
    if parts is None or float(parts[1]) == 0:
        raise OptionError(f"{text!r} is no time; write 200ms, 30s, 10m or 1h.")
    return float(parts[1]) * _UNITS[parts[2]]


def percentage(text: str) -> float:
    """A share of `99%` or `0.99`. Raises `OptionError`."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise OptionError(f"{text!r} is no share; write 99% or 0.99.")
    return value


@dataclass(frozen=True)
class Options:
    """`seconds`, `rate` and `users` of None leave it to the scenario."""

    plan: Plan
    slo: Slo = field(default_factory=Slo)
    slo_given: bool = False
    seed: int = 0
    arrivals: Arrivals = "poisson"
    burstiness: float = 1.0
    seconds: float | None = None
    rate: float | None = None
    users: int | None = None
    think: float = 0.0
    stages: tuple[Stage, ...] = ()
    steps: int = 6
    rounds: int = 5
    version: int | None = None
    percent: int = 50
    factor: float = 5.0
    at_least: float | None = None
    tolerance: float = 0.05
    engine_url: str | None = None
    fixed_length: bool = True
    temperature: float | None = 0.0
    context: int | None = None
    warm_up: float = 2.0
    patience: float = 120.0
    workers: int = 0
    others: int = 0
    bind: tuple[str, int] = ("127.0.0.1", 0)

    def stage(
        self,
        name: str,
        seconds: float,
        *,
        rate: float | None = None,
        users: int | None = None,
        times: float = 1.0,
        target: str = "",
    ) -> Stage:
        """A stage of the load that was asked for, by --users or --rate, or else of the scenario's
        own `rate` or `users`; `times` as much of it."""
        if self.users is not None or self.rate is not None:
            rate, users = self.rate, self.users
        if users is not None:
            count = max(1, round(users * times))
            return Stage(name, seconds, "users", users=count, think=self.think, target=target)
        assert rate is not None
        return Stage(
            name,
            seconds,
            self.arrivals,
            rate=rate * times,
            burstiness=self.burstiness,
            target=target,
        )

    def described(self, plan: Plan) -> dict[str, str]:
        """For the reader of a report; `plan` is the work as it was offered."""
        work = {
            "operation": plan.operation,
            "prompt tokens": str(plan.prompt),
            "answer tokens": str(plan.answer or "as the model likes"),
            "shared opening": f"{plan.prefix} tokens, {plan.prefixes} of them"
            if plan.prefix
            else "",
            "turns": f"{plan.turns}, {plan.think:g} s apart" if plan.turns > 1 else "",
        }
        if plan.path:
            work = {"operation": plan.operation, "prompts": Path(plan.path).name}
        return {
            **{name: value for name, value in work.items() if value},
            "seed": str(self.seed),
            "generators": str(self.workers + self.others or "this process"),
        }


def parse_stage(text: str, number: int, options: Options) -> Stage:
    """Raises `OptionError`."""
    parts = _STAGE.fullmatch(text)
    if parts is None:
        raise OptionError(f"{text!r} is no stage; write {STAGE_FORMS}.")
    seconds = duration(parts["time"])
    if parts["users"]:
        users = int(parts["users"])
        return Stage(f"{number}: {users} users", seconds, "users", users=users, think=options.think)
    rate, start = float(parts["rate"]), parts["start"]
    if rate == 0:
        raise OptionError(f"{text!r} is no stage: it asks nothing; write {STAGE_FORMS}.")
    return Stage(
        f"{number}: {start + ' to ' if start else ''}{rate:g}/s",
        seconds,
        options.arrivals,
        rate=rate,
        ramp_from=float(start) if start else None,
        burstiness=options.burstiness,
    )
