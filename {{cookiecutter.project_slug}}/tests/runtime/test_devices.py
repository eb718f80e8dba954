"""Which GPUs there are, and which replica gets which."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
from reconciling import Configure, Run, served, until

from serving.runtime.devices import Devices, Gpu, Memory, environment, visible
from serving.settings import VllmEngine

GIB = 2**30


def vllm(**fields: Any) -> VllmEngine:
    return VllmEngine.model_validate({"name": "vllm", "max_model_len": 1000, **fields})


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in place of the driver's; its text says what it prints."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 0, 81920, 81000\necho 1, 81920, 20480\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return program


@pytest.mark.usefixtures("nvidia_smi")
def test_a_replica_may_get_what_it_may_see() -> None:
    first = Gpu(0, Memory(80 * GIB, 81000 * 2**20))
    second = Gpu(1, Memory(80 * GIB, 20 * GIB))
    assert visible(vllm(gpus=1)) == [first, second]
    assert visible(vllm(gpus=1, env={"CUDA_VISIBLE_DEVICES": "1"})) == [second]
    assert visible(vllm(gpus=1, env={"CUDA_VISIBLE_DEVICES": "GPU-8932f937"})) == []
    assert visible(vllm(gpus=0)) == []


@pytest.mark.parametrize("printed", ["nonsense", "1", "0, [N/A], [N/A]"])
def test_a_driver_that_cannot_tell_is_believed_nothing(nvidia_smi: Path, printed: str) -> None:
    nvidia_smi.write_text(f"#!/bin/sh\necho '{printed}'\n")
    assert visible(vllm(gpus=1)) == []
    nvidia_smi.write_text("#!/bin/sh\nexit 9\n")
    assert visible(vllm(gpus=1)) == []


def test_each_gets_those_that_the_fewest_have_and_of_these_the_emptiest() -> None:
    seen = [Gpu(i, Memory(80 * GIB, free * GIB)) for i, free in enumerate((80, 10, 80, 79))]
    devices = Devices()

    def given(count: int) -> list[int]:
        return [gpu.number for gpu in taken.enter_context(devices.given(seen, vllm(gpus=count)))]

    with ExitStack() as taken:
        assert given(1) == [0]
        assert given(2) == [2, 3]
        assert given(2) == [0, 1]  # one of them has to be shared
    with ExitStack() as taken:
        assert given(1) == [0]  # all are free again


def test_only_those_are_shown_to_the_engine() -> None:
    memory = Memory(80 * GIB, 80 * GIB)
    assert environment([Gpu(1, memory), Gpu(3, memory)]) == {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": "1,3",
    }
    assert environment([]) == {}


@pytest.mark.usefixtures("nvidia_smi")
async def test_two_replicas_run_on_two_devices_also_after_a_crash(
    run: Run, configure: Configure, scripted_home: Path
) -> None:
    engine = {"name": "vllm", "home": scripted_home, "max_model_len": 256, "gpus": 1}
    engine["memory_fraction"] = 0.2
    reconciler = run(configure({"chat": {"replicas": 2, "engine": engine}}))
    await until(lambda: len(served(reconciler).replicas) == 2)

    def shown() -> dict[int, str]:
        """By process id."""
        pids = [replica.pid for replica in served(reconciler).replicas]
        return {
            pid: psutil.Process(pid).environ()["CUDA_VISIBLE_DEVICES"]
            for pid in pids
            if pid is not None
        }

    before = shown()
    assert sorted(before.values()) == ["0", "1"]
    os.kill(next(iter(before)), signal.SIGKILL)
    await until(lambda: len(served(reconciler).replicas) == 1)
    await until(lambda: len(served(reconciler).replicas) == 2)
    assert sorted(shown().values()) == ["0", "1"]
    assert shown().keys() != before.keys()
