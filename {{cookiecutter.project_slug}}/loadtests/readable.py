"""Figures as people read them."""

from __future__ import annotations


def seconds(value: float) -> str:
    """Three digits, in ms below a second."""
    if abs(value) < 1:
        return f"{value * 1000:.3g} ms"
    return f"{value:.3g} s" if abs(value) < 100 else f"{value:.0f} s"


def count(number: int, what: str) -> str:
    """`1 request`, `2 requests`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"
