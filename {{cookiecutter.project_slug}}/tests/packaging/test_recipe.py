"""What the image is made of: a base for the engine, and environments apart from each other."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from live_service import PROJECT

from serving.packaging.recipe import image
from serving.settings import Settings, load_settings


def settings(folder: Path, engine: dict[str, Any], model: dict[str, Any] | None = None) -> Settings:
    document = {
        "service": {"name": "llm"},
        "engine": {"max_model_len": 256, **engine},
        "models": {"chat": model or {}},
    }
    path = folder / "serving.yaml"
    path.write_text(yaml.safe_dump(document), "utf-8")
    return load_settings(path, surroundings=False)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("SERVING_BASE_IMAGE", raising=False)
    shutil.copytree(PROJECT / "engines", tmp_path / "engines")
    (tmp_path / "pyproject.toml").symlink_to(PROJECT / "pyproject.toml")
    return tmp_path


def test_transformers_gets_a_slim_image_and_its_pins_in_an_environment_of_its_own(
    project: Path,
) -> None:
    recipe = image(settings(project, {"name": "transformers"}), project)
    assert recipe.base_image == "docker.io/library/python:3.11-slim-bookworm"
    [command] = recipe.commands
    assert command.startswith("python3 -m venv /app/engine && ")
    assert "torch==2.13.0 'transformers[serving]==5.23.0' >" in command
    assert "#" not in command
    assert "bentoml>=" in recipe.python_requirements
    assert "torch" not in recipe.python_requirements


def test_an_index_in_the_pins_goes_along(project: Path) -> None:
    with (project / "engines/transformers.txt").open("a") as pins:
        pins.write("--extra-index-url https://example.com/cpu  # PyTorch's\n")
    [command] = image(settings(project, {"name": "transformers"}), project).commands
    assert (
        "'transformers[serving]==5.23.0' '--extra-index-url https://example.com/cpu' >" in command
    )


@pytest.mark.parametrize("name", ["vllm", "sglang"])
def test_vllm_and_sglang_get_a_cuda_image_with_what_compiles_their_kernels(
    project: Path, name: str
) -> None:
    recipe = image(settings(project, {"name": name, "gpus": 1}), project)
    assert recipe.base_image.startswith("docker.io/nvidia/cuda:")
    setup, command = recipe.commands
    assert "build-essential" in setup
    assert setup.endswith("rm -f /usr/lib/python3*/EXTERNALLY-MANAGED")
    assert f" {name}==" in command


def test_each_home_in_serving_yaml_is_an_environment_in_the_image(project: Path) -> None:
    engines = {2: {"name": "sglang", "home": ".engine-sglang", "max_model_len": 256}}
    made = settings(project, {"name": "vllm"}, {"engines": engines})
    _, first, second = image(made, project).commands
    assert first.startswith("python3 -m venv /app/engine && ")
    assert second.startswith("python3 -m venv /app/engine-sglang && ")


def test_a_server_that_somebody_else_runs_needs_no_environment(project: Path) -> None:
    engine = {"name": "openai_compatible", "url": "http://127.0.0.1:1/v1", "model": "m"}
    recipe = image(settings(project, engine), project)
    assert (recipe.commands, "slim" in recipe.base_image) == ([], True)


def test_serving_base_image_names_another_base(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVING_BASE_IMAGE", "localhost/mine:1")
    recipe = image(settings(project, {"name": "transformers"}), project)
    assert recipe.base_image == "localhost/mine:1"


def test_the_container_file_says_where_everything_is() -> None:
    text = (PROJECT / "Containerfile").read_text("utf-8")
    for line in (
        "BENTOML_HOME=/var/lib/serving/bentoml",
        "SERVING_STATE=/var/lib/serving/state",
        "SERVING_ENGINES=/app/engine",
        "VOLUME /var/lib/serving",
        "USER 1034:1034",
    ):
        assert line in text
    assert text.rstrip().endswith('"--timeout-graceful-shutdown", "5"]')
