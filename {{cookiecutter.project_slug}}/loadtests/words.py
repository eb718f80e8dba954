"""Figures and names as people read them."""

from __future__ import annotations


def seconds(value: float) -> str:
    """As people read it: 0.82 ms, 12.3 ms, 123 ms, 1.23 s, 12.3 s, 123 s."""
    size, unit = (value, "s") if abs(value) >= 0.9995 else (value * 1000, "ms")
    digits = 0 if abs(size) >= 99.95 else 1 if abs(size) >= 9.995 else 2
    return f"{size:,.{digits}f} {unit}"


def span(value: float) -> str:
    """How long a run or stage took: 0.5 s, 45 s, 12 min 5 s, 20 min, 1 h 2 min."""
    if value < 60:
        return f"{value:.3g} s"
    whole = round(value)
    parts = [(whole // 3600, "h"), (whole % 3600 // 60, "min"), (whole % 60, "s")]
    if whole >= 3600:
        parts.pop()
    return " ".join(f"{count} {unit}" for count, unit in parts if count)


def percent(share: float) -> str:
    """100 % is said of all, never of nearly all; and 0 % of none."""
    if share in (0, 1):
        return f"{share * 100:.0f} %"
    digits = 1
    while round(share * 100, digits) in (0, 100) and digits < 4:
        digits += 1
    text = f"{share * 100:.{digits}f}"
    return f"{text.rstrip('0').rstrip('.') if digits == 1 else text} %"


def figure(value: float) -> str:
    """Three digits of a rate or count: 0.25, 12.3, 1,234."""
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:,.{digits}f}"


def count(number: int, what: str) -> str:
    """1 request, 2 requests."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def short(text: str, most: int = 30) -> str:
    """As much of its beginning and end as there is room for."""
    if len(text) <= most:
        return text
    return text[: most // 2] + "…" + text[-(most // 2 - 1) :]
