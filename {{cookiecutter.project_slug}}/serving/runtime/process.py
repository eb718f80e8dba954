"""One engine process as the gateway sees it: started, watched, stopped. See `guard.py`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from serving.runtime import guard

LOG_BYTES = 20 * 1024 * 1024
#: Room for the guard's longest report: all lines of its tail, every character escaped.
REPORT_BYTES = 2 * 1024 * 1024


@dataclass(frozen=True)
class Exit:
    """How an engine ended: its exit status (negative: the signal) and its last lines of output."""

    code: int
    tail: list[str]

    def __str__(self) -> str:
        how = f"killed by signal {-self.code}" if self.code < 0 else f"exit status {self.code}"
        return "\n    ".join([how, *self.tail[-15:]])


#: A guard's process, what it reports, and what closes that.
_Guarded: TypeAlias = tuple["subprocess.Popen[bytes]", asyncio.StreamReader, asyncio.ReadTransport]


class EngineProcess:
    """A running engine. `exited` is done as soon as the process is gone, whoever ended it."""

    def __init__(self, guarded: _Guarded) -> None:
        self._guard, self._reports, self._transport = guarded
        self.pid: int | None = None
        self.exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._watcher = asyncio.ensure_future(self._watch())

    @classmethod
    async def start(
        cls,
        command: list[str],
        environment: dict[str, str],
        *,
        log: Path,
        secret: str,
        noise: str,
        stop_seconds: float,
    ) -> EngineProcess:
        """Starts `command` under a guard. `secret` is blotted out of the log, lines with `noise` in
        them are left out."""
        log.parent.mkdir(parents=True, exist_ok=True)
        starting = asyncio.ensure_future(_start_guard({**_inherited(), **environment}))
        try:
            started = cls(await asyncio.shield(starting))
        except asyncio.CancelledError:
            await _put_away(starting)  # nothing of ours may outlive a stop
            raise
        order = {
            "command": command,
            "log": str(log),
            "log_bytes": LOG_BYTES,
            "secret": secret,
            "noise": noise,
            "stop_seconds": stop_seconds,
        }
        started._tell(json.dumps(order).encode() + b"\n")
        return started

    async def stop(self) -> None:
        """SIGTERM, after `stop_seconds` SIGKILL; returns when the process is gone."""
        if not self.exited.done():
            self._tell(b"stop\n")
        await asyncio.shield(self.exited)

    def _tell(self, order: bytes) -> None:
        assert self._guard.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it is gone: `exited` will say so
            self._guard.stdin.write(order)

    async def _watch(self) -> None:
        exit_ = Exit(-9, ["the engine's guard process was killed"])
        async for line in self._reports:
            with contextlib.suppress(ValueError):  # half a line: it was killed as it spoke
                message = json.loads(line)
                if "pid" in message:
                    self.pid = message["pid"]
                else:
                    exit_ = Exit(message["exit"], message["tail"])
        self._transport.close()
        await asyncio.to_thread(self._guard.wait)
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        self.exited.set_result(exit_)


async def _start_guard(environment: dict[str, str]) -> _Guarded:
    # Not the loop's own way to start a process: uvloop forks, and meanwhile no stream moves, for
    # 16 ms in a gateway of 175 MB. Popen starts it with vfork.
    process, source = await asyncio.to_thread(_popen, environment)
    reports = asyncio.StreamReader(limit=REPORT_BYTES)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reports), source
    )
    return process, reports, transport


def _popen(environment: dict[str, str]) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """The guard, and where it reports. That is a socket because uvloop closes the descriptor of
    anything else twice, and in between another thread may have got its number for a file."""
    ours, its_own = socket.socketpair()
    with its_own:
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", guard.__file__],
                stdin=subprocess.PIPE,
                stdout=its_own.fileno(),
                bufsize=0,
                env=environment,
                start_new_session=True,  # a terminal's Ctrl-C is for the gateway
            )
        except OSError:
            ours.close()
            raise
    return process, ours


async def _put_away(starting: asyncio.Future[_Guarded]) -> None:
    """Returns when it is gone: a guard that gets no order ends with its input."""
    with contextlib.suppress(OSError):  # it did not start
        guard_process, _, transport = await starting
        transport.close()
        assert guard_process.stdin is not None
        guard_process.stdin.close()
        await asyncio.to_thread(guard_process.wait)


def _inherited() -> dict[str, str]:
    """The gateway's environment without what is meant for the gateway: with its
    PROMETHEUS_MULTIPROC_DIR, an engine's metrics would mix with the gateway's own."""
    own = ("BENTOML_", "PROMETHEUS_", "PYTHONPATH", "PYTHONHOME")
    return {name: value for name, value in os.environ.items() if not name.startswith(own)}
