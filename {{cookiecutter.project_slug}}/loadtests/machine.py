"""Where a run took place, for whoever reads it later."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import version as installed
from pathlib import Path

import psutil


def machine() -> dict[str, str]:
    memory = psutil.virtual_memory().total / 2**30
    return {
        "cpu": _cpu(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory:.0f} GiB",
        "load at the end": " ".join(f"{load:.2f}" for load in os.getloadavg()),
        "system": platform.platform(),
        "python": sys.version.split()[0],
        "bentoml": installed("bentoml"),
        "locust": installed("locust"),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), "")
