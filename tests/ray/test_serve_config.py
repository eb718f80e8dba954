"""deploy/ray/serve.yaml against Ray's own schema, and no key in it that Ray would ignore."""

from __future__ import annotations

import subprocess
from pathlib import Path

from baking import ROOT, Template

#: The schema drops what it does not know, so the keys are compared with those that it kept.
_CHECK = """
import sys, yaml
from ray.serve.schema import ServeDeploySchema

def lost(given, kept, place):
    if isinstance(given, dict):
        for key, value in given.items():
            if not isinstance(kept, dict) or key not in kept:
                yield f"{place}.{key}: no such key"
            else:
                yield from lost(value, kept[key], f"{place}.{key}")
    elif isinstance(given, list):
        for number, (one, other) in enumerate(zip(given, kept)):
            yield from lost(one, other, f"{place}[{number}]")

for name in sys.argv[1:]:
    given = yaml.safe_load(open(name))
    try:
        kept = ServeDeploySchema.model_validate(given).model_dump(exclude_unset=True)
        print("; ".join(lost(given, kept, "")) or "fits")
    except ValueError as error:
        print(str(error).replace("\\n", " "))
"""


def check(*files: Path) -> list[str]:
    """What Ray says to each of them."""
    command = [str(ROOT / "build/ray/bin/python"), "-c", _CHECK, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_each_shape_fits_and_a_wrong_key_or_value_is_found(
    template: Template, tmp_path: Path
) -> None:
    files = []
    for gpus in ("0", "1", "2"):
        answers = {"engine": "vllm", "model_source": "huggingface", "gpus_per_replica": gpus}
        project = template.bake(tmp_path / gpus / "projects", deployment="ray", **answers)
        files.append(project / "deploy/ray/serve.yaml")
    text = files[0].read_text("utf-8")
    key, value = tmp_path / "key.yaml", tmp_path / "value.yaml"
    key.write_text(text.replace("max_surge_percent", "max_surge"))
    value.write_text(text.replace("max_surge_percent: 50", "max_surge_percent: 500"))
    *fits, wrong_key, wrong_value = check(*files, key, value)
    assert fits == ["fits"] * 3
    assert wrong_key == ".applications[0].deployments[0].max_surge: no such key"
    assert "max_surge_percent" in wrong_value
