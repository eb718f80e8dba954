"""What running streams feel of a swap: the gaps between their tokens, during swaps and outside.

    make bench

On the scripted engine, 64 streams always; the versions go live one after the other, and back. A
swap lasts from the command to the end of the old version: start, warm-up, flip, drain, stop. All
of it is on the same cores here, so that the start of an engine is also measured by itself, beside
the service; on a real machine the new engine starts on devices of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
from kept import bentoml, kept
from relay import HOST, SETTINGS, fake_home, free_port, prepared, running, script, serve, wait_for

STREAMS = 64
TOKENS = 200
DELAY_MS = 20


#: When something began and ended.
Windows = list[tuple[float, float]]


class Gaps:
    """Seconds between two events of a stream, by when the later one came."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float]] = []
        self.broken = 0

    async def read(self, port: int) -> None:
        """One stream, read as cheaply as Python can."""
        body = json.dumps(
            {
                "model": "chat",
                "stream": True,
                "max_tokens": TOKENS,
                "messages": [{"role": "user", "content": script(TOKENS, DELAY_MS)}],
            }
        )
        reader, writer = await asyncio.open_connection(HOST, port)
        writer.write(
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode()
        )
        last, tail = 0.0, b""
        while not tail.endswith(b"\r\n0\r\n\r\n") and (data := await reader.read(65536)):
            now = time.perf_counter()
            if last and b"data: " in data:
                self.seen.append((now, now - last))
            last, tail = now, (tail + data)[-64:]
        writer.close()
        self.broken += b"[DONE]" not in tail

    def quantiles(self, windows: Windows, *, inside: bool = True) -> tuple[float, float]:
        """p50 and p99, in milliseconds, of the gaps inside the windows or outside."""
        gaps = sorted(
            gap * 1e3
            for at, gap in self.seen
            if any(begin <= at <= end for begin, end in windows) == inside
        )
        return gaps[len(gaps) // 2], gaps[len(gaps) * 99 // 100]


async def swapped(port: int, swaps: int, engine: list[str]) -> tuple[Gaps, Windows, Windows]:
    """The gaps, and when swaps were under way, and when an engine started that nothing uses: what
    the machine's cores alone make of that."""
    gaps = Gaps()
    ends = asyncio.Event()
    windows: Windows = []
    alone: Windows = []

    async def always() -> None:
        while not ends.is_set():
            await gaps.read(port)

    async with asyncio.TaskGroup() as tasks, httpx.AsyncClient(timeout=60) as admin:
        for _ in range(STREAMS):
            tasks.create_task(always())
            await asyncio.sleep(0.01)  # not all in step
        for swap in range(swaps):
            await asyncio.sleep(6)
            begun = time.perf_counter()
            await move(admin, port, 2 - swap % 2)
            windows.append((begun, time.perf_counter()))
            await asyncio.sleep(6)
            begun = time.perf_counter()
            await start_alone(
                [*engine, "--port", str(free_port())], windows[-1][1] - windows[-1][0]
            )
            alone.append((begun, time.perf_counter()))
        await asyncio.sleep(6)
        ends.set()
    return gaps, windows, alone


async def start_alone(engine: list[str], seconds: float) -> None:
    """Starts it as a swap does, and ends it after the time of one."""
    process = await asyncio.create_subprocess_exec(
        *engine, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    await asyncio.sleep(seconds)
    process.terminate()
    await process.wait()


async def move(admin: httpx.AsyncClient, port: int, number: int) -> None:
    """Puts a version into production, and waits for the end of the one before it."""
    url = f"http://{HOST}:{port}/admin"
    asked = {"version": number, "load": True}
    (await admin.put(f"{url}/models/chat/labels/production", json=asked)).raise_for_status()
    while True:
        status: Any = (await admin.get(f"{url}/status")).json()
        if [v["version"] for v in status["models"]["chat"]["versions"]] == [number]:
            return
        await asyncio.sleep(0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--project", type=Path, required=True, help="a baked, installed project")
    parser.add_argument("--swaps", type=int, default=6)
    options = parser.parse_args()
    project: Path = options.project.absolute()
    with kept("swap", bentoml=bentoml(project)):
        measure(project, options.swaps)


def measure(project: Path, swaps: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        home = fake_home(project, folder / "engine")
        settings = SETTINGS.format(home=home, state=folder / "state")
        environment = prepared(project, folder, settings)
        (folder / "state").mkdir()
        first = {"models": {"chat": {"labels": {"production": 1}}}}
        (folder / "state/routing.json").write_text(json.dumps(first))
        subprocess.run(
            [project / ".venv/bin/serving", "models", "import", "chat", project / "demo_model"],
            env={**os.environ, **environment},
            check=True,
            stdout=subprocess.DEVNULL,
        )
        engine = [str(home / "bin/vllm"), "serve", str(project / "demo_model")]
        port = free_port()
        with running(serve(project, port), folder / "serve.log", **environment) as service:
            wait_for(port, "/readyz", service)
            gaps, windows, alone = asyncio.run(swapped(port, swaps, engine))
    if gaps.broken:
        sys.exit(f"{gaps.broken} streams did not end with [DONE].")
    calm = gaps.quantiles(windows + alone, inside=False)
    lasted = sum(end - begin for begin, end in windows) / len(windows)
    print(
        f"{STREAMS} streams, {DELAY_MS} ms between tokens, {len(windows)} swaps of {lasted:.1f} s"
    )
    for when, (p50, p99) in (
        ("outside", calm),
        ("while an engine starts alone", gaps.quantiles(alone)),
        ("during swaps", gaps.quantiles(windows)),
    ):
        print(
            f"  between tokens, {when:28} p50 {p50:6.2f} ms ({p50 / calm[0]:.2f})"
            f"  p99 {p99:6.2f} ms ({p99 / calm[1]:.2f})"
        )


if __name__ == "__main__":
    main()
