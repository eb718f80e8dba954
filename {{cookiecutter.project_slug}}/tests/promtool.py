"""promtool, Prometheus's own checker, out of Debian's package `prometheus`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from debian import lacking

MISSING = "promtool is not installed: run `make test` as root, or put it on the PATH"


def promtool(*words: str, given: str = "") -> str:
    """What it says. Fails the test with that when it is not content; skips the test where there is
    no promtool, but never in continuous integration."""
    beside = str(Path(sys.executable).parent)
    program = shutil.which("promtool", path=os.pathsep.join((os.environ["PATH"], beside)))
    if program is None:
        lacking(MISSING)
    done = subprocess.run(
        [program, *words], input=given, capture_output=True, text=True, timeout=60, check=False
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said
