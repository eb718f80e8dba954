"""`serving bento`, on a copy of the project: what is in it, twice the same, served from nowhere."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import scripted_engine
import yaml
from live_service import PROJECT, chat_body, eventually, free_port

from serving.runtime.store import ModelStore

pytestmark = [pytest.mark.integration]

PACKED = ("bentofile.yaml", "openapi.json", "pyproject.toml", "service.py", "warmup_hooks.py")
SECRET = "sk-not-for-anybody"
#: Files that must stay where they are, each with the secret in it.
PRIVATE = (
    ".env",
    ".engine/bin/python",
    "state/serving.db",
    "state/logs/chat-1.log",
    "serving/__pycache__/secret.pyc",
    "tests/test_secret.py",
    "loadtests/results/report.json",
    "monitoring/data.log",
)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("serving", "engines"):
        shutil.copytree(PROJECT / name, folder / name, ignore=ignored)
    for name in PACKED:
        shutil.copy(PROJECT / name, folder)
    # It says from where it was imported.
    with (folder / "serving/__init__.py").open("a") as file:
        file.write('\nprint("imported from", __file__)\n')
    settings = {
        "service": {"name": "packed"},
        "engine": {"name": "vllm", "max_model_len": 256},
        "models": {"chat": {}},
        # Neither is there while the Bento is built.
        "database": {"url_env": "DATABASE_URL"},
        "limits": {"redis_env": "REDIS_URL"},
    }
    (folder / "serving.yaml").write_text(yaml.safe_dump(settings), "utf-8")
    for name in PRIVATE:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(SECRET, "utf-8")
    return folder


@pytest.fixture(scope="module")
def home(model_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with `chat:1` to `chat:3`."""
    home = tmp_path_factory.mktemp("home") / "bentoml"
    for _ in range(3):
        ModelStore(home).add("chat", model_template, "a test")
    return home


def bento(
    project: Path, home: Path, *words: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    own = ("SERVING_", "DATABASE_URL", "REDIS_URL", "PYTHONPATH", "SOURCE_DATE_EPOCH")
    return subprocess.run(
        [sys.executable, "-m", "serving.cli", "bento", *words],
        cwd=project,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith(own)},
            "BENTOML_HOME": str(home),
            **variables,
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def built(project: Path, home: Path, *words: str, **variables: str) -> Path:
    """The Bento's folder."""
    done = bento(project, home, *words, **variables)
    assert done.returncode == 0, done.stderr
    tag = done.stdout.split("bentoml serve ")[1].strip()
    return home / "bentos" / tag.replace(":", "/")


@pytest.fixture(scope="module")
def packed(project: Path, home: Path) -> Path:
    return built(project, home)


def hashes(bento: Path) -> dict[str, str]:
    return {
        path.relative_to(bento).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in bento.rglob("*")
        if path.is_file()
    }


def models(bento: Path) -> list[str]:
    described = yaml.safe_load((bento / "bento.yaml").read_text("utf-8"))
    return [model["tag"] for model in described["models"]]


def test_a_bento_holds_what_bentofile_yaml_includes_and_what_bentoml_adds(
    packed: Path, project: Path
) -> None:
    held = set(hashes(packed))
    source = {path.as_posix() for path in project.rglob("*.py") if "tests" not in path.parts}
    python = {Path(path).relative_to(project).as_posix() for path in source}
    pins = {f"engines/{path.name}" for path in (project / "engines").iterdir()}
    ours = {f"src/{name}" for name in {*python, *pins, *PACKED, "serving.yaml"}}
    assert held - ours == {
        "README.md",
        "apis/openapi.yaml",
        "apis/schema.json",
        "bento.yaml",
        "env/docker/Dockerfile",
        "env/docker/entrypoint.sh",
        "env/python/requirements.in",
        "env/python/requirements.txt",
    }
    assert ours <= held


def test_no_secret_is_in_it_and_no_folder_of_this_machine(packed: Path, project: Path) -> None:
    for path in packed.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert SECRET.encode() not in content, path
            assert str(project).encode() not in content, path
            assert str(Path.home() / "x").removesuffix("x").encode() not in content, path


def test_by_default_it_has_the_version_that_would_be_served(packed: Path) -> None:
    assert models(packed) == ["chat:3"]


def test_it_can_have_several_exact_versions_or_none(project: Path, home: Path) -> None:
    some = built(project, home, "--model", "chat:1", "--model", "chat:2")
    assert models(some) == ["chat:1", "chat:2"]
    assert models(built(project, home, "--no-models")) == []


def test_the_same_inputs_are_the_same_bento_with_the_same_files(
    project: Path, home: Path, packed: Path, tmp_path: Path
) -> None:
    # What this machine has elsewhere is not what is packed.
    elsewhere = {"SERVING_CONFIG": str(tmp_path / "none.yaml"), "SERVING_ENGINES": str(tmp_path)}
    assert "There already: packed:" in bento(project, home, **elsewhere).stdout
    other = tmp_path / "bentoml"
    shutil.copytree(home / "models", other / "models")
    again = built(project, other)
    assert again.name == packed.name
    first, second = hashes(packed), hashes(again)
    # The one thing that two builds do not share.
    different = [
        (one, two)
        for one, two in zip(*(_lines(b / "bento.yaml") for b in (packed, again)), strict=True)
        if one != two
    ]
    assert [one.partition(":")[0] for one, _ in different] == ["creation_time"]
    assert {**first, "bento.yaml": ""} == {**second, "bento.yaml": ""}


def test_with_source_date_epoch_they_are_the_same_to_the_last_byte(
    project: Path, home: Path, tmp_path: Path
) -> None:
    bentos = []
    for name in ("one", "two"):
        shutil.copytree(home / "models", tmp_path / name / "models")
        bentos.append(built(project, tmp_path / name, SOURCE_DATE_EPOCH="1700000000"))
    assert hashes(bentos[0]) == hashes(bentos[1])
    described = yaml.safe_load((bentos[0] / "bento.yaml").read_text("utf-8"))
    assert described["creation_time"] == "2023-11-14T22:13:20+00:00"


def _lines(path: Path) -> list[str]:
    return path.read_text("utf-8").splitlines()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--model", "chat:7"], "chat:7 is not in the model store"),
        (["--model", "chat"], "'chat' is not a version; write NAME:NUMBER"),
    ],
)
def test_a_version_that_is_not_there_is_one_sentence(
    project: Path, home: Path, words: list[str], told: str
) -> None:
    done = bento(project, home, *words)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith(f"serving: {told}")


def test_no_imported_model_is_one_sentence_that_says_how_to_import_one(
    project: Path, tmp_path: Path
) -> None:
    done = bento(project, tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "run `serving models import chat SOURCE`" in done.stderr


@pytest.fixture(scope="module")
def carried(
    project: Path, home: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """The tag of a Bento that was exported and imported into an empty store, and that store. It
    names no variables, which would have to be set where it is served."""
    folder = tmp_path_factory.mktemp("carried")
    copy = Path(shutil.copytree(project, folder / "project"))
    settings = yaml.safe_load((copy / "serving.yaml").read_text("utf-8"))
    settings = {k: v for k, v in settings.items() if k not in ("database", "limits")}
    (copy / "serving.yaml").write_text(yaml.safe_dump(settings), "utf-8")
    path = built(copy, home, "--model", "chat:2")
    tag = f"packed:{path.name}"
    archive = str(folder / "it.bento")
    for there, *words in ((home, "export", tag, archive), (folder / "new", "import", archive)):
        subprocess.run(
            [sys.executable, "-m", "bentoml", *words],
            cwd=folder,
            env={**os.environ, "BENTOML_HOME": str(there)},
            check=True,
            capture_output=True,
        )
    return tag, folder / "new"


@pytest.fixture(scope="module")
def served(
    carried: tuple[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Path]]:
    """The URL of `bentoml serve TAG` in an empty folder, and its log."""
    tag, home = carried
    folder = tmp_path_factory.mktemp("served")
    (folder / "empty").mkdir()
    engine = scripted_engine.install(folder / "engine")
    port = free_port()
    own = ("SERVING_", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
    environment = {n: v for n, v in os.environ.items() if not n.startswith(own)}
    options = ["--host", "127.0.0.1", "--port", str(port), "--timeout-graceful-shutdown", "5"]
    with (folder / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "bentoml", "serve", tag, *options],
            cwd=folder / "empty",
            env={**environment, "BENTOML_HOME": str(home), "SERVING_ENGINES": str(engine)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        assert process.poll() is None, (folder / "serve.log").read_text()
        return httpx.get(f"{url}/readyz").status_code == 200

    try:
        eventually(ready, "ready", 60)
        yield url, folder
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def test_bentoml_serve_answers_from_an_empty_folder_with_the_version_that_came_along(
    served: tuple[str, Path],
) -> None:
    url, folder = served
    reply = httpx.post(f"{url}/v1/chat/completions", json=chat_body("Hello"), timeout=20)
    assert (reply.status_code, reply.json()["system_fingerprint"]) == (200, "chat:2")
    assert list((folder / "empty").iterdir()) == []


def test_it_runs_the_code_that_is_in_the_bento(
    served: tuple[str, Path], carried: tuple[str, Path]
) -> None:
    tag, home = carried
    inside = home / "bentos" / tag.replace(":", "/") / "src/serving/__init__.py"
    lines = (served[1] / "serve.log").read_text().splitlines()
    told = {line for line in lines if line.startswith("imported from")}
    assert told == {f"imported from {inside}"}


def test_what_it_writes_goes_below_bentoml_home_and_not_into_the_bento(
    served: tuple[str, Path], carried: tuple[str, Path]
) -> None:
    _, home = carried
    assert (home / "serving/state/serving.db").is_file()
    written = {
        p.name for p in (home / "bentos").rglob("*") if p.name in ("state", "logs", "models")
    }
    assert written == set()
