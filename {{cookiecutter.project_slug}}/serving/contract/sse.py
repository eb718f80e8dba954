"""Server-sent events: reading an engine's stream, writing the contract's.

Source of the format: the WHATWG HTML standard, section "Server-sent events".
"""

from __future__ import annotations

from serving.contract.errors import ApiError

DONE = b"data: [DONE]\n\n"
KEEPALIVE = b": keep-alive\n\n"


def event(data: bytes) -> bytes:
    """One message whose data is a single line of JSON."""
    return b"data: " + data + b"\n\n"


def error_event(error: ApiError) -> bytes:
    """How a stream that failed midway ends: an `error` event, and no `[DONE]` after it."""
    return b"event: error\ndata: " + error.body() + b"\n\n"


class EventReader:
    """Splits the bytes of an engine's stream into the data of its events.

    Bytes may be cut anywhere, also inside a multi-byte character or a line end. Comments, event
    names and ids are dropped: engines put everything the contract needs into `data`.
    `max_event` bounds the bytes held for one unfinished event.
    """

    def __init__(self, max_event: int = 4 * 1024 * 1024) -> None:
        self._rest = b""
        self._max_event = max_event

    def feed(self, data: bytes) -> list[bytes]:
        """The data of each event completed by these bytes, in order.

        Raises ValueError when an event grows over the bound.
        """
        if (
            not self._rest
            and data.startswith(b"data: ")
            and data.endswith(b"\n\n")
            and data.find(b"\n") == len(data) - 2
            and b"\r" not in data
        ):
            return [data[6:-2]]  # one whole event on one line, as most reads bring
        if self._rest:
            data = self._rest + data
        if b"\r" in data:
            # A trailing \r may be half of a \r\n: keep it until the next bytes tell.
            held = b"\r" if data.endswith(b"\r") else b""
            data = data[: len(data) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        else:
            held = b""
        *blocks, rest = data.split(b"\n\n")
        self._rest = rest + held
        if len(self._rest) > self._max_event:
            raise ValueError("the engine sent an event without end")
        return [payload for block in blocks if (payload := _data(block)) is not None]

    @property
    def pending(self) -> bool:
        """Whether the stream stopped inside an event."""
        return bool(self._rest.strip())


def _data(block: bytes) -> bytes | None:
    if block.startswith(b"data: ") and b"\n" not in block:  # what every engine sends
        return block[6:]
    lines = [
        line[5:].removeprefix(b" ") for line in block.split(b"\n") if line.startswith(b"data:")
    ]
    return b"\n".join(lines) if lines else None
