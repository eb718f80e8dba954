"""Reading an engine's events however its bytes are cut, and writing the contract's own."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.contract import sse
from serving.contract.errors import engine_error

LINE_ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
# A data line may hold anything but a line end; engines send JSON, which has none.
LINES = st.text(st.characters(blacklist_characters="\r\n", blacklist_categories=["Cs"])).map(
    str.encode
)
EVENTS = st.lists(st.lists(LINES, min_size=1, max_size=3), max_size=6)


def written(events: list[list[bytes]], line_end: bytes) -> bytes:
    return b"".join(
        b"".join(b"data: " + line + line_end for line in lines) + line_end for lines in events
    )


def read_in_pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    reader = sse.EventReader()
    marks = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    got = []
    for start, end in pairwise(marks):
        got += reader.feed(data[start:end])
    return got


@given(EVENTS, LINE_ENDS, st.lists(st.integers(min_value=0)))
def test_any_cut_of_any_events_gives_the_same_events(
    events: list[list[bytes]], line_end: bytes, cuts: list[int]
) -> None:
    # A comment closes the stream, so that an event that ends in a lone \r is known to be whole.
    data = written(events, line_end) + b": end" + line_end
    assert read_in_pieces(data, cuts) == [b"\n".join(lines) for lines in events]


@given(EVENTS, LINE_ENDS)
def test_one_byte_at_a_time_gives_the_same_events(
    events: list[list[bytes]], line_end: bytes
) -> None:
    data = written(events, line_end) + b": end" + line_end
    assert read_in_pieces(data, list(range(len(data)))) == [b"\n".join(line) for line in events]


@pytest.mark.parametrize(
    ("stream", "data"),
    [
        (b"data: a\n\ndata: b\n\n", [b"a", b"b"]),
        (b"data:a\n\n", [b"a"]),
        (b"data:  a\n\n", [b" a"]),
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b"data\n\ndata: a\n\n", [b"a"]),
        (b": comment\n\ndata: a\n\n", [b"a"]),
        (b": comment\ndata: a\n\n", [b"a"]),
        (b"event: message\nid: 7\nretry: 10\ndata: a\n\n", [b"a"]),
        (b"data: a\nevent: message\n\n", [b"a"]),
        (b"\n\n\ndata: a\n\n", [b"a"]),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"]),
        (b"data: a\n", []),
        (b"data: a", []),
        (b"", []),
    ],
)
def test_the_forms_the_standard_allows_are_read(stream: bytes, data: list[bytes]) -> None:
    assert [d for d in sse.EventReader().feed(stream) if d] == data


def test_bytes_that_end_inside_an_event_are_pending_and_those_that_end_after_it_are_not() -> None:
    reader = sse.EventReader()
    assert not reader.pending
    reader.feed(b"data: a\n\ndata: b")
    assert reader.pending
    reader.feed(b"\n\n")
    assert not reader.pending


def test_an_event_without_end_is_refused_before_it_fills_the_memory() -> None:
    reader = sse.EventReader(max_event=100)
    reader.feed(b"data: " + b"x" * 90)
    with pytest.raises(ValueError, match="without end"):
        reader.feed(b"x" * 90)


def test_the_bound_is_on_one_event_and_not_on_the_stream() -> None:
    reader = sse.EventReader(max_event=100)
    assert reader.feed(b"data: a\n\n" * 1000) == [b"a"] * 1000


def test_an_error_event_holds_the_envelope_and_is_no_end_mark() -> None:
    event = sse.error_event(engine_error())
    assert event.startswith(b"event: error\ndata: {")
    assert b"[DONE]" not in event
    (data,) = sse.EventReader().feed(event)
    assert json.loads(data)["error"]["code"] == "engine_error"


def test_a_keepalive_is_no_event() -> None:
    assert sse.EventReader().feed(sse.KEEPALIVE) == []
