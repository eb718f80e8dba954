"""Every combination of answers bakes the files it should, and nothing of the template shows."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from allpairspy import AllPairs
from baking import ANSWERS, SLUG, Template, files, git

Bake = Callable[..., Path]

PLAIN = {"project_name": "LLM Service", "description": "Answers.", "author": "A Team"}
AWKWARD = {
    "project_name": "Ünï: \"quoted\" & 'odd' #1",
    "description": 'A "quoted" back\\slash, a colon: and 🚀 #hash',
    "author": 'D\'Arcy "Dee" O\\Brien',
}

CHOICES: dict[str, list[Any]] = {
    "engine": ANSWERS["engine"],
    "model_source": ANSWERS["model_source"],
    "ci": ANSWERS["ci"],
    "license": ANSWERS["license"],
    "deployment": ANSWERS["deployment"],
    "served_model_name": ["chat", "1.5", "null"],
    "texts": [PLAIN, AWKWARD],
}

ALWAYS = {
    ".gitattributes",
    ".gitignore",
    "Containerfile",
    "LICENSE",
    "Makefile",
    "README.md",
    "bentofile.yaml",
    "engines/sglang.txt",
    "engines/transformers.txt",
    "engines/vllm.txt",
    "openapi.json",
    "pyproject.toml",
    "service.py",
    "serving.yaml",
    "warmup_hooks.py",
}
CI = {".github/workflows/ci.yml"}
DEMO = {
    "demo_model/README.md",
    "demo_model/chat_template.jinja",
    "demo_model/config.json",
    "demo_model/corpus.py",
    "demo_model/generation_config.json",
    "demo_model/model.safetensors",
    "demo_model/tokenizer.json",
    "demo_model/tokenizer_config.json",
    "demo_model/train.py",
}
DEPLOYMENT = {
    "bentocloud": {"README.md", "deployment.yaml", "serving.yaml"},
    "compose": {
        ".env.example",
        "README.md",
        "compose.yaml",
        "grafana/dashboards.yaml",
        "grafana/datasources.yaml",
        "prometheus.yml",
        "serving.yaml",
    },
    "kserve": {
        "README.md",
        "import-job.yaml",
        "inferenceservice.yaml",
        "kustomization.yaml",
        "models.yaml",
        "names.yaml",
        "networkpolicy.yaml",
        "routing.json",
        "secret.example.yaml",
        "serving.yaml",
        "serviceaccount.yaml",
    },
    "kubernetes": {
        "README.md",
        "base/deployment.yaml",
        "base/kustomization.yaml",
        "base/networkpolicy.yaml",
        "base/poddisruptionbudget.yaml",
        "base/routing.json",
        "base/secret.example.yaml",
        "base/service.yaml",
        "base/serving.yaml",
        "components/keda/kustomization.yaml",
        "components/keda/scaledobject.yaml",
        "components/pull-models/kustomization.yaml",
        "image/kustomization.yaml",
        "import/job.yaml",
        "import/kustomization.yaml",
        "overlays/cpu/kustomization.yaml",
        "overlays/gpu-mig/kustomization.yaml",
        "overlays/gpu-shared/kustomization.yaml",
        "overlays/gpu/kustomization.yaml",
        "overlays/replicas/autoscaler.yaml",
        "overlays/replicas/kustomization.yaml",
        "store/kustomization.yaml",
        "store/models.yaml",
        "store/networkpolicy.yaml",
        "store/serviceaccount.yaml",
    },
    "ray": {"README.md", "application.py", "requirements.txt", "serve.yaml", "serving.yaml"},
}
COPIED = ("serving", "tests", "loadtests", "observability")
PLAIN_FILES = ("service.py", "warmup_hooks.py", "openapi.json", "Containerfile")
COPIED_FOLDERS = tuple(f"{folder}/" for folder in COPIED)

#: Makes environments that hold but itself, and says what it would install.
PRETEND_PYTHON = """\
#!/bin/sh
case "$*" in
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-m pip "*) echo "$@" ;;
esac
"""

JINJA = re.compile(r"cookiecutter(\.\w|\s*[|\[])|\{\{|\{%|\{#")
GITHUB_EXPRESSION = re.compile(r"\$\{\{.*?\}\}")


def combinations() -> Iterator[dict[str, str]]:
    """Answers that cover every pair of choices, and so every engine with every source."""
    for values in AllPairs(list(CHOICES.values())):
        answers = dict(zip(CHOICES, values, strict=True))
        yield {**answers.pop("texts"), **answers}


COMBINATIONS = list(combinations())


@pytest.fixture(
    scope="module",
    params=COMBINATIONS,
    ids=lambda answers: "-".join(
        [answers[name] for name in ("engine", "model_source", "ci", "license", "deployment")]
    ),
)
def baked(
    request: pytest.FixtureRequest, template: Template, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, str], Path]:
    """One combination of answers and the project it became."""
    answers = request.param
    return answers, template.bake(tmp_path_factory.mktemp("baked") / "projects", **answers)


def test_the_matrix_holds_every_engine_with_every_source() -> None:
    covered = {(answers["engine"], answers["model_source"]) for answers in COMBINATIONS}
    assert covered == set(itertools.product(ANSWERS["engine"], ANSWERS["model_source"]))


def test_a_bake_holds_exactly_the_files_its_answers_ask_for(
    baked: tuple[dict[str, str], Path], template: Template
) -> None:
    answers, project = baked
    expected = set(ALWAYS)
    if answers["ci"] == "github":
        expected |= CI
    if answers["model_source"] == "demo":
        expected |= DEMO
    target = answers["deployment"]
    expected |= {f"deploy/{target}/{name}" for name in DEPLOYMENT.get(target, set())}
    for folder in COPIED:
        expected |= {f"{folder}/{name}" for name in files(template.project / folder)}
    assert files(project) == expected


def test_a_bake_holds_no_empty_folder(baked: tuple[dict[str, str], Path]) -> None:
    _, project = baked
    folders = [path for path in project.rglob("*") if path.is_dir() and ".git" not in path.parts]
    assert [path for path in folders if not any(path.iterdir())] == []


def test_what_holds_no_jinja_is_copied_byte_for_byte(
    baked: tuple[dict[str, str], Path], template: Template
) -> None:
    _, project = baked
    names = [f"{folder}/{name}" for folder in COPIED for name in files(project / folder)]
    for name in [*PLAIN_FILES, *names]:
        assert (project / name).read_bytes() == (template.project / name).read_bytes(), name


def test_no_jinja_of_the_template_is_left(baked: tuple[dict[str, str], Path]) -> None:
    _, project = baked
    binary = {"demo_model/model.safetensors"}
    own_jinja = {"demo_model/chat_template.jinja"}
    for name in files(project) - binary - own_jinja:
        if name.startswith(COPIED_FOLDERS):
            continue
        text = GITHUB_EXPRESSION.sub("", (project / name).read_text())
        assert JINJA.search(text) is None, name


def test_pyproject_carries_the_texts_as_they_were_answered(
    baked: tuple[dict[str, str], Path],
) -> None:
    answers, project = baked
    metadata = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    assert metadata["name"] == project.name
    assert metadata["description"] == answers["description"]
    assert metadata["authors"] == [{"name": answers["author"]}]
    assert metadata["license"].removeprefix("LicenseRef-") == answers["license"]


def test_serving_yaml_carries_the_answers(baked: tuple[dict[str, str], Path]) -> None:
    answers, project = baked
    settings = yaml.safe_load((project / "serving.yaml").read_text())
    transformers = answers["engine"] == "transformers"
    assert settings["service"] == {"name": project.name}
    assert settings["engine"]["name"] == answers["engine"]
    assert settings["engine"]["gpus"] == (0 if transformers else 1)
    assert ("continuous_batching" in settings["engine"]) is transformers
    length = 512 if answers["model_source"] == "demo" else 4096
    assert settings["engine"]["max_model_len"] == length
    assert list(settings["models"]) == [answers["served_model_name"]]
    assert (project / f"engines/{settings['engine']['name']}.txt").is_file()


@pytest.mark.parametrize("license_name", ANSWERS["license"])
def test_the_licence_is_the_chosen_one(bake: Bake, license_name: str, template: Template) -> None:
    text = (bake(license=license_name, author="A Team") / "LICENSE").read_text()
    if license_name == "Apache-2.0":
        assert text == (template.path / "LICENSE").read_text()
    else:
        opening = {"MIT": "MIT License\n", "Proprietary": "Copyright (c) A Team. All rights"}
        assert text.startswith(opening[license_name])
        assert "Copyright (c) A Team" in text


def test_the_demo_model_arrives_byte_for_byte(bake: Bake, template: Template) -> None:
    project = bake(model_source="demo")
    for name in DEMO:
        folder, _, file = name.partition("/")
        source = f"{{% if cookiecutter.model_source == 'demo' %}}{file}{{% endif %}}"
        original = (template.project / folder / source).read_bytes()
        if original.startswith(b"{% raw %}"):
            original = original.removeprefix(b"{% raw %}").removesuffix(b"{% endraw %}")
        assert (project / name).read_bytes() == original, name


def test_make_names_every_target_of_a_bake(baked: tuple[dict[str, str], Path]) -> None:
    _, project = baked
    # These tests run under a make of their own, which would have this one announce its folder.
    command = ["make", "--no-print-directory"]
    told = subprocess.run(command, cwd=project, check=True, capture_output=True, text=True)
    targets = [line.split()[1] for line in told.stdout.splitlines()]
    assert targets == [
        *("help", "install", "gateway", "engine", "model", "serve"),
        *("bento", "image", "sbom", "loadtest", "lint", "test"),
    ]
    assert told.stderr == ""


@pytest.mark.parametrize("name", ANSWERS["engine"])
def test_make_engine_installs_the_engine_that_serving_yaml_names(
    bake: Bake, demo_environment: Path, name: str
) -> None:
    project = bake(engine=name)
    python = project / "pretend-python"
    python.write_text(PRETEND_PYTHON)
    python.chmod(0o755)
    # The gateway is the demo's, reading this project's code; only its stamp says it is up to date.
    (project / ".venv").symlink_to(demo_environment)
    command = ["make", "--old-file=gateway", "engine", f"PYTHON={python}"]
    done = subprocess.run(
        command,
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(project)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert f"Installing the engine {name} into .engine" in done.stdout
    assert f"install --requirement {project}/engines/{name}.txt" in done.stdout


@pytest.mark.parametrize(
    ("source", "model_id", "wanted"),
    [
        ("demo", None, "demo"),
        ("huggingface", None, "Qwen/Qwen3-0.6B"),
        ("huggingface", "org/name@v1.0", "org/name@v1.0"),
        ("local", None, "./models/my-model"),
        ("local", "/srv/models/m", "/srv/models/m"),
        ("local", "../m", "../m"),
    ],
)
def test_make_model_imports_the_answered_source(
    bake: Bake, source: str, model_id: str | None, wanted: str
) -> None:
    answers = {"model_id": model_id} if model_id else {}
    makefile = (bake(model_source=source, **answers) / "Makefile").read_text()
    assert f"\nMODEL ?= chat\nSOURCE ?= {wanted}\n" in makefile


def test_a_bake_is_a_clean_git_repository_with_one_commit_on_main(
    baked: tuple[dict[str, str], Path],
) -> None:
    _, project = baked
    assert git(project, "rev-list", "--all", "--count").strip() == "1"
    assert git(project, "status", "--porcelain", "--ignored").strip() == ""
    assert git(project, "branch", "--show-current").strip() == "main"


def test_the_first_commit_needs_no_git_identity(
    bake: Bake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "gitconfig"
    config.write_text("[user]\n\tuseConfigOnly = true\n[commit]\n\tgpgsign = true\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    project = bake()
    assert git(project, "rev-list", "--all", "--count").strip() == "1"


def test_a_bake_inside_another_repository_stays_part_of_it(
    template: Template, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    git(tmp_path, "init", "--quiet")
    project = template.bake(tmp_path / "services")
    assert not (project / ".git").exists()
    assert "already inside a git repository" in capfd.readouterr().out


def test_a_bake_started_from_a_git_hook_leaves_that_repository_alone(
    bake: Bake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "--quiet")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    project = bake()
    monkeypatch.delenv("GIT_DIR")
    assert git(project, "rev-list", "--all", "--count").strip() == "1"
    assert git(other, "rev-list", "--all", "--count").strip() == "0"


def test_a_bake_without_git_says_so_and_goes_on(
    bake: Bake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    project = bake()
    assert not (project / ".git").exists()
    assert "git is not installed" in capfd.readouterr().out


def test_a_bake_over_an_older_one_keeps_what_it_did_not_make(
    template: Template, tmp_path: Path
) -> None:
    project = template.bake(tmp_path / "projects")
    (project / ".engine/empty").mkdir(parents=True)
    (project / "mine.py").write_text("mine = 1\n")
    assert template.bake_over(tmp_path / "projects") == project
    assert (project / ".engine/empty").is_dir()
    assert (project / "mine.py").read_text() == "mine = 1\n"


def test_a_bake_ends_by_naming_the_next_commands(
    bake: Bake, capfd: pytest.CaptureFixture[str]
) -> None:
    bake(project_name="My Chat")
    lines = capfd.readouterr().out.split("Next:\n")[1].splitlines()
    commands = [line.split("#")[0].strip() for line in lines]
    assert commands == ["cd my-chat", "make install", "make model", "make serve"]


@pytest.mark.parametrize(
    ("name", "slug"),
    [("LLM Service", SLUG), ("my_chat api", "my-chat-api"), ("Ünï!", "uni"), ("A  B", "a-b")],
)
def test_the_slug_is_derived_from_the_name(bake: Bake, name: str, slug: str) -> None:
    assert bake(project_name=name).name == slug


def test_every_question_has_a_prompt_and_every_choice_a_label() -> None:
    prompts = ANSWERS["__prompts__"]
    questions = {name: answer for name, answer in ANSWERS.items() if not name.startswith("_")}
    assert list(prompts) == list(questions)
    for name, answer in questions.items():
        if isinstance(answer, list):
            assert set(prompts[name]) == {"__prompt__", *answer}, name
