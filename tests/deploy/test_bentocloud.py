"""deploy/bentocloud: a file that BentoML's own schema takes, with no field that it would ignore."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Deployed = Callable[[str, int], Path]
ReadSettings = Callable[..., dict[str, Any]]

#: BentoML's schema drops what it does not know, so the keys are compared with its classes' fields.
_CHECK = """
import sys, typing
import attr, yaml
from bentoml._internal.cloud.deployment import DeploymentAPI
from bentoml._internal.cloud.schemas.modelschemas import DeploymentStrategy
from bentoml._internal.cloud.schemas.schemasv2 import CreateDeploymentSchema
from bentoml._internal.utils.cattr import bentoml_cattr
from _bentoml_sdk.service.config import validate

def check(value, kind, place):
    if typing.get_origin(kind) is typing.Union:
        [kind] = [one for one in typing.get_args(kind) if one is not type(None)]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is list:
        for number, item in enumerate(value):
            check(item, arguments[0], f"{place}[{number}]")
    elif origin is dict and isinstance(value, dict):
        for key, item in value.items():
            check(item, arguments[1], f"{place}.{key}")
    elif attr.has(kind):
        fields = attr.fields_dict(attr.resolve_types(kind))
        for key, item in value.items():
            if key not in fields:
                print(f"{place}.{key}: no such field")
            else:
                check(item, fields[key].type, f"{place}.{key}")

document = yaml.safe_load(open(sys.argv[1]))
check(document, CreateDeploymentSchema, "")
deployment = bentoml_cattr.structure(document, CreateDeploymentSchema)
DeploymentAPI._fix_and_validate_schema(deployment)
versions = (deployment.canary.versions if deployment.canary else None) or {}
for one in [deployment, *versions.values()]:
    for service in one.services.values():
        if service.deployment_strategy:
            DeploymentStrategy(service.deployment_strategy)
        validate(service.config_overrides)
"""


@pytest.fixture
def file(deployed: Deployed, shape: int) -> Path:
    return deployed("bentocloud", shape) / "deploy/bentocloud/deployment.yaml"


@pytest.fixture
def faults(demo_environment: Path) -> Callable[[Path], str]:
    """faults(file): what BentoML says to a deployment file, and the fields it would ignore."""

    def check(file: Path) -> str:
        command = [str(demo_environment / "bin/python"), "-c", _CHECK, str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout + (done.stderr if done.returncode else "")

    return check


def with_canary(text: str) -> str:
    """The file with its canary block taken in."""
    head, _, block = text.partition("# canary:\n")
    return head + "canary:\n" + re.sub(r"^# ", "", block, flags=re.MULTILINE)


def test_the_file_fits_bentomls_schema(file: Path, faults: Callable[[Path], str]) -> None:
    assert faults(file) == ""


@pytest.mark.parametrize("shape", [0, 2])  # on a CPU, on GPUs
def test_the_canary_block_fits_once_it_is_taken_in(
    deployed: Deployed, faults: Callable[[Path], str], tmp_path: Path, shape: int
) -> None:
    folder = deployed("bentocloud", shape) / "deploy/bentocloud"
    text = with_canary((folder / "deployment.yaml").read_text())
    changed = tmp_path / "deployment.yaml"
    changed.write_text(text)
    assert faults(changed) == ""
    canary = yaml.safe_load(text)["canary"]
    assert canary["versions"]["next"]["weight"] == 10
    document = yaml.safe_load(text)
    assert canary["versions"]["next"]["services"].keys() == document["services"].keys()


@pytest.mark.parametrize(
    ("right", "wrong", "fault"),
    [
        ("scaling:", "scalings:", "services.Service.scalings: no such field"),
        ("RollingUpdate", "Rolling", "'Rolling' is not a valid DeploymentStrategy"),
        ("min_replicas: 1 ", "min_replicas: 9 ", "less than or equal to max scaling values"),
        ("concurrency: 16", "concurrency: many", "concurrency"),
    ],
)
def test_a_wrong_field_is_found(
    deployed: Deployed,
    faults: Callable[[Path], str],
    tmp_path: Path,
    right: str,
    wrong: str,
    fault: str,
) -> None:
    text = (deployed("bentocloud", 0) / "deploy/bentocloud/deployment.yaml").read_text()
    assert right in text
    changed = tmp_path / "deployment.yaml"
    changed.write_text(text.replace(right, wrong, 1))
    assert fault in faults(changed)


def test_the_service_is_the_class_in_service_py(file: Path) -> None:
    [name] = yaml.safe_load(file.read_text())["services"]
    assert f"\nclass {name}:\n" in (file.parent / "../../service.py").read_text()


def test_secrets_are_named_and_no_value_stands_in_the_file(file: Path) -> None:
    document = yaml.safe_load(file.read_text())
    assert document["secrets"] == [f"{document['name']}-secrets"]
    envs = {variable["name"]: variable["value"] for variable in document["envs"]}
    assert envs.keys() == {"SERVING_CONFIG", "SERVING_ENGINES"}
    assert envs["SERVING_CONFIG"].endswith("/src/deploy/bentocloud/serving.yaml")


def test_times_are_longer_than_those_of_serving_yaml(
    file: Path, read_settings: ReadSettings
) -> None:
    times = read_settings(file.parent.parent.parent, file.parent / "serving.yaml")["timeouts"]
    [service] = yaml.safe_load(file.read_text())["services"].values()
    assert service["cold_start_timeout"] >= times["start"] + times["warmup"]
    policy = service["scaling"]["policy"]
    assert policy["scale_down_stabilization_window"] >= times["start"] + times["warmup"]
    longest = max(
        times["lazy"] + times["queue"] + times["answer"], times["start"] + times["warmup"]
    )
    assert service["config_overrides"]["traffic"]["timeout"] == longest + 60
