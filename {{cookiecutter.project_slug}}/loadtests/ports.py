"""A port for a server of a run's own."""

from __future__ import annotations

import socket


def free_port(host: str = "127.0.0.1") -> int:
    """One that nobody has at the moment; `*` is every address."""
    with socket.socket() as probe:
        probe.bind(("" if host == "*" else host, 0))
        port: int = probe.getsockname()[1]
        return port
