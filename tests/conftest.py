"""Fixtures of the template's tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from baking import ROOT, Template


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Template:
    """This template as a clean git repository with one commit; not to be changed by a test."""
    return Template.copy_to(tmp_path_factory.mktemp("template"))


@pytest.fixture
def changing_template(tmp_path: Path) -> Template:
    """A copy of the template that one test may commit to."""
    return Template.copy_to(tmp_path / "template")


@pytest.fixture
def bake(template: Template, tmp_path: Path) -> Callable[..., Path]:
    """Bake a project into the test's own folder: bake(engine="vllm") -> its path."""
    return partial(template.bake, tmp_path / "projects")


@pytest.fixture(scope="session")
def demo_environment() -> Path:
    """The gateway's environment that `make bake` made in the demo; DEMO_VENV names another."""
    default = ROOT / "build/demo/llm-service/.venv"
    environment = Path(os.environ.get("DEMO_VENV", default))
    if not (environment / "bin/mypy").exists():
        pytest.fail(f"{environment} has no mypy: run make bake, which installs it", pytrace=False)
    return environment
