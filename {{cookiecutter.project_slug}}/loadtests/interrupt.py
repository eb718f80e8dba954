"""Ctrl-C where all work is done in greenlets.

Python raises KeyboardInterrupt in whatever runs when the signal comes, and some of Locust's
greenlets drop it: its history of statistics, its printer, its master's listener. A run would go on.
"""

from __future__ import annotations

import signal

import gevent


def heed() -> None:
    """From now on gevent's loop raises KeyboardInterrupt in the main greenlet, and nowhere else."""
    gevent.signal_handler(signal.SIGINT, _interrupt)


def _interrupt() -> None:
    gevent.get_hub().handle_system_error(KeyboardInterrupt, KeyboardInterrupt())
