"""The guard: whatever happens to the gateway or to the guard, no engine is left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from serving.runtime import guard

# Says its process ids into a file, has a child, and runs until it is ended.
ENGINE = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, {on_term})
child = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"])
with open(sys.argv[1] + ".new", "w") as f: f.write(f"{{os.getpid()}} {{child.pid}}")
os.rename(sys.argv[1] + ".new", sys.argv[1])
while not os.path.exists(sys.argv[1] + ".end"): time.sleep(0.01)
print("ended well")
"""
POLITE = ENGINE.format(on_term="lambda *_: (print('got SIGTERM', flush=True), os._exit(7))")
STUBBORN = ENGINE.format(on_term="signal.SIG_IGN")


class Guarded:
    """A guard and the engine it runs, as the gateway sees them."""

    def __init__(self, order: dict[str, Any], more: bytes = b"") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", guard.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self.tell(json.dumps(order).encode() + b"\n" + more)

    def tell(self, words: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(words)
        self.process.stdin.flush()

    def hear(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def end(self) -> dict[str, Any]:
        """The report of the engine's end, and the guard's own end."""
        report: dict[str, Any] = self.hear()
        assert self.process.wait(10) == 0
        return report


Start = Callable[..., Guarded]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    guards: list[Guarded] = []

    def start(*command: str, more: bytes = b"", **order: Any) -> Guarded:
        full = {
            "command": list(command),
            "log": str(tmp_path / "engine.log"),
            "log_bytes": 1_000_000,
            "secret": "",
            "noise": "GET /health HTTP",
            "stop_seconds": 10,
            **order,
        }
        guards.append(Guarded(full, more))
        return guards[-1]

    yield start
    for guarded in guards:
        with guarded.process:
            guarded.process.kill()


def python(code: str, *args: object) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", code, *map(str, args)]


def pids(path: Path) -> tuple[psutil.Process, psutil.Process]:
    """The engine and its child, once they have said who they are."""
    deadline = time.monotonic() + 10
    while not path.exists():
        assert time.monotonic() < deadline, "the engine did not start"
        time.sleep(0.01)
    engine, child = path.read_text().split()
    return psutil.Process(int(engine)), psutil.Process(int(child))


def gone(process: psutil.Process) -> bool:
    """Whether it ends within seconds. A zombie whose parent does not look is gone, too."""
    with contextlib.suppress(psutil.NoSuchProcess):
        deadline = time.monotonic() + 10
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
    return True


@pytest.mark.parametrize("engine", [POLITE, STUBBORN], ids=["polite", "stubborn"])
def test_the_gateways_death_kills_the_engine_and_its_children(
    start: Start, tmp_path: Path, engine: str
) -> None:
    guarded = start(*python(engine, tmp_path / "pids"))
    processes = pids(tmp_path / "pids")
    assert guarded.process.stdin is not None
    guarded.process.stdin.close()  # the kernel does this for a gateway that got SIGKILL
    assert all(map(gone, processes))
    assert guarded.process.wait(10) == 0


def test_the_guards_own_violent_death_kills_the_engine(start: Start, tmp_path: Path) -> None:
    guarded = start(*python(STUBBORN, tmp_path / "pids"))
    engine, child = pids(tmp_path / "pids")
    guarded.process.kill()
    assert gone(engine)
    child.kill()  # only the engine has the parent-death signal


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_guard_reaches_neither_guard_nor_engine(
    start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    guarded = start(*python(POLITE, tmp_path / "pids"))
    _, child = pids(tmp_path / "pids")
    os.killpg(guarded.process.pid, number)  # as a process manager or a terminal sends it
    (tmp_path / "pids.end").touch()
    assert guarded.hear()["pid"] > 0
    assert guarded.end() == {"exit": 0, "tail": ["ended well"]}
    assert gone(child)


def test_stop_is_sigterm_and_ends_the_engines_children_too(start: Start, tmp_path: Path) -> None:
    guarded = start(*python(POLITE, tmp_path / "pids"))
    processes = pids(tmp_path / "pids")
    assert guarded.hear() == {"pid": processes[0].pid}
    guarded.tell(b"stop\n")
    assert guarded.end() == {"exit": 7, "tail": ["got SIGTERM"]}
    assert all(map(gone, processes))


def test_an_engine_that_ignores_sigterm_is_killed_when_its_time_is_up(
    start: Start, tmp_path: Path
) -> None:
    guarded = start(*python(STUBBORN, tmp_path / "pids"), stop_seconds=0.2)
    processes = pids(tmp_path / "pids")
    guarded.hear()
    began = time.monotonic()
    guarded.tell(b"stop\n")
    assert guarded.end()["exit"] == -signal.SIGKILL
    assert time.monotonic() - began >= 0.2
    assert all(map(gone, processes))


def test_a_stop_that_follows_the_order_at_once_is_not_lost(start: Start) -> None:
    guarded = start(*python("import time; time.sleep(600)"), more=b"stop\n")
    assert guarded.hear()["pid"] > 0
    assert guarded.end()["exit"] == -signal.SIGTERM


def test_an_engine_in_its_own_process_group_does_not_share_the_guards(start: Start) -> None:
    guarded = start(*python("import os; print(os.getpgrp() == os.getpid())"))
    assert guarded.process.wait(10) == 0
    guarded.hear()
    assert guarded.hear()["tail"] == ["True"]


def test_a_failed_start_is_reported_with_the_last_lines_of_both_outputs(
    start: Start, tmp_path: Path
) -> None:
    code = (
        "import sys\nfor i in range(50): print('line', i)\nsys.stdout.flush()\n"
        "sys.stderr.buffer.write(b'CUDA \\xff error'); sys.exit(3)"
    )
    guarded = start(*python(code))
    guarded.hear()
    report = guarded.end()
    assert report["exit"] == 3
    assert report["tail"] == [f"line {i}" for i in range(21, 50)] + ["CUDA \ufffd error"]
    assert len((tmp_path / "engine.log").read_text("utf-8").splitlines()) == 51


def test_a_command_that_is_not_there_is_reported_by_name(start: Start) -> None:
    assert start("/no/such/engine").end() == {
        "exit": 127,
        "tail": ["/no/such/engine: No such file or directory"],
    }


def test_the_secret_is_blotted_out_of_log_and_report_however_it_is_written(
    start: Start, tmp_path: Path
) -> None:
    code = (
        "import sys; w = lambda s: (sys.stdout.write(s), sys.stdout.flush())\n"
        "w('key=s3cr3t-key twice s3cr3t-key\\n'); w('halves s3cr'); w('3t-key\\n'); w('s3cr3t-key')"
    )
    guarded = start(*python(code), secret="s3cr3t-key")
    guarded.hear()
    assert guarded.end()["tail"] == ["key=*** twice ***", "halves ***", "***"]
    assert "s3cr3t" not in (tmp_path / "engine.log").read_text("utf-8")


def test_health_checks_do_not_fill_the_log(start: Start, tmp_path: Path) -> None:
    code = "print('a\\nINFO GET /health HTTP/1.1 200\\nb')"
    guarded = start(*python(code))
    guarded.hear()
    assert guarded.end()["tail"] == ["a", "b"]
    assert (tmp_path / "engine.log").read_text("utf-8").split() == ["a", "b"]


def test_the_log_is_rotated_and_only_this_user_may_read_it(start: Start, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        guarded = start(*python("for i in range(500): print(f'{i:099}')"), log_bytes=5_000)
    finally:
        os.umask(before)
    guarded.hear()
    guarded.end()
    logs = sorted(tmp_path.glob("engine.log*"))
    assert len(logs) == 4
    assert sum(log.stat().st_size for log in logs) <= 20_000
    assert (tmp_path / "engine.log").read_text("utf-8").splitlines()[-1] == f"{499:099}"
    assert {stat.S_IMODE(log.stat().st_mode) for log in logs} == {0o600}


def test_the_engine_keeps_the_users_own_umask(start: Start) -> None:
    before = os.umask(0o027)
    try:
        guarded = start(*python("import os; print(oct(os.umask(0)))"))
    finally:
        os.umask(before)
    guarded.hear()
    assert guarded.end()["tail"] == ["0o27"]


def test_a_full_disk_stops_the_log_and_not_the_engine(start: Start) -> None:
    guarded = start(*python("print('a' * 100_000); print('still here')"), log="/dev/full")
    guarded.hear()
    report = guarded.end()
    assert (report["exit"], report["tail"][-1]) == (0, "still here")


def test_a_child_that_holds_the_output_open_does_not_delay_the_report(start: Start) -> None:
    code = (
        "import subprocess, sys\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print('bye')"
    )
    guarded = start(*python(code))
    guarded.hear()
    assert guarded.end() == {"exit": 0, "tail": ["bye"]}
