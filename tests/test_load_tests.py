"""The baked demo's load tests, run as its README says, on the real engine."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from baking import ROOT

DEMO = ROOT / "build/demo/llm-service"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model store with the demo's one version."""
    home = tmp_path_factory.mktemp("store") / "bentoml"
    make(home, "model")
    return home


def make(store: Path, *words: str) -> str:
    done = subprocess.run(
        ["make", "--no-print-directory", *words],
        cwd=DEMO,
        env={**os.environ, "BENTOML_HOME": str(store), "BENTOML_DO_NOT_TRACK": "True"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def report(folder: Path) -> dict[str, Any]:
    assert (folder / "report.html").stat().st_size > 10_000
    told: dict[str, Any] = json.loads((folder / "report.json").read_text("utf-8"))
    return told


def test_a_swap_on_the_real_engine_breaks_no_stream(store: Path, tmp_path: Path) -> None:
    make(store, "loadtest", "SCENARIO=swap", f"ARGS=--seconds 9s --out {tmp_path}")
    swap = report(tmp_path)
    assert {verdict["name"]: verdict["passed"] for verdict in swap["verdicts"]} == {
        "no broken answers": True,
        "both versions answered": True,
    }
    assert {sample["version"] for sample in swap["samples"]} == {"chat:1", "chat:2"}
    # The store of whoever runs it has what it had.
    assert [path.name for path in (store / "models/chat").iterdir() if path.is_dir()] == ["1"]


def test_a_sweep_on_the_real_engine_finds_a_rate_and_leaves_its_report(
    store: Path, tmp_path: Path
) -> None:
    words = "--seconds 15s --steps 3 --rate 0.5 --ttft 30s --answer 8"
    told = make(store, "loadtest", f"ARGS={words} --out {tmp_path}")
    assert f"The report: {tmp_path / 'report.html'}" in told
    sweep = report(tmp_path)
    assert sweep["knee"]["rate"] >= 0.5
    stages = [stage for stage in sweep["stages"] if stage["stage"].get("measured", True)]
    assert len(stages) == 3
    assert all(sample["tokens_out"] == 8 for sample in sweep["samples"] if sample["stage"])
