"""One workload measured by the project's load tests and by `vllm bench serve`: do they agree?

    make bench-agreement

Both ask the same vLLM on a CPU, without the gateway, in turn: ours, its, its, ours, and again with
another seed. Arrivals are Poisson's, and as many in the same time; prompts and answers are of the
same lengths. A machine that others use, and other arrivals, move the server's times by more than is
looked for; so vLLM's own counts of the same requests are read too. What must be within 5 %: tokens
per second, and the mean TTFT and TPOT, each divided by vLLM's own. Medians that are further apart
are so at the server. What is measured in two ways:

* TTFT. Our clock starts when the request is written down as JSON, its before. Its first token is
  the first event, ours the first with text: `random_model.py` has none without.
  Measured on two cores: ours 2 ms above vLLM's own of 86, its 3 ms.
* TPOT. Ours ends with `[DONE]`, as its caller's wait does, its with the last token's event.
* Tokens per second. Ours are of the time of asking, or until the last answer where that is later,
  its of the time until the last answer. It moves its arrivals so that the last of N is due at N /
  rate; of a Poisson process with N arrivals in that time one more gap would follow. So it is told a
  rate of (N + 1) / time, or it would ask for longer than ours does.
* Prompts. Its are cut by the model's tokenizer to the token; ours are words, so many that they are
  as long on average.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from figures import Column, against, listing, table
from kept import ROOT, commit
from relay import HOST, free_port, running, wait_for

OURS, THEIRS = "ours", "vllm bench serve"
#: Tokens, requests a second, seconds: about a fifth of what the server can do on two cores.
PROMPT, ANSWER, RATE, SECONDS = 64, 24, 1.5, 24
WITHIN = 0.05
MODEL, KEY = "bench", "bench-agreement"
OFFLINE = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}


@dataclass(frozen=True)
class Measured:
    """What one of the two told of one run: medians and means in milliseconds. `tpot_to_token`: to
    the last token's event for both. `events`: of a token. `own_ttft`, `own_tpot`: what the server
    counted of the same requests."""

    by: str
    seed: int
    requests: int
    prompt: float
    answer: float
    events: float
    ttft: float
    tpot: float
    tokens: float
    tpot_to_token: float
    itl: float
    e2e: float
    mean_ttft: float
    mean_tpot: float
    own_ttft: float
    own_tpot: float


class Watch:
    """Reads the server's own counts of time, again and again while a run lasts."""

    NAMES = ("time_to_first_token_seconds", "inter_token_latency_seconds")
    EVERY = 0.2

    def __init__(self, url: str) -> None:
        self._url = f"{url}/metrics"
        self._seen: list[list[tuple[float, float]]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read_always)

    def __enter__(self) -> Watch:
        self._seen.append(self._read())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._seen.append(self._read())

    def own(self, requests: int) -> tuple[float, float]:
        """Mean TTFT and time between tokens of the last so many requests, in milliseconds: what
        comes before them warms up."""
        last = self._seen[-1]
        before = [seen for seen in self._seen if seen[0][0] <= last[0][0] - requests][-1]
        ttft, gap = (
            (total[1] - earlier[1]) / (total[0] - earlier[0]) * 1e3
            for total, earlier in zip(last, before, strict=True)
        )
        return ttft, gap

    def _read_always(self) -> None:
        while not self._over.wait(self.EVERY):
            self._seen.append(self._read())

    def _read(self) -> list[tuple[float, float]]:
        """Count and sum of each."""
        with urllib.request.urlopen(self._url, timeout=60) as reply:
            lines = reply.read().decode().splitlines()
        found = {
            line.partition("{")[0]: float(line.rpartition(" ")[2])
            for line in lines
            if line.startswith("vllm:")
        }
        return [(found[f"vllm:{name}_count"], found[f"vllm:{name}_sum"]) for name in self.NAMES]


class Bench:
    """The two, on the server at `port`. Each runs with the interpreter that it is made for."""

    def __init__(self, project: Path, vllm: Path, model: Path, port: int, folder: Path) -> None:
        self._project, self._vllm, self._model = project, vllm, model
        self._url = f"http://{HOST}:{port}"
        self._folder = folder
        self.machine: dict[str, str] = {}
        self.warnings: list[str] = []

    def ours(self, seed: int) -> Measured:
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        command = [str(self._project / ".venv/bin/python"), "-m", "loadtests", "load"]
        command += ["--url", self._url, "--model", MODEL, "--operation", "completions"]
        command += ["--prompt", str(PROMPT), "--answer", str(ANSWER), "--seed", str(seed)]
        command += ["--rate", str(RATE), "--seconds", f"{SECONDS}s", "--out", str(folder)]
        with Watch(self._url) as watch:
            ask(command, self._project, SERVING_KEY=KEY)
        report = json.loads((folder / "report.json").read_bytes())
        self.machine = report["machine"]
        self.warnings += report["warnings"]
        return of_ours(report, seed, watch)

    def theirs(self, seed: int, requests: int) -> Measured:
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        command = [str(self._vllm / "bin/vllm"), "bench", "serve", "--backend", "openai"]
        command += ["--base-url", self._url, "--endpoint", "/v1/completions", "--model", MODEL]
        command += ["--tokenizer", str(self._model), "--dataset-name", "random"]
        command += ["--random-input-len", str(PROMPT), "--random-output-len", str(ANSWER)]
        command += ["--ignore-eos", "--temperature", "0", "--seed", str(seed)]
        command += [
            "--num-prompts",
            str(requests),
            "--ready-check-timeout-sec",
            "0",
            "--disable-tqdm",
        ]
        command += ["--request-rate", str((requests + 1) / SECONDS)]
        command += ["--percentile-metrics", "ttft,tpot,itl,e2el"]
        command += ["--save-result", "--save-detailed", "--result-dir", str(folder)]
        command += ["--result-filename", "result.json"]
        with Watch(self._url) as watch:
            ask(command, folder, OPENAI_API_KEY=KEY, **OFFLINE)
        return of_theirs(json.loads((folder / "result.json").read_bytes()), seed, watch)


def of_ours(report: dict[str, Any], seed: int, watch: Watch) -> Measured:
    """Of a `report.json` with one measured stage."""
    places = [n for n, stage in enumerate(report["stages"]) if stage["stage"].get("measured", True)]
    summary = report["stages"][places[0]]["summary"]
    samples = [sample for sample in report["samples"] if sample["stage"] == places[0]]
    tokens = sum(sample["tokens_out"] for sample in samples)
    own_ttft, own_tpot = watch.own(len(samples))
    return Measured(
        by=OURS,
        seed=seed,
        requests=len(samples),
        prompt=statistics.mean(sample["tokens_in"] for sample in samples),
        answer=tokens / len(samples),
        events=sum(len(sample["gaps"]) + 1 for sample in samples) / tokens,
        ttft=summary["ttft"]["p50"] * 1e3,
        tpot=summary["tpot"]["p50"] * 1e3,
        tokens=summary["tokens_out_rate"],
        tpot_to_token=statistics.median(
            sum(sample["gaps"]) / (sample["tokens_out"] - 1) * 1e3 for sample in samples
        ),
        itl=summary["itl"]["p50"] * 1e3,
        e2e=summary["e2e"]["p50"] * 1e3,
        mean_ttft=summary["ttft"]["mean"] * 1e3,
        mean_tpot=summary["tpot"]["mean"] * 1e3,
        own_ttft=own_ttft,
        own_tpot=own_tpot,
    )


def of_theirs(result: dict[str, Any], seed: int, watch: Watch) -> Measured:
    """Of what `--save-result --save-detailed` leaves."""
    if result["failed"]:
        sys.exit(f"{result['failed']} requests of {THEIRS} failed: {set(result['errors'])}.")
    own_ttft, own_tpot = watch.own(result["completed"])
    return Measured(
        by=THEIRS,
        seed=seed,
        requests=result["completed"],
        prompt=statistics.mean(result["input_lens"]),
        answer=statistics.mean(result["output_lens"]),
        events=sum(len(gaps) + 1 for gaps in result["itls"]) / sum(result["output_lens"]),
        ttft=result["median_ttft_ms"],
        tpot=result["median_tpot_ms"],
        tokens=result["output_throughput"],
        tpot_to_token=result["median_tpot_ms"],
        itl=result["median_itl_ms"],
        e2e=result["median_e2el_ms"],
        mean_ttft=result["mean_ttft_ms"],
        mean_tpot=result["mean_tpot_ms"],
        own_ttft=own_ttft,
        own_tpot=own_tpot,
    )


Figures = dict[str, Callable[[Measured], float]]
#: What must agree, and what helps to see why something does not.
JUDGED: Figures = {
    "mean TTFT / vLLM's own": lambda one: one.mean_ttft / one.own_ttft,
    "mean TPOT / vLLM's own": lambda one: one.mean_tpot / one.own_tpot,
    "output tokens/s": lambda one: one.tokens,
}
MEDIANS: Figures = {
    "TTFT p50, ms": lambda one: one.ttft,
    "TPOT p50, ms": lambda one: one.tpot,
}
OWN: Figures = {
    "mean TTFT, ms": lambda one: one.own_ttft,
    "mean TPOT, ms": lambda one: one.own_tpot,
}
BESIDE: Figures = {
    "TTFT above vLLM's own, mean, ms": lambda one: one.mean_ttft - one.own_ttft,
    "TPOT to the last token, p50, ms": lambda one: one.tpot_to_token,
    "ITL p50, ms": lambda one: one.itl,
    "end to end p50, ms": lambda one: one.e2e,
}
WORK: Figures = {
    "requests": lambda one: one.requests,
    "prompt, tokens": lambda one: one.prompt,
    "answer, tokens": lambda one: one.answer,
    "events per token": lambda one: one.events,
}


def turns(rounds: int) -> Iterator[tuple[int, tuple[str, str]]]:
    """Each round's seed and order. Two rounds of a seed are the same but for the order: what one of
    the two then says of itself twice tells how far chance goes."""
    for number in range(rounds):
        yield number // 2 + 1, (OURS, THEIRS) if number % 2 == 0 else (THEIRS, OURS)


def measure(bench: Bench, rounds: int) -> list[Measured]:
    found: list[Measured] = []
    requests = 0
    for number, (seed, order) in enumerate(turns(rounds)):
        print(f"round {number + 1} of {rounds}", flush=True)
        for by in order:
            one = bench.ours(seed) if by == OURS else bench.theirs(seed, requests)
            requests = one.requests
            found.append(one)
    return found


def ratios(found: list[Measured], figures: Figures) -> dict[str, float]:
    """Ours to its: the median of the rounds' ratios."""
    return {
        name: against(*([of(one) for one in found if one.by == by] for by in (OURS, THEIRS)))
        or float("nan")
        for name, of in figures.items()
    }


def chance(found: list[Measured], figures: Figures) -> dict[str, float]:
    """The most by which one of the two differs from itself over two rounds of a seed."""
    apart = dict.fromkeys(figures, 0.0)
    for name, of in figures.items():
        for by in (OURS, THEIRS):
            mine = [one for one in found if one.by == by]
            for one, again in zip(mine[::2], mine[1::2], strict=False):
                apart[name] = max(apart[name], abs(of(again) / of(one) - 1))
    return apart


def within(found: list[Measured], figures: Figures) -> bool:
    return all(abs(ratio - 1) <= WITHIN for ratio in ratios(found, figures).values())


def agrees(found: list[Measured]) -> bool:
    return within(found, JUDGED)


def tables(found: list[Measured]) -> list[str]:
    titles = {
        f"must agree within {WITHIN:.0%}": JUDGED,
        "medians": MEDIANS,
        "what vLLM itself counted of the same requests": OWN,
        "measured beside it": BESIDE,
        "the work": WORK,
    }
    sections = []
    for title, figures in titles.items():
        columns = []
        for name, of in figures.items():
            column = Column(f"{name} (ratio)", digits=2)
            for one in found:
                column.note(one.by, of(one))
            columns.append(column)
        sections.append(table(title, [OURS, THEIRS], columns, THEIRS))
    return sections


def verdict(found: list[Measured]) -> str:
    figures = {**JUDGED, **MEDIANS}
    apart = chance(found, figures)
    lines = [
        f"{name}: ours is off by {ratio - 1:+.1%}; in two rounds of one seed one of the two is off "
        f"itself by up to {apart[name]:.1%}"
        for name, ratio in ratios(found, figures).items()
    ]
    tails = [one.tpot - one.tpot_to_token for one in found if one.by == OURS]
    lines.append(
        f"of TPOT, {statistics.median(tails):.2f} ms are ours alone: from the last token to [DONE]"
    )
    if not within(found, MEDIANS):
        own = ratios(found, OWN)
        lines.append(
            "The medians are further apart; so was the server: by its own count, mean TTFT was "
            f"{own['mean TTFT, ms'] - 1:+.1%} and TPOT {own['mean TPOT, ms'] - 1:+.1%} in ours."
        )
    told = "They agree" if agrees(found) else "They do not agree"
    return "\n".join([*lines, f"{told} within {WITHIN:.0%}."])


def ask(command: list[str], folder: Path, **environment: str) -> None:
    """Runs one of the two; what it says is shown only when it fails."""
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        print(done.stdout, file=sys.stderr)
        sys.exit(f"{' '.join(command[:4])} ended with status {done.returncode}; see above.")


def made(vllm: Path, project: Path, folder: Path) -> Path:
    """The model's folder; made there once."""
    maker = Path(__file__).with_name("random_model.py")
    stamp = folder / maker.name
    if not (stamp.is_file() and stamp.read_bytes() == maker.read_bytes()):
        print(f"Making the model in {folder}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        command = [str(vllm / "bin/python"), str(maker), str(project / "demo_model"), str(folder)]
        ask(command, ROOT, **OFFLINE)
        shutil.copy(maker, stamp)
    return folder


@contextmanager
def server(vllm: Path, model: Path, log: Path) -> Iterator[int]:
    """The bare vLLM; one core for its model, the others for its server and whoever asks. Without
    its cache of prefixes, for rounds ask the same again."""
    port = free_port()
    command = [str(vllm / "bin/vllm"), "serve", str(model), "--host", HOST, "--port", str(port)]
    command += ["--served-model-name", MODEL, "--max-model-len", "1024", "--enforce-eager"]
    command += ["--no-enable-prefix-caching", "--generation-config", "vllm"]
    cpu = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": str(min(os.sched_getaffinity(0))),
    }
    with running(command, log, VLLM_API_KEY=KEY, **cpu, **OFFLINE) as process:
        wait_for(port, "/health", process, limit=300)
        yield port


def version(vllm: Path) -> str:
    command = [str(vllm / "bin/python"), "-c"]
    command += ["from importlib.metadata import version; print(version('vllm'))"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--project", type=Path, required=True, help="a baked, installed project")
    parser.add_argument("--rounds", type=int, default=4, help="even, so that each goes first")
    parser.add_argument("--vllm", type=Path, default=ROOT / "build/engines/vllm")
    parser.add_argument("--out", type=Path, default=ROOT / "build/bench", help="a folder")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what runs is stopped too
    project, vllm, out = (p.absolute() for p in (options.project, options.vllm, options.out))
    if options.rounds < 2 or options.rounds % 2:
        sys.exit(f"--rounds {options.rounds}: it is an even number, 2 or more.")
    for program in (vllm / "bin/vllm", project / ".venv/bin/python"):
        if not program.exists():
            sys.exit(f"{program} is missing: `make bench-agreement` makes it first.")
    out.mkdir(parents=True, exist_ok=True)
    model = made(vllm, project, out / "agreement-model")
    began = os.getloadavg()[0]
    with (
        tempfile.TemporaryDirectory() as folder,
        server(vllm, model, out / "agreement-vllm.log") as port,
    ):
        bench = Bench(project, vllm, model, port, Path(folder))
        found = measure(bench, options.rounds)
    facts = {
        "date": time.strftime("%Y-%m-%d %H:%M %Z"),
        **bench.machine,
        "load at the beginning": f"{began:.2f}",
        "template": commit(),
        "vllm": version(vllm),
        "work": f"completions, {PROMPT} tokens in and {ANSWER} out, {RATE:g} requests/s (Poisson) "
        f"for {SECONDS} s, greedy",
        "rounds": f"{options.rounds}; least, median and most of them, and (ratio) the median of "
        f"the ratios to {THEIRS} in the same round",
    }
    told = "\n\n".join(
        [
            listing(facts),
            *tables(found),
            *bench.warnings[:1],
            (__doc__ or "").partition("What is measured in two ways:")[2].strip(),
            verdict(found),
        ]
    )
    print(told)
    (out / "agreement.txt").write_text(told + "\n", "utf-8")
    whole = {
        "facts": facts,
        "within": WITHIN,
        "ratios": ratios(found, {**JUDGED, **MEDIANS}),
        "off itself": chance(found, {**JUDGED, **MEDIANS}),
        "agrees": agrees(found),
        "runs": [asdict(one) for one in found],
    }
    (out / "agreement.json").write_text(json.dumps(whole, indent=2) + "\n", "utf-8")
    sys.exit(0 if agrees(found) else 1)


if __name__ == "__main__":
    main()
