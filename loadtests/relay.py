"""What the gateway costs, beside the bare engine in the same run.

    make bench

On a scripted engine: the time the gateway adds to the first token on one connection, its CPU time
per relayed chunk at 100 streams beside a bare uvicorn that passes bytes on (`reference.py`), and
its memory. On the real embedded engine: the time from start to ready. Machines are shared and
noisy: all that is compared is measured in turn in one run, and the ratios are what to read.
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
from kept import bentoml, kept

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
    # Not until the connection ends, for servers may keep it: HTTP's last chunk ends the reply.
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


class NotServing(SystemExit):
    """A server did not start; it ends the benchmark that cannot do without."""


def wait_for(port: int, path: str, process: subprocess.Popen[bytes], limit: float = 120) -> float:
    """Seconds until `path` answers 200. Raises `NotServing`."""
    began = time.perf_counter()
    while time.perf_counter() - began < limit:
        if process.poll() is not None:
            raise NotServing(f"{process.args!r} ended with status {process.returncode}.")
        try:
            with socket.create_connection((HOST, port), 1) as connection:
                connection.settimeout(2)
                connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
                if b" 200 " in connection.recv(64):
                    return time.perf_counter() - began
        except OSError:
            pass
        time.sleep(0.02)
    raise NotServing(f"{path} on port {port} did not answer within {limit:g} s.")


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
    python = project / ".venv/bin/python"
    program.write_text(f'#!/bin/sh\nexec {python} {script} --dialect vllm "$@"\n')
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
    parser.add_argument("--rounds", type=int, default=8)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what runs is stopped too
    project: Path = options.project.absolute()
    with kept("relay", bentoml=bentoml(project)):
        with tempfile.TemporaryDirectory() as scratch:
            relay_cost(project, Path(scratch), options)
        with tempfile.TemporaryDirectory() as scratch:
            start_cost(project, Path(scratch))


def relay_cost(project: Path, folder: Path, options: argparse.Namespace) -> None:
    """Gateway, bare engine and yardstick side by side on the scripted engine."""
    home = fake_home(project, folder / "engine")
    settings = SETTINGS.format(home=home, state=folder / "state")
    environment = prepared(project, folder, settings)
    gateway, bare, yardstick = free_port(), free_port(), free_port()
    engine_command = [str(home / "bin" / "vllm"), "serve", str(project / "demo_model")]
    engine_command += ["--host", HOST, "--port", str(bare), "--served-model-name", "model"]
    engine_command += ["--max-model-len", "100000"]
    uvicorn = [str(project / ".venv/bin/uvicorn"), "reference:app", "--no-access-log"]
    uvicorn += ["--app-dir", str(Path(__file__).parent), "--port", str(yardstick)]
    with (
        running(engine_command, folder / "bare.log", VLLM_API_KEY="bench") as engine,
        running(
            uvicorn, folder / "yardstick.log", ENGINE=f"http://{HOST}:{bare}", KEY="bench"
        ) as reference,
        running(serve(project, gateway), folder / "serve.log", **environment) as service,
    ):
        wait_for(bare, "/health", engine)
        wait_for(yardstick, "/health", reference)
        wait_for(gateway, "/readyz", service)
        worker = psutil.Process(service.pid).children()[0]
        first_token_report(gateway, bare)
        idle = worker.memory_info().rss
        relay_report(
            options, {gateway: worker, yardstick: psutil.Process(reference.pid)}, gateway, bare
        )
        loaded = worker.memory_info().rss
        print(f"gateway memory: {idle / 2**20:.0f} MiB idle, {loaded / 2**20:.0f} MiB after it")


def first_token_report(gateway: int, bare: int) -> None:
    through, direct = asyncio.run(first_token(gateway, bare, 205))
    added = [a - b for a, b in zip(through, direct, strict=True)]
    print("time to the first token, one connection, 200 pairs")
    print(f"  through the gateway   {spread(through, 1e3, 'ms')}")
    print(f"  from the bare engine  {spread(direct, 1e3, 'ms')}")
    print(f"  added                 {spread(added, 1e3, 'ms')}")


def relay_report(
    options: argparse.Namespace, processes: dict[int, psutil.Process], gateway: int, bare: int
) -> None:
    load = (options.streams, options.tokens, options.delay_ms)
    cost: dict[int, list[float]] = {port: [] for port in processes}
    ttft: dict[int, list[float]] = {port: [] for port in (*processes, bare)}
    for _ in range(options.rounds):
        for port, process in random.sample(list(processes.items()), len(processes)):
            before = process.cpu_times()
            seen = asyncio.run(relay(port, *load, "chat" if port == gateway else "model"))
            after = process.cpu_times()
            broken = sum(not s.complete for s in seen)
            if broken:
                sys.exit(f"{broken} of {len(seen)} streams did not end with [DONE].")
            used = after.user - before.user + after.system - before.system
            cost[port].append(used / sum(s.chunks for s in seen))
            ttft[port] += [s.ttft for s in seen]
        ttft[bare] += [s.ttft for s in asyncio.run(relay(bare, *load, "model"))]
    yardstick = next(port for port in processes if port != gateway)
    ratios = [a / b for a, b in zip(cost[gateway], cost[yardstick], strict=True)]
    print(
        f"{options.streams} streams of {options.tokens} tokens {options.delay_ms:g} ms apart: "
        f"CPU per relayed chunk, {options.rounds} rounds"
    )
    print(f"  gateway               {spread(cost[gateway], 1e6, 'us')}")
    print(f"  bare uvicorn relay    {spread(cost[yardstick], 1e6, 'us')}")
    print(f"  gateway / bare relay  {spread(ratios, 1, '  ')}")
    print("time to the first token at that load")
    for name, port in {"gateway": gateway, "bare uvicorn relay": yardstick, "engine": bare}.items():
        print(f"  {name:20s}  {spread(ttft[port], 1e3, 'ms')}")


def start_cost(project: Path, folder: Path, rounds: int = 3) -> None:
    """`bentoml serve` to ready, warm-up included, beside the real engine alone to healthy."""
    settings = (project / "serving.yaml").read_text()
    settings = settings.replace("home: .engine", f"home: {project / '.engine'}")
    environment = prepared(project, folder, settings)
    gateway, bare = free_port(), free_port()
    model = str(project / "demo_model")
    engine_command = [str(project / ".engine/bin/transformers"), "serve", model]
    engine_command += ["--device", "cpu", "--host", HOST, "--port", str(bare)]
    through: list[float] = []
    direct: list[float] = []
    for _ in range(rounds):
        with running(engine_command, folder / "bare.log", HF_HUB_OFFLINE="1") as engine:
            direct.append(wait_for(bare, "/health", engine))
        with running(serve(project, gateway), folder / "serve.log", **environment) as service:
            through.append(wait_for(gateway, "/readyz", service))
    print(f"start of the demo on the real transformers engine, {rounds} rounds")
    print(f"  bentoml serve to ready, warm-up included  {spread(through, 1, 's')}")
    print(f"  the engine alone to healthy               {spread(direct, 1, 's')}")


def prepared(project: Path, folder: Path, settings: str) -> dict[str, str]:
    """A store with the demo and a serving.yaml in `folder`; the environment that names both."""
    config = folder / "serving.yaml"
    config.write_text(settings)
    environment = {"BENTOML_HOME": str(folder / "bentoml"), "SERVING_CONFIG": str(config)}
    subprocess.run(
        [project / ".venv/bin/serving", "models", "import", "chat", str(project / "demo_model")],
        env={**os.environ, **environment},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return environment


def serve(project: Path, port: int) -> list[str]:
    return [str(project / ".venv/bin/bentoml"), "serve", str(project), "--port", str(port)]


if __name__ == "__main__":
    main()
