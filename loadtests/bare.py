"""Real engines through the service, beside their bare servers: what the gateway costs there.

    make bench-bare

For each engine, the project's own `loadtests baseline`: the same work to the engine's process and
through the service in turn, in pairs. ENGINES=vllm or so runs some only. The environments are those
of `make test-engines`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from engines.harness import ENGINES, SECTIONS
from kept import FOLDER, bentoml, kept
from relay import prepared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--project", type=Path, required=True, help="a baked, installed project")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=int, default=120, help="for each engine")
    parser.add_argument("--rate", type=float, default=1.0, help="requests a second")
    options = parser.parse_args()
    project: Path = options.project.absolute()
    failed = []
    with kept("bare", bentoml=bentoml(project)):
        for name in ENGINES:
            words = ["--rounds", str(options.rounds), "--seconds", f"{options.seconds}s"]
            words += ["--rate", str(options.rate), "--out", str(FOLDER / f"bare-{name}")]
            if not baseline(project, name, words):
                failed.append(name)
    if failed:
        sys.exit(f"No baseline of {', '.join(failed)}: see above.")


def baseline(project: Path, name: str, words: list[str]) -> bool:
    """Prints the table of that engine; False where an answer broke or nothing ran."""
    with tempfile.TemporaryDirectory() as scratch:
        settings = {
            "service": {"name": "bench"},
            "engine": {**SECTIONS[name], "name": name},
            "models": {"chat": {"warmup": {"rounds": 2}}},
        }
        environment = prepared(project, Path(scratch), yaml.safe_dump(settings))
        done = subprocess.run(
            [project / ".venv/bin/python", "-m", "loadtests", "baseline", *words],
            cwd=project,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
    program = Path(SECTIONS[name]["home"]) / "bin/python"
    ask = f"from importlib.metadata import version; print(version({name!r}))"
    version = subprocess.run([program, "-c", ask], check=True, stdout=subprocess.PIPE, text=True)
    print(f"\n{name} {version.stdout.strip()}")
    if done.returncode not in (0, 1):
        print(done.stdout)
        return False
    report = json.loads((FOLDER / f"bare-{name}" / "report.json").read_text("utf-8"))
    for table in report["tables"]:
        print(table["title"])
        for row in [table["columns"], *table["rows"]]:
            print("  " + "".join(f"{cell:<28}" for cell in row).rstrip())
    for verdict in report["verdicts"]:
        print(f"  {verdict['name']}: {verdict['text']}")
    return done.returncode == 0


if __name__ == "__main__":
    main()
