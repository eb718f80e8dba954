"""A project follows its template: created by cruft, updated with the user's edits kept, moved to
another engine."""

from __future__ import annotations

from pathlib import Path

import cruft
import yaml
from baking import Template, commit_all, files, git

STATE = ".cruft.json"


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, f"{path.name} holds {old!r} {text.count(old)} times"
    path.write_text(text.replace(old, new))


def contents(project: Path) -> dict[str, tuple[bytes, int]]:
    """Bytes and mode of every file, without cruft's own state."""
    return {
        name: ((project / name).read_bytes(), (project / name).stat().st_mode)
        for name in files(project) - {STATE}
    }


def update(project: Path, **variables: str) -> bool:
    return bool(cruft.update(project, extra_context=variables or None))


def assert_applied_cleanly(project: Path) -> None:
    status = git(project, "status", "--porcelain").splitlines()
    assert [line for line in status if line.startswith(("U", "AA", "??")) or line[1] == "U"] == []
    assert [name for name in files(project) if name.endswith((".rej", ".orig"))] == []


def test_cruft_creates_what_cookiecutter_bakes(template: Template, tmp_path: Path) -> None:
    baked = template.bake(tmp_path / "cookiecutter", engine="vllm")
    created = template.cruft_create(tmp_path / "cruft", engine="vllm")
    assert contents(created) == contents(baked)


def test_a_fresh_project_is_up_to_date_and_has_no_difference(
    template: Template, tmp_path: Path
) -> None:
    project = template.cruft_create(tmp_path / "projects")
    assert cruft.check(project)
    assert cruft.diff(project, exit_code=True)


def test_an_update_keeps_the_users_edits_and_brings_the_templates(
    changing_template: Template, tmp_path: Path
) -> None:
    project = changing_template.cruft_create(tmp_path / "projects")
    replace(project / "serving.yaml", "  start: 600", "  start: 900")
    (project / "mine.py").write_text("mine = 1\n")
    (project / "engines/sglang.txt").unlink()
    commit_all(project, "My own edits")

    source = changing_template.project
    replace(source / "serving.yaml", "max_body_bytes: 8388608", "max_body_bytes: 4194304")
    replace(source / "engines/vllm.txt", "vllm==0.32.0", "vllm==0.33.0")
    replace(source / "engines/sglang.txt", "sglang==0.5.21", "sglang==0.5.22")
    (source / "serving/added.py").write_text("added = 1\n")
    commit_all(changing_template.path, "A newer template")

    assert not cruft.check(project)
    assert update(project)
    assert_applied_cleanly(project)
    settings = yaml.safe_load((project / "serving.yaml").read_text())
    assert settings["timeouts"]["start"] == 900
    assert settings["limits"]["max_body_bytes"] == 4194304
    assert (project / "mine.py").read_text() == "mine = 1\n"
    assert (project / "serving/added.py").read_text() == "added = 1\n"
    assert "vllm==0.33.0" in (project / "engines/vllm.txt").read_text()
    assert not (project / "engines/sglang.txt").exists()
    assert cruft.check(project)


def test_an_update_leaves_the_projects_own_history_alone(
    changing_template: Template, tmp_path: Path
) -> None:
    project = changing_template.cruft_create(tmp_path / "projects")
    before = git(project, "rev-list", "--all")
    replace(changing_template.project / "engines/vllm.txt", "vllm==0.32.0", "vllm==0.33.0")
    commit_all(changing_template.path, "A newer template")
    assert update(project)
    assert git(project, "rev-list", "--all") == before
    assert git(project, "fsck", "--full") == ""
    changed = {line[3:] for line in git(project, "status", "--porcelain").splitlines()}
    assert changed == {"engines/vllm.txt", STATE}


def test_an_update_moves_a_project_to_another_engine_and_keeps_its_edits(
    template: Template, tmp_path: Path
) -> None:
    project = template.cruft_create(tmp_path / "projects")
    replace(project / "serving.yaml", "  start: 600", "  start: 900")
    commit_all(project, "My own edit")
    assert update(project, engine="vllm", gpus_per_replica="1")
    assert_applied_cleanly(project)
    settings = yaml.safe_load((project / "serving.yaml").read_text())
    assert settings["engine"]["name"] == "vllm"
    assert settings["engine"]["gpus"] == 1
    assert "continuous_batching" not in settings["engine"]
    assert settings["timeouts"]["start"] == 900


def test_an_update_leaves_derived_answers_as_they_were_unless_they_are_named(
    template: Template, tmp_path: Path
) -> None:
    project = template.cruft_create(tmp_path / "projects")
    assert update(project, engine="vllm")
    settings = yaml.safe_load((project / "serving.yaml").read_text())
    assert settings["engine"]["name"] == "vllm"
    assert settings["engine"]["gpus"] == 0


def test_an_update_moves_a_project_from_the_demo_to_another_model(
    template: Template, tmp_path: Path
) -> None:
    answers = {"model_source": "huggingface", "model_id": "org/name", "max_context_length": "4096"}
    project = template.cruft_create(tmp_path / "projects")
    assert update(project, **answers)
    assert_applied_cleanly(project)
    assert contents(project) == contents(template.bake(tmp_path / "baked", **answers))
