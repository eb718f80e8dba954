"""Fixtures of the tests of deployment files: bakes, and the validators' environment."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from baking import ROOT, Template

#: Engine, model source and GPUs: each engine on a CPU and on GPUs, each source once.
SHAPES = [
    {"engine": "transformers", "model_source": "demo", "gpus_per_replica": "0"},
    {"engine": "transformers", "model_source": "local", "gpus_per_replica": "1"},
    {"engine": "vllm", "model_source": "huggingface", "gpus_per_replica": "2"},
    {"engine": "vllm", "model_source": "demo", "gpus_per_replica": "0"},
    {"engine": "sglang", "model_source": "huggingface", "gpus_per_replica": "1"},
    {"engine": "sglang", "model_source": "local", "gpus_per_replica": "0"},
]


@dataclass(frozen=True)
class Validators:
    """Programs that check deployment files, in an environment of their own."""

    environment: Path

    def kustomize(self, folder: Path) -> str:
        """What `kubectl apply -k FOLDER` would send."""
        command = [str(self.environment / "bin/kubectl"), "kustomize", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""  # kubectl warns there of what it will no longer read
        return done.stdout

    def compose_config(self, file: Path, variables: dict[str, str]) -> tuple[str, str]:
        """What Compose makes of a file with the values of an .env, and what it complains of."""
        command = [str(self.environment / "bin/podman-compose"), "--file", str(file), "config"]
        surroundings = {"PATH": os.environ["PATH"], **variables}
        done = subprocess.run(
            command, env=surroundings, capture_output=True, text=True, check=False
        )
        return (done.stdout, "") if done.returncode == 0 else ("", done.stderr)

    def faults(self, kind: str, text: str, scratch: Path) -> list[str]:
        """The faults of manifests or of a compose file, by validate.py."""
        scratch.write_text(text, "utf-8")
        program = Path(__file__).parent / "validate.py"
        command = [str(self.environment / "bin/python"), str(program), kind, str(scratch)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.stderr == ""
        return done.stdout.splitlines()


@pytest.fixture(scope="session")
def validators() -> Validators:
    """The environment of `make validators`; VALIDATORS names another."""
    environment = Path(os.environ.get("VALIDATORS", ROOT / "build/validators"))
    if not (environment / "bin/kubectl").is_file():
        message = f"{environment} has no kubectl: run make validators, which installs it"
        if os.environ.get("CI"):
            pytest.fail(message, pytrace=False)
        pytest.skip(message)
    return Validators(environment)


@pytest.fixture(scope="session")
def deployed(
    template: Template, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, int], Path]:
    """deployed("compose", 2): the project with those deployment files in the third shape."""
    folder = tmp_path_factory.mktemp("deployed")

    @cache
    def bake(deployment: str, shape: int) -> Path:
        into = folder / f"{deployment}-{shape}" / "projects"
        return template.bake(into, deployment=deployment, **SHAPES[shape])

    return bake


@pytest.fixture(
    scope="session", params=range(len(SHAPES)), ids=lambda n: "-".join(SHAPES[n].values())
)
def shape(request: pytest.FixtureRequest) -> int:
    """Each of the shapes in turn."""
    number: int = request.param
    return number


def documents(text: str) -> list[dict[str, Any]]:
    """The objects of a rendered overlay."""
    return [document for document in yaml.safe_load_all(text) if document]


#: Reads what a deployment gives the service by the service's own code.
_READ = """
import pathlib, sys
from serving.runtime.wanted import Routing
from serving.settings import load_settings
settings = load_settings(pathlib.Path(sys.argv[1]))
for routing in sys.argv[2:]:
    Routing.model_validate_json(pathlib.Path(routing).read_text())
print(settings.model_dump_json())
"""


@pytest.fixture(scope="session")
def read_settings(demo_environment: Path) -> Callable[..., dict[str, Any]]:
    """read_settings(project, file, routing): the settings as the service itself reads them, with
    their defaults; the project's own code must take both files."""

    @cache
    def read(project: Path, file: Path, *routing: Path) -> dict[str, Any]:
        python = demo_environment / "bin/python"
        surroundings = {
            "PYTHONPATH": str(project),
            "DATABASE_URL": "postgresql://h/n",
            "REDIS_URL": "redis://h/0",
        }
        done = subprocess.run(
            [python, "-c", _READ, file, *routing],
            env=os.environ | surroundings,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        settings: dict[str, Any] = yaml.safe_load(done.stdout)
        return settings

    return read
