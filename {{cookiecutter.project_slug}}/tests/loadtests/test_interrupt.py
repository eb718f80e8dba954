"""Ctrl-C that comes while a greenlet runs that would drop it, as Locust's greenlets do."""

from __future__ import annotations

import subprocess
import sys

from live_service import PROJECT

SCRIPT = """
import os, signal, gevent
from loadtests import interrupt

def deaf():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        gevent.sleep(20)
    except KeyboardInterrupt:
        pass

interrupt.heed()
gevent.spawn(deaf)
try:
    gevent.sleep(20)
except KeyboardInterrupt:
    print("heard")
"""


def test_ctrl_c_is_heard_whichever_greenlet_runs() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("heard\n", "")
