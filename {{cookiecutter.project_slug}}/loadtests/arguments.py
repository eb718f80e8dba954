"""What was written on the command line, checked and typed.

Each function raises `OptionError` with one sentence: which option, and what it may be.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from loadtests.lengths import Length
from loadtests.options import OptionError, duration, percentage
from loadtests.prompts import Recorded
from loadtests.results import Arrivals, Operation, Slo
from loadtests.workload import PRESETS, Plan

#: What a reader waits for, and what keeps ahead of one, where nobody says otherwise.
SLO = Slo(ttft=1.0, tpot=0.1)


def plan_of(
    workload: str,
    operation: str | None,
    prompt: str | None,
    answer: str | None,
    prefix: str | None,
    prefixes: int | None,
    turns: int | None,
    think: str | None,
    file: Path | None,
) -> Plan:
    if workload not in PRESETS:
        raise OptionError(f"There is no workload {workload}; there are {', '.join(PRESETS)}.")
    given = {
        "operation": None if operation is None else _operation(operation),
        "prompt": None if prompt is None else Length.parse(prompt),
        "answer": None if answer is None else Length.parse(answer),
        "prefix": None if prefix is None else Length.parse(prefix),
        "prefixes": None if prefixes is None else within("--prefixes", prefixes, 1, 1_000_000),
        "turns": None if turns is None else within("--turns", turns, 1, 1000),
        "think": None if think is None else duration(think),
        "path": None if file is None else str(file.absolute()),
    }
    if file is not None:
        Recorded.read(file)
    plan = PRESETS[workload]
    return msgspec.structs.replace(plan, **{k: v for k, v in given.items() if v is not None})


def slo_of(ttft: str | None, tpot: str | None, e2e: str | None, share: str) -> Slo:
    part = percentage(share)
    if not any((ttft, tpot, e2e)):
        return msgspec.structs.replace(SLO, share=part)
    bounds = [None if text is None else duration(text) for text in (ttft, tpot, e2e)]
    return Slo(bounds[0], bounds[1], bounds[2], part)


def _operation(text: str) -> Operation:
    match text:
        case "chat" | "completions" | "embeddings":
            return text
    raise OptionError(f"--operation {text!r}: it is chat, completions or embeddings.")


def arrivals_of(text: str) -> Arrivals:
    match text:
        case "poisson" | "gamma" | "constant":
            return text
    raise OptionError(f"--arrivals {text!r}: it is poisson, gamma or constant.")


def within(name: str, value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise OptionError(f"{name} {value}: it is between {low} and {high}.")
    return value


def above_zero(name: str, value: float) -> float:
    if not value > 0:
        raise OptionError(f"{name} {value:g}: it is above 0.")
    return value


def address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal():
        raise OptionError(f"--bind {text!r}: write HOST:PORT.")
    return host, int(port)
