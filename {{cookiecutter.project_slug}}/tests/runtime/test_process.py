"""An engine process as the gateway sees it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from reconciling import running_children

from serving.runtime.process import EngineProcess, Exit


async def start(folder: Path, code: str, **options: Any) -> EngineProcess:
    command = options.pop("command", [sys.executable, "-I", "-S", "-c", code])
    full: dict[str, Any] = {
        "log": folder / "logs" / "engine.log",
        "secret": "",
        "noise": "GET /health HTTP",
        "stop_seconds": 5,
        **options,
    }
    return await EngineProcess.start(command, {"ENGINE_VARIABLE": "told"}, **full)


async def ended(process: EngineProcess) -> Exit:
    async with asyncio.timeout(20):
        return await asyncio.shield(process.exited)


async def test_an_engine_that_fails_leaves_its_status_and_last_words(tmp_path: Path) -> None:
    process = await start(tmp_path, "import sys; sys.exit('CUDA out of memory')")
    exit_ = await ended(process)
    assert exit_ == Exit(1, ["CUDA out of memory"])
    assert str(exit_) == "exit status 1\n    CUDA out of memory"


async def test_an_engine_that_is_not_installed_says_so(tmp_path: Path) -> None:
    exit_ = await ended(await start(tmp_path, "", command=["/no/such/engine"]))
    assert exit_ == Exit(127, ["/no/such/engine: No such file or directory"])


async def test_the_engine_gets_the_gateways_environment_and_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY_VARIABLE", "kept")
    code = "import os; print(os.environ['GATEWAY_VARIABLE'], os.environ['ENGINE_VARIABLE'])"
    assert (await ended(await start(tmp_path, code))).tail == ["kept told"]


async def test_stop_returns_when_the_engine_is_gone_and_may_be_asked_for_again(
    tmp_path: Path,
) -> None:
    process = await start(tmp_path, "import time; time.sleep(600)")
    async with asyncio.timeout(20):
        await asyncio.gather(process.stop(), process.stop())
        await process.stop()
    assert process.exited.result().code == -signal.SIGTERM
    assert process.pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


async def test_a_stop_right_after_the_start_is_not_lost(tmp_path: Path) -> None:
    process = await start(tmp_path, "import time; time.sleep(600)")
    async with asyncio.timeout(20):
        await process.stop()
    assert process.exited.done()


def descriptors() -> set[str]:
    return {os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what is open")
async def test_an_engine_that_is_gone_holds_nothing_open(tmp_path: Path) -> None:
    await asyncio.to_thread(int)  # the loop's thread is there
    before = descriptors()
    await ended(await start(tmp_path, ""))
    assert descriptors() <= before


async def test_a_stop_whose_waiter_is_cancelled_still_ends_the_engine(tmp_path: Path) -> None:
    process = await start(tmp_path, "import time; time.sleep(600)")
    stopping = asyncio.ensure_future(process.stop())
    await asyncio.sleep(0)
    stopping.cancel()
    assert (await ended(process)).code == -signal.SIGTERM


async def test_last_words_of_any_length_are_reported(tmp_path: Path) -> None:
    # Each character takes twelve bytes in the guard's report: far more than a pipe holds.
    line = "'\\U0001f4a9'.encode() * 5000 + b'\\n'"
    code = f"import sys\nfor _ in range(40): sys.stdout.buffer.write({line})"
    exit_ = await ended(await start(tmp_path, code))
    assert exit_.code == 0
    assert exit_.tail == ["\U0001f4a9" * 2000] * 30


async def test_a_killed_guard_counts_as_a_killed_engine(tmp_path: Path) -> None:
    process = await start(tmp_path, "import time; time.sleep(600)")
    os.kill(process._guard.pid, signal.SIGKILL)
    exit_ = await ended(process)
    assert str(exit_).startswith("killed by signal 9")


def test_only_the_last_lines_are_shown() -> None:
    shown = str(Exit(1, [str(i) for i in range(30)])).split("\n    ")
    assert shown == ["exit status 1", *map(str, range(15, 30))]


async def test_a_start_that_is_cancelled_leaves_no_guard(tmp_path: Path) -> None:
    for turns in range(5):  # at each point where it waits
        starting = asyncio.ensure_future(start(tmp_path, "import time; time.sleep(60)"))
        for _ in range(turns):
            await asyncio.sleep(0.02)
        if starting.done():
            await (await starting).stop()
            continue
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert running_children() == []
