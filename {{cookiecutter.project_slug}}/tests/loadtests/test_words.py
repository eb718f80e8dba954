"""Figures and names as people read them."""

from __future__ import annotations

import pytest

from loadtests import words


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.00004, "0.04 ms"),
        (0.0008, "0.80 ms"),
        (0.01234, "12.3 ms"),
        (0.09996, "100 ms"),
        (0.123, "123 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.00 s"),
        (12.34, "12.3 s"),
        (1234.5, "1,234 s"),
    ],
)
def test_times_are_written_in_three_digits(value: float, said: str) -> None:
    assert words.seconds(value) == said


@pytest.mark.parametrize(
    ("took", "said"),
    [
        (0.0, "0 s"),
        (0.5, "0.5 s"),
        (45.2, "45.2 s"),
        (59.99, "60 s"),
        (60.0, "1 min"),
        (725.4, "12 min 5 s"),
        (3600.0, "1 h"),
        (3725.0, "1 h 2 min"),
        (86400.0, "24 h"),
    ],
)
def test_how_long_it_took_is_said_in_two_units_at_most(took: float, said: str) -> None:
    assert words.span(took) == said


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (0.0, "0 %"),
        (0.00001, "0.001 %"),
        (0.256, "25.6 %"),
        (0.9, "90 %"),
        (0.999, "99.9 %"),
        (0.99996, "99.996 %"),
        (1.0, "100 %"),
    ],
)
def test_all_is_said_of_all_only_and_none_of_none(share: float, said: str) -> None:
    assert words.percent(share) == said


@pytest.mark.parametrize(
    ("value", "said"), [(0.0, "0.00"), (0.256, "0.26"), (12.34, "12.3"), (1234.5, "1,234")]
)
def test_rates_are_written_in_three_digits(value: float, said: str) -> None:
    assert words.figure(value) == said


def test_a_long_name_keeps_its_beginning_and_end() -> None:
    assert words.short("v0001") == "v0001"
    shortened = words.short("v0001-" + "x" * 60 + "-final")
    assert len(shortened) == 30
    assert shortened.startswith("v0001-")
    assert shortened.endswith("-final")
