"""Two runs side by side: what is slower, and whether chance alone would do that.

Only stages that both runs have, with the same load, are compared. A difference counts when its 95 %
interval is all on one side of none, and when it is more than a tolerance. Requests of one second
meet one queue and are no independent witnesses: chance is judged by how times differ, not requests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from loadtests import figures
from loadtests.figures import Clusters, Interval, Statistic
from loadtests.measures import E2E, ITL, TPOT, TTFT, Measure
from loadtests.results import Report, Sample, Slo, Stage, Table, Verdict
from loadtests.words import seconds

#: A stage is cut into so many times of equal length, whose requests are drawn together.
TIMES = 30
#: Of fewer values, a p99 is what one moment of a busy machine did to a handful of them: it is left
#: out of the comparison.
TAIL = 500

_COLUMNS = ["stage", "measure", "old", "new", "change", "95 % interval", "judged"]


class _Part(NamedTuple):
    """The counted samples of a stage, and the time of each: a number from 0 to below `TIMES`."""

    stage: Stage
    samples: list[Sample]
    times: NDArray[np.int64]


class _Change(NamedTuple):
    """As it is to be read, and whether it is for the worse."""

    old: str
    new: str
    change: str
    interval: str
    worse: bool


_Compared = Callable[[Sequence[_Part], Sequence[_Part], float], _Change | None]


def compare(
    old: Report, new: Report, tolerance: float = 0.05, seed: int = 0
) -> tuple[Table, list[Verdict]]:
    """What changed from `old` to `new`, by stage and over all stages that both have.

    A verdict for each measure fails when the new run is worse beyond the 95 % interval, and by more
    than the part `tolerance` of the old value. Where no stage is common to both, the only verdict
    says so. Both are held to the old run's SLO.
    """
    table = Table(f"{old.began} against {new.began}", list(_COLUMNS), [])
    common = _common(old, new)
    if old.scenario != new.scenario or not common:
        return table, [Verdict("comparable", False, _incomparable(old, new))]
    compared = _compared(old.slo, seed)
    verdicts = []
    pooled = [one for one, _ in common.values()], [other for _, other in common.values()]
    for name, change_of in compared.items():
        for stage, (one, other) in common.items():
            if (change := change_of([one], [other], tolerance)) is not None:
                table.rows.append(_row(stage, name, change))
        if (change := change_of(*pooled, tolerance)) is not None:
            if len(common) > 1:
                table.rows.append(_row("all of these", name, change))
            text = f"{change.old} before, {change.new} now: {change.change} ({change.interval})."
            verdicts.append(Verdict(name, not change.worse, text))
    table.rows.sort(key=lambda row: [*common, "all of these"].index(row[0]))
    table.rows += _differences("plan", old.plan, new.plan)
    table.rows += _differences("machine", old.machine, new.machine)
    for stage, (one, other) in common.items():
        lengths = f"{one.stage.seconds:g} s", f"{other.stage.seconds:g} s"
        table.rows += _differences("seconds of", {stage: lengths[0]}, {stage: lengths[1]})
    if old.slo != new.slo:
        table.rows.append(["note", "SLO", "", "differs", "", "", "the old one is used"])
    if old.knee and new.knee:
        verdicts.append(_knees(old.knee.rate, new.knee.rate, tolerance))
    return table, verdicts


def _common(old: Report, new: Report) -> dict[str, tuple[_Part, _Part]]:
    olds, news = _parts(old), _parts(new)
    return {name: (part, news[name]) for name, part in olds.items() if _same(part, news.get(name))}


def _same(one: _Part, other: _Part | None) -> bool:
    """Whether both asked the same, for however long, and anything came of it."""
    if other is None or not one.samples or not other.samples:
        return False
    ignored = {"seconds", "measured"}
    fields = [field for field in Stage.__struct_fields__ if field not in ignored]
    return all(getattr(one.stage, name) == getattr(other.stage, name) for name in fields)


def _parts(report: Report) -> dict[str, _Part]:
    """The measured stages by name; of two with one name the second is `name 2`."""
    of_stage: dict[int, list[Sample]] = {}
    for sample in report.samples:
        of_stage.setdefault(sample.stage, []).append(sample)
    parts: dict[str, _Part] = {}
    for number, result in enumerate(report.stages):
        if not result.stage.measured:
            continue
        name, again = result.stage.name, 1
        if result.stage.target:
            name += f" · {result.stage.target}"
        plain = name
        while name in parts:
            again += 1
            name = f"{plain} {again}"
        samples = of_stage.get(number, [])
        length = max(result.ended - result.began, 1e-9) / TIMES
        sent = np.array([sample.sent for sample in samples])
        times = np.clip((sent - result.began) // length, 0, TIMES - 1).astype(np.int64)
        parts[name] = _Part(result.stage, samples, times)
    return parts


def _incomparable(old: Report, new: Report) -> str:
    if old.scenario != new.scenario:
        kinds = f"one is of the scenario {old.scenario}, the other of {new.scenario}"
        return f"The runs cannot be compared: {kinds}."
    had = [", ".join(_parts(report)) or "none" for report in (old, new)]
    return (
        f"The runs cannot be compared: no measured stage is in both. The old one has {had[0]};"
        f" the new one {had[1]}. Run the same plan again."
    )


def _row(stage: str, name: str, change: _Change) -> list[str]:
    judged = "worse" if change.worse else "passed"
    return [stage, name, change.old, change.new, change.change, change.interval, judged]


def _differences(kind: str, old: Mapping[str, str], new: Mapping[str, str]) -> list[list[str]]:
    """A row for each entry that is not the same: the reader judges whether that matters."""
    return [
        ["note", f"{kind}: {name}", old.get(name, "–"), new.get(name, "–"), "", "", "differs"]
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    ]


def _knees(old: float, new: float, tolerance: float) -> Verdict:
    text = f"The SLO held up to {old:g} requests/s before, and to {new:g} now."
    return Verdict("knee", new >= old * (1 - tolerance), text)


def _compared(slo: Slo, seed: int) -> dict[str, _Compared]:
    """What is compared, by its name."""

    def latency(statistic: Statistic, measure: Measure) -> _Compared:
        return lambda old, new, tolerance: _latency(statistic, measure, old, new, tolerance, seed)

    def share(of: Callable[[Sample], bool], more_is_worse: bool) -> _Compared:
        return lambda old, new, tolerance: _share(of, more_is_worse, old, new, tolerance)

    return {
        "TTFT p50": latency(figures.median, TTFT),
        "TTFT p99": latency(figures.p99, TTFT),
        "TPOT p50": latency(figures.median, TPOT),
        "ITL p99": latency(figures.p99, ITL),
        "end to end p50": latency(figures.median, E2E),
        "end to end p99": latency(figures.p99, E2E),
        "tokens/s": lambda old, new, tolerance: _tokens(old, new, tolerance, seed),
        "good": share(slo.met_by, more_is_worse=False),
        "failed or truncated": share(
            lambda sample: sample.outcome in ("failed", "truncated"), more_is_worse=True
        ),
    }


def _latency(
    statistic: Statistic,
    measure: Measure,
    old: Sequence[_Part],
    new: Sequence[_Part],
    tolerance: float,
    seed: int,
) -> _Change | None:
    before, old_clusters = _values(measure, old)
    after, new_clusters = _values(measure, new)
    if min(len(before), len(after)) < (TAIL if statistic is figures.p99 else 1):
        return None
    clusters = new_clusters, old_clusters
    change = figures.difference(statistic, after, before, seed, clusters)
    was, now = statistic(before), statistic(after)
    worse = change.low > 0 and change.value > tolerance * was
    return _relative(seconds, was, now, change, worse)


def _values(measure: Measure, parts: Sequence[_Part]) -> tuple[NDArray[np.float64], Clusters]:
    """Those of the whole answers."""
    values: list[float] = []
    counts: list[int] = []
    for part in parts:
        for sample in part.samples:
            found = measure.of(sample) if sample.outcome == "whole" else ()
            values.extend(found)
            counts.append(len(found))
    return np.array(values, dtype=np.float64), _clusters(parts, counts)


def _clusters(parts: Sequence[_Part], counts: Sequence[int]) -> Clusters:
    """Of values of which the samples have so many each: the number of stage and time."""
    times = np.concatenate([part.times + i * TIMES for i, part in enumerate(parts)])
    clusters = np.repeat(times, counts)
    return Clusters(clusters // TIMES, clusters)


def _tokens(
    old: Sequence[_Part], new: Sequence[_Part], tolerance: float, seed: int
) -> _Change | None:
    """Tokens of whole answers a second, by the time in which they were asked for."""
    before, after = _token_rates(old), _token_rates(new)
    if not before.any():
        return None
    change = figures.difference(figures.mean, after, before, seed)
    was, now = figures.mean(before), figures.mean(after)
    worse = change.high < 0 and -change.value > tolerance * was
    return _relative(lambda rate: f"{rate:,.1f}", was, now, change, worse)


def _token_rates(parts: Sequence[_Part]) -> NDArray[np.float64]:
    """One for each time, brought to the mean of all stages: that stages differ is no chance."""
    rates = []
    for part in parts:
        tokens = [(s.tokens_out or 0) * (s.outcome == "whole") for s in part.samples]
        summed = np.bincount(part.times, weights=tokens, minlength=TIMES)
        rates.append(summed / (part.stage.seconds / TIMES))
    middle = np.mean([rate.mean() for rate in rates])
    return np.concatenate([rate - rate.mean() + middle for rate in rates])


def _share(
    of: Callable[[Sample], bool],
    more_is_worse: bool,
    old: Sequence[_Part],
    new: Sequence[_Part],
    tolerance: float,
) -> _Change:
    """The interval of a difference of shares is Newcombe's, out of two of Wilson's (1998)."""
    one, other = _counted(of, new), _counted(of, old)
    apart = one.value - other.value
    low = apart - float(np.hypot(one.value - one.low, other.high - other.value))
    high = apart + float(np.hypot(one.high - one.value, other.value - other.low))
    if more_is_worse:
        worse = low > 0 and apart > tolerance * other.value
    else:
        worse = high < 0 and -apart > tolerance * other.value
    return _Change(
        f"{other.value * 100:.2f} %",
        f"{one.value * 100:.2f} %",
        f"{_signed(apart)} points",
        f"{_signed(low)} to {_signed(high)} points",
        worse,
    )


def _counted(of: Callable[[Sample], bool], parts: Sequence[_Part]) -> Interval:
    held = np.array([of(sample) for part in parts for sample in part.samples])
    n = figures.independent(held, _clusters(parts, [1] * len(held)))
    return figures.share(float(held.mean()) * n, n)


def _relative(
    write: Callable[[float], str], was: float, now: float, change: Interval, worse: bool
) -> _Change:
    """`change`: by how much `now` is above `was`, in the same unit."""
    value, low, high = (f"{_signed(one / was)} %" if was else "–" for one in change)
    return _Change(write(was), write(now), value, f"{low} to {high}", worse)


def _signed(ratio: float) -> str:
    """In hundredths."""
    return f"{ratio * 100:+.1f}".replace("-", "−")
