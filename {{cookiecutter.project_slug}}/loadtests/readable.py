"""Figures as people read them."""

from __future__ import annotations


def seconds(value: float) -> str:
    """0.82 ms, 12.3 ms, 123 ms, 1.23 s, 12.3 s, 123 s."""
    size, unit = (value, "s") if abs(value) >= 0.9995 else (value * 1000, "ms")
    digits = 0 if abs(size) >= 99.95 else 1 if abs(size) >= 9.995 else 2
    return f"{size:,.{digits}f} {unit}"


def count(number: int, what: str) -> str:
    """`1 request`, `2 requests`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"
