"""The GPUs of this machine, and which replica gets which.

Left alone, every engine takes the first ones.
"""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from serving.settings import EngineSettings, ProcessEngine

_NVIDIA_SMI = (
    "nvidia-smi",
    "--query-gpu=index,memory.total,memory.free",
    "--format=csv,noheader,nounits",
)
_VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Memory:
    """Bytes of one device, or of the machine."""

    total: int
    free: int


@dataclass(frozen=True)
class Gpu:
    """One device, by its number in the order of the PCI bus."""

    number: int
    memory: Memory


class Devices:
    """Counts which replicas have which GPU."""

    def __init__(self) -> None:
        self._users: Counter[int] = Counter()

    @contextmanager
    def given(self, seen: list[Gpu], section: EngineSettings) -> Iterator[list[Gpu]]:
        """The GPUs of one replica, of those `seen` by `visible`: those that the fewest have, and of
        these the emptiest. Two versions may have to share one."""
        count = section.gpus if isinstance(section, ProcessEngine) else 0
        chosen = sorted(seen, key=lambda gpu: (self._users[gpu.number], -gpu.memory.free >> 30))
        gpus = sorted(chosen[:count], key=lambda gpu: gpu.number)
        self._users.update(gpu.number for gpu in gpus)
        try:
            yield gpus
        finally:
            self._users.subtract(gpu.number for gpu in gpus)


def environment(gpus: list[Gpu]) -> dict[str, str]:
    """What shows an engine these devices and no others; nothing when they are not known."""
    numbers = ",".join(str(gpu.number) for gpu in gpus)
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", _VISIBLE: numbers} if gpus else {}


def visible(section: EngineSettings) -> list[Gpu]:
    """The GPUs that a replica may get; none when it needs none, or nobody can tell. Runs a program:
    not for the event loop."""
    if not isinstance(section, ProcessEngine) or not section.gpus:
        return []
    try:
        asked = subprocess.run(_NVIDIA_SMI, capture_output=True, text=True, timeout=20, check=True)
        found = {gpu.number: gpu for gpu in map(_gpu, filter(None, asked.stdout.splitlines()))}
    except (OSError, subprocess.SubprocessError, ValueError):
        return []
    told = section.env.get(_VISIBLE, os.environ.get(_VISIBLE))
    if told is None:
        return list(found.values())
    numbers = told.split(",")
    if not all(n.isdecimal() and int(n) in found for n in numbers):
        return []  # by other names than numbers
    return [found[int(number)] for number in numbers]


def _gpu(line: str) -> Gpu:
    number, total, free = map(int, line.split(","))
    return Gpu(number, Memory(total << 20, free << 20))
