"""What the gateway costs with everything on, beside its peers and the bare engine, in one run.

    make bench-peers

Keys are wanted, limits are set by key and by model, the ledger is written, requests are logged and
measured. LiteLLM's proxy, vllm-router and sglang-router run as they come, one process each, before
the same scripted engine. They take turns, in another order each round. Machines are shared and
noisy: the ratios are what to read.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from contenders import ENGINE, GATEWAY, Contender, contenders
from figures import Column, Sample, apart, listing, table
from kept import FOLDER, facts, machine
from processes import used

T = TypeVar("T")

HERE = Path(__file__).parent
ROOT = HERE.parent


@dataclass(frozen=True)
class Load:
    """So many streams at once, of answers that are short and then long. `pause`: milliseconds
    between tokens; `requests`: by each stream in turn, of short answers and of long ones, each on a
    connection of its own."""

    streams: int
    pause: float
    requests: tuple[int, int]
    tokens: tuple[int, int] = (16, 128)


#: None saturates a relay in Python: behind one, tokens come in lumps, which cost less.
LOADS = (
    Load(1, 2, requests=(60, 10)),
    Load(100, 20, requests=(5, 1)),
    Load(1000, 200, requests=(1, 1), tokens=(16, 64)),
)
#: Tokens that come as fast as they go: streams, and tokens of each; then for those that are slow.
FLOOD, SLOW_FLOOD = (100, 2000), (10, 200)
OPEN = 1000
SLOW_OPEN = 100


class Bench:
    """Runs loads with the interpreter of the baked project, which has what they need."""

    def __init__(self, project: Path) -> None:
        self._python = str(project / ".venv/bin/python")
        self._rest: dict[str, float] = {}
        self.broken: list[str] = []

    def settle(self, found: list[Contender], seconds: float = 5) -> None:
        """Warms all up, and looks what they take of the CPU while nobody asks."""
        for one in found:
            self.load(one, "--streams", "5", "--requests", "5")
        time.sleep(1)
        before = {one.name: one.tree.cpu() for one in found}
        time.sleep(seconds)
        for one in found:
            self._rest[one.name] = used(before[one.name], one.tree.cpu()) / seconds

    def load(
        self, one: Contender, *options: str, opened: Callable[[], None] = lambda: None
    ) -> dict[str, Any]:
        """The generator's `Result`; `opened` is called while all streams are open."""
        command = [self._python, str(HERE / "generator.py"), str(one.port), one.model, *options]
        environment = {**os.environ, "BENCH_KEY": one.key}
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            line = "{}"
            for line in process.stdout:
                if line == "open\n":
                    opened()
        if process.returncode:
            sys.exit(f"The load generator failed with status {process.returncode}; see above.")
        result: dict[str, Any] = json.loads(line)
        if result["whole"] != result["requests"]:
            missing = result["requests"] - result["whole"]
            what = f"{one.name}, {' '.join(options)}: {missing} of {result['requests']} answers"
            self.broken.append(f"{what} were not whole: {result['fault']}")
        return result

    def measure(self, one: Contender, *options: str) -> tuple[Sample, dict[str, Any]]:
        """A load, and what it took of the contender's CPU."""
        before, began = one.tree.cpu(), time.perf_counter()
        result = self.load(one, *options)
        cpu = used(before, one.tree.cpu())
        rest = self._rest[one.name] * (time.perf_counter() - began)
        return Sample(result["requests"], result["tokens"], cpu - rest), result

    def at_rest(self, name: str) -> str:
        return f"{self._rest[name] * 1e3:.1f} ms"


class Costs:
    """What a token and a request cost at one load, and the time to the first token."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._token = Column("CPU us per token (ratio)")
        self._request = Column("CPU us per request (ratio)", digits=0)
        self._ttft = Column("TTFT p50, ms (ratio)")

    def round(self, bench: Bench, found: list[Contender], own: Column) -> None:
        load = self._load
        for one in shuffled(found):
            if one.slow and load.streams > SLOW_OPEN:
                continue
            samples: dict[int, Sample] = {}
            ttft: list[float] = []
            for tokens, requests in shuffled([*zip(load.tokens, load.requests, strict=True)]):
                samples[tokens], seen = bench.measure(
                    one,
                    *("--streams", str(load.streams), "--requests", str(requests)),
                    *("--tokens", str(tokens), "--delay-ms", str(load.pause)),
                )
                ttft += seen["ttft"]
                if tokens == load.tokens[1] and seen["tokens"]:
                    own.note(one.name, seen["cpu"] / seen["tokens"] * 1e6)
            if all(sample.tokens for sample in samples.values()):
                token, request = apart(samples[load.tokens[0]], samples[load.tokens[1]])
                self._token.note(one.name, token)
                self._request.note(one.name, request)
                self._ttft.note(one.name, statistics.median(ttft) * 1e3)

    def table(self, names: list[str]) -> str:
        load = self._load
        lengths = " and ".join(str(tokens) for tokens in load.tokens)
        title = f"streams at once: {load.streams}; {load.pause:g} ms between tokens; answers of "
        title += f"{lengths} tokens, each on a new connection"
        return table(title, names, [self._token, self._request, self._ttft], GATEWAY)


class FirstToken:
    """On one connection, with nothing else going on."""

    def __init__(self) -> None:
        self._ttft = Column("TTFT p50, ms (ratio)", digits=2)
        self._added = Column("added to the engine's, ms (ratio)", digits=2)

    def round(self, bench: Bench, found: list[Contender]) -> None:
        ttft: dict[str, float] = {}
        for one in shuffled(found):
            seen = bench.load(one, "--kept", "--requests", "50", "--tokens", "8", "--delay-ms", "1")
            ttft[one.name] = statistics.median(seen["ttft"]) * 1e3
        for name, value in ttft.items():
            self._ttft.note(name, value)
            if name != ENGINE:
                self._added.note(name, value - ttft[ENGINE])

    def table(self, names: list[str]) -> str:
        title = "the first token on one connection that is kept, 50 requests a round"
        return table(title, names, [self._ttft, self._added], GATEWAY)


class Flood:
    """Tokens as fast as they go; many of them reach the relay together."""

    def __init__(self) -> None:
        self._rate = Column("tokens per second (ratio)", digits=0)
        self._per_cpu = Column("tokens per CPU second (ratio)", digits=0)

    def round(self, bench: Bench, found: list[Contender]) -> None:
        for one in shuffled(found):
            streams, tokens = SLOW_FLOOD if one.slow else FLOOD
            options = ("--streams", str(streams), "--tokens", str(tokens))
            sample, seen = bench.measure(one, *options)
            self._rate.note(one.name, seen["tokens"] / seen["seconds"])
            self._per_cpu.note(one.name, seen["tokens"] / sample.cpu)

    def table(self, names: list[str]) -> str:
        title = "{} streams of {} tokens as fast as they go (slow ones: {} of {})".format(
            *FLOOD, *SLOW_FLOOD
        )
        return table(title, names, [self._rate, self._per_cpu], GATEWAY)


def memory(bench: Bench, found: list[Contender]) -> str:
    """What open streams take, the first time that so many are open."""
    rest = Column("MiB at rest", ratio=False)
    grown = Column("KiB more per open stream (ratio)")
    for one in shuffled(found):
        streams = SLOW_OPEN if one.slow else OPEN
        before, during = one.tree.memory(), [0]

        def look(one: Contender = one, during: list[int] = during) -> None:
            during[0] = one.tree.memory()

        options = ("--streams", str(streams), "--tokens", "50", "--delay-ms", "200")
        bench.load(one, *options, opened=look)
        rest.note(one.name, before / 2**20)
        grown.note(one.name, (during[0] - before) / streams / 1024)
    title = f"memory (RSS) with {OPEN} streams open, once (slow ones: {SLOW_OPEN})"
    return table(title, [one.name for one in found], [rest, grown], GATEWAY)


def shuffled(things: Sequence[T]) -> list[T]:
    return random.sample(list(things), len(things))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--project", type=Path, required=True, help="a baked, installed project")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", type=Path, default=ROOT / "build/peers", help="made there")
    parser.add_argument("--out", type=Path, default=FOLDER / "peers.txt")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what runs is stopped too
    project: Path = options.project.absolute()
    with (
        tempfile.TemporaryDirectory() as scratch,
        contenders(project, options.peers.absolute(), Path(scratch)) as found,
    ):
        report = compare(Bench(project), found, options.rounds)
    print(report)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(report + "\n", "utf-8")


def compare(bench: Bench, found: list[Contender], rounds: int) -> str:
    told = {
        **facts(),
        **{one.name: one.version for one in found},
        "rounds": f"{rounds}; least, median and most of them, and (ratio) the median of the "
        "ratios to the gateway in the same round",
        "CPU": "of the relay with all its processes, beyond what it takes at rest, without the "
        "engine; the bare engine's is its own",
    }
    bench.settle(found)
    sections = [memory(bench, found)]
    costs, first, flood = [Costs(load) for load in LOADS], FirstToken(), Flood()
    own = Column("CPU us per token", ratio=False)
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", flush=True)
        first.round(bench, found)
        for cost in costs:
            cost.round(bench, found, own)
        flood.round(bench, found)
    names = [one.name for one in found]
    sections += [first.table(names), *(cost.table(names) for cost in costs), flood.table(names)]
    sections.append(table("the load generator itself, at all these loads", names, [own], GATEWAY))
    rest = {f"CPU at rest, per second, {name}": bench.at_rest(name) for name in names}
    told["load at the end"] = machine().rpartition("; load ")[2]
    faults = "\n".join(bench.broken) or "every stream was whole: all its tokens, then [DONE]"
    return "\n\n".join([listing(told), *sections, listing(rest), faults])


if __name__ == "__main__":
    main()
