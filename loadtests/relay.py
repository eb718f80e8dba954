"""What the gateway costs, beside the bare engine in the same run.

    make bench

Prints, for a baked project with a scripted engine process behind `bentoml serve`: the time it adds
to the first token on one connection, its CPU time per relayed chunk at 100 streams, its memory, and
the time from start to ready. Wall-clock figures compare two things measured in turn, because the
machine is shared; CPU time is the gateway process's own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

HOST = "127.0.0.1"
SETTINGS = """
service: {{name: bench, state: {state}}}
engine: {{name: vllm, home: {home}, max_model_len: 100000}}
models:
  chat: {{warmup: {{rounds: 1}}}}
"""


@dataclass
class Stream:
    """One streamed answer: seconds to the first token, events seen, whether it ended well."""

    ttft: float
    chunks: int
    complete: bool


async def stream(port: int, prompt: str, model: str, key: str = "") -> Stream:
    """One chat stream, read as cheaply as Python can: the client must not be the bottleneck."""
    body = json.dumps(
        {
            "model": model,
            "stream": True,
            "max_tokens": 4096,
            "messages": [{"role": "user", "content": prompt}],
            "stream_options": {"include_usage": True},
        }
    )
    reader, writer = await asyncio.open_connection(HOST, port)
    began = time.perf_counter()
    writer.write(
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n"
        f"authorization: Bearer {key}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n{body}".encode()
    )
    ttft, chunks, tail = 0.0, 0, b""
    # Not until the connection ends: servers may keep it. The last chunk of HTTP's framing ends both.
    while not tail.endswith(b"\r\n0\r\n\r\n") and (data := await reader.read(65536)):
        if not ttft and b'"content":"w' in tail + data:
            ttft = time.perf_counter() - began
        chunks += data.count(b"data: ")
        tail = (tail + data)[-64:]
    writer.close()
    return Stream(ttft, chunks, b"[DONE]" in tail)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(port: int, path: str, process: subprocess.Popen[bytes], limit: float = 120) -> float:
    """Seconds until `path` answers 200."""
    began = time.perf_counter()
    while time.perf_counter() - began < limit:
        if process.poll() is not None:
            sys.exit(f"{process.args!r} ended with status {process.returncode}.")
        try:
            with socket.create_connection((HOST, port), 1) as connection:
                connection.settimeout(2)
                connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
                if b" 200 " in connection.recv(64):
                    return time.perf_counter() - began
        except OSError:
            pass
        time.sleep(0.02)
    sys.exit(f"{path} on port {port} did not answer within {limit:g} s.")


@contextmanager
def running(command: list[str], log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env={**os.environ, **environment}
        )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def fake_home(project: Path, folder: Path) -> Path:
    """An engine environment whose `vllm` is the project's scripted engine."""
    program = folder / "bin" / "vllm"
    program.parent.mkdir(parents=True)
    script = project / "tests" / "scripted_engine.py"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {script} --dialect vllm "$@"\n')
    program.chmod(0o755)
    return folder


def script(tokens: int, delay_ms: float) -> str:
    return "script:" + json.dumps({"tokens": tokens, "delay_ms": delay_ms})


def spread(values: list[float], scale: float, unit: str) -> str:
    ordered = sorted(v * scale for v in values)
    low, high = ordered[len(ordered) // 10], ordered[len(ordered) * 9 // 10]
    return f"{statistics.median(ordered):8.2f} {unit}  (p10 {low:.2f}, p90 {high:.2f})"


async def first_token(gateway: int, bare: int, rounds: int) -> tuple[list[float], list[float]]:
    """TTFT through the gateway and from the bare engine, in pairs of random order."""
    through: list[float] = []
    direct: list[float] = []
    for _ in range(rounds):
        pair = [(gateway, "chat", through), (bare, "model", direct)]
        random.shuffle(pair)
        for port, model, into in pair:
            into.append((await stream(port, script(8, 1), model, "bench")).ttft)
    return through[5:], direct[5:]  # the first ones warm caches


async def relay(port: int, streams: int, tokens: int, delay_ms: float, model: str) -> list[Stream]:
    return await asyncio.gather(
        *(stream(port, script(tokens, delay_ms), model, "bench") for _ in range(streams))
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--project", type=Path, required=True, help="a baked, installed project")
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--delay-ms", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    project: Path = options.project.absolute()
    python = project / ".venv" / "bin"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        home = fake_home(project, folder / "engine")
        settings = folder / "serving.yaml"
        settings.write_text(SETTINGS.format(home=home, state=folder / "state"))
        environment = {"BENTOML_HOME": str(folder / "bentoml"), "SERVING_CONFIG": str(settings)}
        subprocess.run(
            [python / "serving", "models", "import", "chat", str(project / "demo_model")],
            env={**os.environ, **environment},
            check=True,
            stdout=subprocess.DEVNULL,
        )
        gateway, bare = free_port(), free_port()
        bare_command = [str(home / "bin" / "vllm"), "serve", str(project / "demo_model")]
        bare_command += ["--host", HOST, "--port", str(bare), "--served-model-name", "model"]
        bare_command += ["--max-model-len", "100000"]
        serve = [str(python / "bentoml"), "serve", str(project), "--port", str(gateway)]
        with running(bare_command, folder / "bare.log", VLLM_API_KEY="bench") as engine:
            engine_start = wait_for(bare, "/health", engine)
            with running(serve, folder / "serve.log", **environment) as service:
                start = wait_for(gateway, "/readyz", service)
                worker = psutil.Process(service.pid).children()[0]
                report(options, gateway, bare, worker, start, engine_start)


def report(
    options: argparse.Namespace,
    gateway: int,
    bare: int,
    worker: psutil.Process,
    start: float,
    engine_start: float,
) -> None:
    print(f"start to ready: {start:.2f} s, of which the scripted engine's own {engine_start:.2f} s")
    through, direct = asyncio.run(first_token(gateway, bare, 205))
    added = [a - b for a, b in zip(through, direct, strict=True)]
    print(f"first token, one connection, through the gateway: {spread(through, 1e3, 'ms')}")
    print(f"                             from the bare engine: {spread(direct, 1e3, 'ms')}")
    print(f"                             added (paired):       {spread(added, 1e3, 'ms')}")
    idle = worker.memory_info().rss
    per_chunk: list[float] = []
    slowest: list[float] = []
    slowest_bare: list[float] = []
    for _ in range(options.rounds):
        load = (options.streams, options.tokens, options.delay_ms)
        before = worker.cpu_times()
        seen = asyncio.run(relay(gateway, *load, "chat"))
        after = worker.cpu_times()
        used = after.user - before.user + after.system - before.system
        broken = sum(not s.complete for s in seen)
        if broken:
            sys.exit(f"{broken} of {len(seen)} streams did not end with [DONE].")
        per_chunk.append(used / sum(s.chunks for s in seen))
        slowest += [s.ttft for s in seen]
        slowest_bare += [s.ttft for s in asyncio.run(relay(bare, *load, "model"))]
    print(
        f"CPU per relayed chunk, {options.streams} streams of {options.tokens} tokens, "
        f"{options.delay_ms:g} ms apart: {spread(per_chunk, 1e6, 'us')}"
    )
    print(f"first token at that load, through the gateway:    {spread(slowest, 1e3, 'ms')}")
    print(f"                          from the bare engine:    {spread(slowest_bare, 1e3, 'ms')}")
    loaded = worker.memory_info().rss
    print(f"gateway memory: {idle / 2**20:.0f} MiB idle, {loaded / 2**20:.0f} MiB after the load")


if __name__ == "__main__":
    main()
