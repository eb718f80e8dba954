"""How true the project's load generator measures: known delays, 200 streams at once.

    make bench-clock

A scripted engine sends the first token after 100 ms and the others 50 ms apart. The generator's
times are set against those, and against what the engine's own clock says of the same answers: a
busy machine makes the engine late too, which is no error of the generator's. Wanted: within 2 ms of
the engine's clock at p50 and p99. Exit code 1 when that does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

from contenders import bare_engine
from kept import FOLDER, kept
from relay import HOST, fake_home

FIRST_MS, GAP_MS, TOKENS, STREAMS = 100.0, 50.0, 32, 200
WITHIN_MS = 2.0


def percentile(values: list[float], share: float) -> float:
    return statistics.quantiles(values, n=1000, method="inclusive")[round(share * 1000) - 1]


def measured(project: Path, url: str, out: Path, seconds: int) -> dict[str, Any]:
    """The report of a run of that many users, by a worker process."""
    command = [project / ".venv/bin/python", "-m", "loadtests", "load", "--url", url]
    command += ["--model", "model", "--stage", f"{STREAMS}u:{seconds}s", "--answer", str(TOKENS)]
    command += ["--workers", "1", "--warm-up", "3s", "--out", out]
    done = subprocess.run(
        [str(word) for word in command],
        cwd=project,
        env={**os.environ, "SERVING_KEY": "none"},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"The load test ended with {done.returncode}:\n{done.stdout}")
    report: dict[str, Any] = json.loads((out / "report.json").read_text("utf-8"))
    return report


def clocked(port: int) -> tuple[list[float], list[float]]:
    """Of the engine's last answers, by its own clock: ms from the request to the first token, and
    from there to the last."""
    with urllib.request.urlopen(f"http://{HOST}:{port}/stats", timeout=10) as reply:
        stats = json.load(reply)
    spans = [(end - begin) * 1000 for begin, end in stats["spans"]]
    return [wait * 1000 for wait in stats["waits"]], spans


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--project", type=Path, required=True, help="a baked, installed project")
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--out", type=Path, default=FOLDER / "clock")
    options = parser.parse_args()
    project: Path = options.project.absolute()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        home = fake_home(project, folder / "engine")
        answer = {"tokens": TOKENS, "first_delay_ms": FIRST_MS, "delay_ms": GAP_MS}
        behaviour = folder / "behaviour.json"
        behaviour.write_text(json.dumps({"default": answer}))
        os.environ["SCRIPTED_BEHAVIOUR"] = str(behaviour)
        with bare_engine(project, home, folder) as engine:
            url = f"http://{HOST}:{engine.port}"
            report = measured(project, url, options.out.absolute(), options.seconds)
            engines = clocked(engine.port)
    with kept("clock", locust=report["machine"]["locust"]):
        passed = tell(report, engines)
    sys.exit(0 if passed else 1)


def tell(report: dict[str, Any], engine: tuple[list[float], list[float]]) -> bool:
    """Prints the table; returns whether all is within the bound."""
    stage = len(report["stages"]) - 1
    samples = [s for s in report["samples"] if s["stage"] == stage and s["outcome"] == "whole"]
    samples = samples[-len(engine[0]) :]
    gaps = TOKENS - 1
    rows = [
        ("TTFT", FIRST_MS, engine[0], [s["ttft"] * 1000 for s in samples]),
        (
            "TPOT",
            GAP_MS,
            [span / gaps for span in engine[1]],
            [(s["latency"] - s["ttft"]) * 1000 / gaps for s in samples],
        ),
        (
            "end to end",
            FIRST_MS + gaps * GAP_MS,
            [wait + span for wait, span in zip(*engine, strict=True)],
            [s["latency"] * 1000 for s in samples],
        ),
    ]
    print(f"the last {len(samples)} answers of {TOKENS} tokens, {STREAMS} at once; ms")
    print(f"{'':12}{'':5}{'known':>9}{'engine':>10}{'measured':>10}{'off':>8}")
    passed = len(samples) >= STREAMS
    for name, known, theirs, ours in rows:
        for share in (0.5, 0.99):
            own, value = percentile(theirs, share), percentile(ours, share)
            passed &= abs(value - own) <= WITHIN_MS
            print(
                f"{name:12}p{share * 100:<4.0f}{known:9.1f}{own:10.2f}{value:10.2f}"
                f"{value - own:+8.2f}"
            )
    print(f"within {WITHIN_MS:g} ms of the engine's clock: {'yes' if passed else 'NO'}")
    return passed


if __name__ == "__main__":
    main()
