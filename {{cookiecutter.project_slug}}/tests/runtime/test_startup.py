"""A start that cannot succeed is one sentence for the person who started it."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.runtime.startup import load
from serving.runtime.store import ModelStore

PROJECT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _excepthook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)


def config(folder: Path, home: Path, **sections: Any) -> Path:
    document = {
        "service": {"name": "llm"},
        "engine": {"name": "vllm", "max_model_len": 256, "home": str(home)},
        "models": {"chat": {}},
        **sections,
    }
    path = folder / "serving.yaml"
    path.write_text(yaml.safe_dump(document), "utf-8")
    return path


def test_a_start_gets_settings_store_and_what_was_asked_for(
    store_home: Path, scripted_home: Path, model_folder: Path, tmp_path: Path
) -> None:
    ModelStore(store_home).add("chat", model_folder, "here")
    (tmp_path / "state").mkdir()
    asked = '{"revision": 4, "models": {"chat": {"labels": {"production": 1}}}}'
    (tmp_path / "state/routing.json").write_text(asked)
    settings, store, file = load(config(tmp_path, scripted_home))
    assert settings.service.name == "llm"
    assert store.home == store_home
    assert (file.routing.revision, file.routing.of("chat").labels) == (4, {"production": 1})


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"limit": {}}, "serving.yaml: limit is not a known key; did you mean limits?"),
        ({"models": {"talk": {}}}, "serving.yaml: models.talk: the model 'talk' has no version"),
        ({}, "serving.yaml: the engine vllm is not installed"),
    ],
)
def test_a_start_that_cannot_succeed_ends_with_its_reason(
    store_home: Path, model_folder: Path, tmp_path: Path, sections: dict[str, Any], told: str
) -> None:
    ModelStore(store_home).add("chat", model_folder, "here")
    with pytest.raises(SystemExit) as caught:
        load(config(tmp_path, tmp_path / "no-engine", **sections))
    assert str(caught.value).startswith(told)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.EADDRINUSE, "bentoml serve: the port is taken by another program"),
        (errno.EACCES, "bentoml serve: this user may not open the port"),
        (errno.ENOENT, "Traceback"),
    ],
)
def test_a_port_that_cannot_be_had_is_a_sentence_and_other_defects_keep_their_traceback(
    store_home: Path,
    scripted_home: Path,
    model_folder: Path,
    tmp_path: Path,
    number: int,
    told: str,
) -> None:
    ModelStore(store_home).add("chat", model_folder, "here")
    code = (
        "import sys; from pathlib import Path; from serving.runtime.startup import load\n"
        f"load(Path(sys.argv[1])); raise OSError({number}, 'x')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, config(tmp_path, scripted_home)],
        capture_output=True,
        text=True,
        cwd=PROJECT,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(told)
