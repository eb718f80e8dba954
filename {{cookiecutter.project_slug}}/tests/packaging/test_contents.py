"""What goes into a Bento: what bentofile.yaml includes, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from live_service import PROJECT

from serving.packaging.contents import NotPacked, files, stage

#: What lies about in a project and has no business in a Bento.
PRIVATE = [
    ".env",
    ".venv/lib/site.py",
    ".engine/bin/python",
    "state/serving.db",
    "state/logs/chat-1.log",
    "logs/serve.log",
    "serving/__pycache__/cli.cpython-311.pyc",
    "serving/.env",
    "serving/key.pem",
    "tests/test_cli.py",
    "loadtests/results/report.json",
    "models/mine/model.safetensors",
    "sbom/gateway.cdx.json",
    "id_rsa",
]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    listed = (PROJECT / "bentofile.yaml").read_text("utf-8")
    for name in ("service.py", "serving.yaml", "serving/cli.py", "serving/engines/vllm.py"):
        put(folder / name, name)
    for name in ("warmup_hooks.py", "openapi.json", "pyproject.toml", "engines/vllm.txt"):
        put(folder / name, name)
    put(folder / "bentofile.yaml", listed)
    for name in PRIVATE:
        put(folder / name, "private")
    return folder


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


def describe(project: Path, **keys: object) -> None:
    put(project / "bentofile.yaml", yaml.safe_dump(keys))


def test_secrets_state_caches_and_environments_that_lie_about_stay_out(project: Path) -> None:
    assert {path.as_posix() for path in files(project)} == {
        "engines/vllm.txt",
        "openapi.json",
        "pyproject.toml",
        "service.py",
        "serving.yaml",
        "serving/cli.py",
        "serving/engines/vllm.py",
        "warmup_hooks.py",
    }


def test_a_folder_that_is_included_comes_with_all_that_is_in_it(project: Path) -> None:
    put(project / "adapters/legal/adapter.safetensors", "x")
    put(project / "adapters/legal/.git/config", "x")
    describe(project, include=["/service.py", "/adapters/"], exclude=[])
    assert [str(p) for p in files(project)] == ["adapters/legal/adapter.safetensors", "service.py"]


def test_exclude_takes_back(project: Path) -> None:
    describe(project, include=["/serving/**/*.py"], exclude=["/serving/engines/"])
    assert [str(p) for p in files(project)] == ["serving/cli.py"]


def test_not_even_a_pattern_for_everything_takes_secrets_and_state(project: Path) -> None:
    describe(project, include=["/serving/**/*", "/.env", "/state/**/*"])
    with pytest.raises(NotPacked, match=r"nothing matches /\.env; take it out"):
        files(project)


def test_a_pattern_that_matches_nothing_is_told(project: Path) -> None:
    (project / "openapi.json").unlink()
    with pytest.raises(NotPacked, match=r"bentofile.yaml: nothing matches /openapi.json"):
        files(project)


@pytest.mark.parametrize("text", ["include: service.py", "[", "", "include: [1]"])
def test_a_bentofile_that_makes_no_sense_is_told(project: Path, text: str) -> None:
    put(project / "bentofile.yaml", text)
    with pytest.raises(NotPacked, match=r"bentofile\.yaml"):
        files(project)


def test_the_checksum_follows_names_and_contents_and_nothing_else(
    project: Path, tmp_path: Path
) -> None:
    first = stage(project, tmp_path / "first")
    (project / "service.py").chmod(0o755)
    (project / "service.py").touch()
    put(project / "state/serving.db", "changed")
    assert stage(project, tmp_path / "second") == first
    assert (tmp_path / "second/service.py").stat().st_mode & 0o777 == 0o644
    put(project / "service.py", "changed")
    assert stage(project, tmp_path / "third") != first
