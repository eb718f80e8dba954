"""deploy/ray/serve.yaml against Ray's own schema, which refuses what it does not know."""

from __future__ import annotations

import subprocess
from pathlib import Path

from baking import ROOT, Template

_CHECK = """
import sys, yaml
from ray.serve.schema import ServeDeploySchema
for name in sys.argv[1:]:
    try:
        ServeDeploySchema.model_validate(yaml.safe_load(open(name)))
        print("fits")
    except ValueError as error:
        print(str(error).replace("\\n", " "))
"""


def check(*files: Path) -> list[str]:
    """What Ray says to each of them."""
    command = [str(ROOT / "build/ray/bin/python"), "-c", _CHECK, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_each_shape_fits_and_a_wrong_key_does_not(template: Template, tmp_path: Path) -> None:
    files = []
    for gpus in ("0", "1", "2"):
        answers = {"engine": "vllm", "model_source": "huggingface", "gpus_per_replica": gpus}
        project = template.bake(tmp_path / gpus / "projects", deployment="ray", **answers)
        files.append(project / "deploy/ray/serve.yaml")
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(files[0].read_text("utf-8").replace("max_surge_percent", "max_surge"))
    *fits, refused = check(*files, wrong)
    assert fits == ["fits"] * 3
    assert "max_surge" in refused
