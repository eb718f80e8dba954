"""The generated workflow: GitHub's schema and a linter take it, and its actions are pinned."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Bake = Callable[..., Path]
PROGRAMS = Path(sys.executable).parent
SHAPES = [
    {"engine": engine, "deployment": deployment}
    for engine in ("transformers", "vllm")
    for deployment in ("none", "kubernetes")
]


def check(program: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [str(PROGRAMS / program), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(params=SHAPES, ids=lambda shape: "-".join(shape.values()))
def workflow(bake: Bake, request: pytest.FixtureRequest) -> Path:
    return bake(ci="github", **request.param) / ".github/workflows/ci.yml"


def jobs(workflow: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(workflow.read_text("utf-8"))["jobs"]
    return found


def test_githubs_schema_and_the_strictest_linter_take_it(workflow: Path) -> None:
    schema = check("check-jsonschema", "--builtin-schema", "vendor.github-workflows", str(workflow))
    assert schema.returncode == 0, schema.stdout
    linted = check("zizmor", "--offline", "--no-progress", "--persona", "auditor", str(workflow))
    assert linted.returncode == 0, linted.stdout


def test_the_linter_finds_what_it_is_there_for(bake: Bake) -> None:
    workflow = bake(ci="github") / ".github/workflows/ci.yml"
    unpinned = re.sub(r"@[0-9a-f]{40} # (v[0-9.]+)", r"@\1", workflow.read_text("utf-8"))
    workflow.write_text(unpinned, "utf-8")
    linted = check("zizmor", "--offline", "--no-progress", str(workflow))
    assert "unpinned-uses" in linted.stdout
    assert linted.returncode != 0


def test_every_action_is_pinned_to_a_commit_and_says_which_release_that_is(workflow: Path) -> None:
    text = workflow.read_text("utf-8")
    uses = re.findall(r"uses: .*", text)
    assert uses
    assert all(re.fullmatch(r"uses: [\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", one) for one in uses)


def test_it_lints_tests_builds_and_on_a_tag_ships(workflow: Path) -> None:
    found = jobs(workflow)
    told = [step["run"] for step in found["test"]["steps"] if "run" in step]
    assert told == ["make gateway", "sudo make servers", "make lint", "make test"]
    assert "${{ matrix.python }}" in workflow.read_text("utf-8")
    assert found["image"]["if"] == "startsWith(github.ref, 'refs/tags/v')"
    assert ("deploy" in found) == ("kubernetes" in str(workflow.read_text("utf-8")).lower())


def test_its_make_targets_are_the_projects(workflow: Path) -> None:
    project = workflow.parent.parent.parent
    targets = set(re.findall(r"make ([a-z]+)", workflow.read_text("utf-8")))
    assert targets == {"gateway", "servers", "lint", "test", "bento", "image"}
    for target in targets:
        done = subprocess.run(
            ["make", "--dry-run", target, "IMAGE=x"], cwd=project, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr


def test_its_deployment_names_what_the_files_name(bake: Bake) -> None:
    project = bake(ci="github", deployment="kubernetes", project_slug="my-llm")
    (run,) = [
        step["run"]
        for step in jobs(project / ".github/workflows/ci.yml")["deploy"]["steps"]
        if "run" in step
    ]
    assert "deployment/my-llm" in run
    image = (project / "deploy/kubernetes/image/kustomization.yaml").read_text("utf-8")
    for pattern in ("newName: .*", "newTag: .*"):
        assert pattern in run
        assert len(re.findall(pattern, image)) == 1
