"""The load of the benchmark beside peers, as a process of its own that costs little.

It keeps some streams open at once, each of which asks one request after the other: on a connection
of its own each, or all on one if that is `--kept`. It reads with httptools on uvloop, keeps what
came, and looks into it only when all is over. It prints a line `open` once all streams have their
first token, then a line with its `Result`. The key is in the environment variable BENCH_KEY. Run
with the baked project's interpreter.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import gc
import json
import os
import re
import time
from typing import cast

import httptools
import uvloop
from answers import fault

HOST = "127.0.0.1"
#: Streams that are opened in a second, so that it is a load and not a blow.
OPENED = 400
FIRST = re.compile(rb'"content":\s*"w0')


@dataclasses.dataclass
class Result:
    """Of all requests: how many tokens, and how many came whole; what the first other one had; the
    seconds to each first token; the seconds of it all, and this process's CPU seconds."""

    requests: int
    tokens: int
    whole: int
    fault: str
    ttft: list[float]
    seconds: float
    cpu: float


class Load:
    """What all connections share. `left` counts the streams that are not through."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.request = request(given)
        self.left = self.unopened = given.streams
        self.connecting: set[asyncio.Task[None]] = set()
        self.answers: list[bytes] = []
        self.faults: list[str] = []
        self.ttft: list[float] = []
        self.over = asyncio.Event()

    async def connect(self, asked: int) -> None:
        """For a stream that has asked so many requests before."""
        port = self.given.port
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: Connection(self, asked), HOST, port
            )
        except OSError as error:
            self.faults.append(f"it takes no connection: {error}")
            self.through()

    def opened(self) -> None:
        self.unopened -= 1
        if not self.unopened:
            print("open", flush=True)

    def through(self) -> None:
        self.left -= 1
        if not self.left:
            self.over.set()


class Connection(asyncio.Protocol):
    """One request, or one after the other; the methods named `on_...` are httptools' callbacks."""

    def __init__(self, load: Load, asked: int) -> None:
        self.load = load
        self.asked = asked
        self.parts: list[bytes] = []
        self.began = 0.0
        self.waits = True
        self.done = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self.ask()

    def ask(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.parts = []
        self.waits = True
        self.asked += 1
        self.began = time.perf_counter()
        self.transport.write(self.load.request)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done:
            self.load.faults.append(f"the connection broke: {exc}")
            self.load.through()

    def on_body(self, data: bytes) -> None:
        self.parts.append(data)
        if self.waits and FIRST.search(data if len(self.parts) == 1 else b"".join(self.parts)):
            self.waits = False
            self.load.ttft.append(time.perf_counter() - self.began)
            if self.asked == 1:
                self.load.opened()

    def on_message_complete(self) -> None:
        load, status = self.load, self.parser.get_status_code()
        if status == 200:
            load.answers.append(b"".join(self.parts))
        else:
            load.faults.append(f"status {status}: {b''.join(self.parts)[:300]!r}")
        last = self.asked == load.given.requests
        if load.given.kept and not last:
            asyncio.get_running_loop().call_soon(self.ask)
            return
        self.done = True
        self.transport.close()
        if last:
            load.through()
        else:
            task = asyncio.ensure_future(load.connect(self.asked))
            load.connecting.add(task)
            task.add_done_callback(load.connecting.discard)


def request(given: argparse.Namespace) -> bytes:
    script = {"tokens": given.tokens, "delay_ms": given.delay_ms}
    body = json.dumps(
        {
            "model": given.model,
            "stream": True,
            "max_tokens": 8192,
            "messages": [{"role": "user", "content": "script:" + json.dumps(script)}],
            "stream_options": {"include_usage": True},
        }
    )
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {HOST}\r\n"
        f"authorization: Bearer {os.environ['BENCH_KEY']}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return (head + body).encode()


async def run(given: argparse.Namespace) -> Result:
    load = Load(given)
    gc.freeze()
    gc.disable()
    cpu, began = time.process_time(), time.perf_counter()
    for number in range(given.streams):
        await asyncio.sleep(began + number / OPENED - time.perf_counter())
        await load.connect(0)
    try:
        async with asyncio.timeout(given.limit):
            await load.over.wait()
    except TimeoutError:
        load.faults.append(f"{load.left} streams were not through in {given.limit:g} s")
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    faults = [found for body in load.answers if (found := fault(body, given.tokens))]
    whole = len(load.answers) - len(faults)
    requests = given.streams * given.requests
    first = next(iter(load.faults + faults), "")
    return Result(requests, whole * given.tokens, whole, first, load.ttft, seconds, cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("port", type=int)
    parser.add_argument("model")
    parser.add_argument("--streams", type=int, default=1, help="at once")
    parser.add_argument("--requests", type=int, default=1, help="by each of them, in turn")
    parser.add_argument("--kept", action="store_true", help="all of them on one connection")
    parser.add_argument("--tokens", type=int, default=16, help="of each answer")
    parser.add_argument("--delay-ms", type=float, default=0, help="between tokens")
    parser.add_argument("--limit", type=float, default=180, help="seconds for all of it")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(dataclasses.asdict(runner.run(run(parser.parse_args())))))


if __name__ == "__main__":
    main()
