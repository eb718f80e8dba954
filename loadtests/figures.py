"""The arithmetic of the benchmark beside peers, and its tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Sample:
    """What one load took: of the relay's CPU, in seconds beyond what it takes at rest."""

    requests: int
    tokens: int
    cpu: float


def apart(short: Sample, long: Sample) -> tuple[float, float]:
    """Microseconds of CPU for a token and for a request without its tokens. Two loads of different
    answer lengths tell them apart: both cost what their tokens and their requests cost."""
    short_cost, short_length = short.cpu / short.requests, short.tokens / short.requests
    long_cost, long_length = long.cpu / long.requests, long.tokens / long.requests
    token = (long_cost - short_cost) / (long_length - short_length)
    return token * 1e6, (short_cost - token * short_length) * 1e6


@dataclass
class Column:
    """One figure of each contender, a value for each round. `ratio`: whether to show it beside the
    gateway's."""

    head: str
    digits: int = 1
    ratio: bool = True
    values: dict[str, list[float]] = field(default_factory=dict)

    def note(self, name: str, value: float) -> None:
        self.values.setdefault(name, []).append(value)

    def cell(self, name: str, base: str) -> str:
        """Least, median and most, or the only one; and the median of the ratios round by round."""
        values = self.values.get(name)
        if not values:
            return "-"
        figures = [min(values), statistics.median(values), max(values)]
        if len(values) == 1:
            figures = values
        text = " ".join(f"{value:9,.{self.digits}f}" for value in figures)
        if not self.ratio:
            return text
        ratio = against(values, self.values.get(base, []))
        return text + (f" ({ratio:6.2f})" if ratio is not None else " (     -)")


def against(values: list[float], base: list[float]) -> float | None:
    """The median of the ratios, round by round; None where there is nothing to divide by."""
    if len(values) != len(base) or min(base) <= 0:
        return None
    return statistics.median(a / b for a, b in zip(values, base, strict=True))


def table(title: str, names: Iterable[str], columns: list[Column], base: str) -> str:
    rows = [("", *(column.head for column in columns))]
    rows += [(name, *(column.cell(name, base) for column in columns)) for name in names]
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if not at else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([title, *(f"  {line.rstrip()}" for line in lines)])


def listing(facts: Mapping[str, str]) -> str:
    return "\n".join(f"{name}: {fact}" for name, fact in facts.items())
