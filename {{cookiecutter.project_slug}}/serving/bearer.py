"""The key with which a program of ours asks a service. It is in the environment, because a command
line can be read by every user of the machine."""

from __future__ import annotations

import os


class BadKey(Exception):
    """The message says what is wrong with a key and what to do, and does not hold the key."""


def usable(key: str) -> str:
    """The key, empty for none. Raises `BadKey` for one that is no value of an HTTP header."""
    if not (key.isascii() and key.isprintable()):
        raise BadKey("The key holds what no HTTP header can carry: give it alone, on one line.")
    return key


def authorization() -> dict[str, str]:
    """The header for the key in SERVING_KEY, none without one. Raises `BadKey`."""
    key = usable(os.environ.get("SERVING_KEY", ""))
    return {"authorization": f"Bearer {key}"} if key else {}
