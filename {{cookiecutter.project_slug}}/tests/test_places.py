"""Places that the environment names: what an image, a cluster and a load test set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.runtime.startup import load
from serving.runtime.store import ModelStore
from serving.settings import ProcessEngine, config_file, load_settings, routing_file


def written(folder: Path, **engine: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "serving.yaml"
    document = {
        "service": {"name": "llm"},
        "engine": {"name": "vllm", "max_model_len": 256, **engine},
        "models": {"chat": {}},
    }
    path.write_text(yaml.safe_dump(document), "utf-8")
    return path


def home(path: Path) -> Path:
    engine = load_settings(path).engine
    assert isinstance(engine, ProcessEngine)
    return engine.home


def test_serving_config_names_another_serving_yaml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SERVING_CONFIG", raising=False)
    assert config_file(tmp_path) == tmp_path / "serving.yaml"
    monkeypatch.setenv("SERVING_CONFIG", "/etc/serving/serving.yaml")
    assert config_file(tmp_path) == Path("/etc/serving/serving.yaml")


def test_serving_state_names_another_state_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path)
    assert load_settings(path).service.state == tmp_path / "state"
    monkeypatch.setenv("SERVING_STATE", str(tmp_path / "volume"))
    assert load_settings(path).service.state == tmp_path / "volume"


def test_serving_routing_names_another_routing_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert routing_file(tmp_path) == tmp_path / "routing.json"
    monkeypatch.setenv("SERVING_ROUTING", "/etc/serving-routing/routing.json")
    assert routing_file(tmp_path) == Path("/etc/serving-routing/routing.json")


def test_a_start_takes_what_is_asked_for_from_serving_routing(
    store_home: Path,
    scripted_home: Path,
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ModelStore(store_home).add("chat", model_folder, "here")
    mounted = tmp_path / "mounted" / "routing.json"
    mounted.parent.mkdir()
    asked = {"revision": 4, "models": {"chat": {"labels": {"production": 1}}}}
    mounted.write_text(json.dumps(asked), "utf-8")
    monkeypatch.setenv("SERVING_ROUTING", str(mounted))
    _, _, file = load(written(tmp_path, home=str(scripted_home)))
    assert (file.path, file.routing.of("chat").labels) == (mounted, {"production": 1})


@pytest.mark.parametrize(
    ("written_home", "place"),
    [
        (".engine", "/app/engine"),
        (".engine-sglang", "/app/engine-sglang"),
        ("/opt/vllm", "/opt/vllm"),
    ],
)
def test_serving_engines_is_what_engine_stands_for_at_the_beginning_of_a_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written_home: str, place: str
) -> None:
    path = written(tmp_path, home=written_home)
    assert home(path) == tmp_path / written_home
    monkeypatch.setenv("SERVING_ENGINES", "/app/engine")
    assert home(path) == Path(place)


def test_serving_engines_also_holds_for_the_home_that_nobody_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVING_ENGINES", "/app/engine")
    assert home(written(tmp_path)) == Path("/app/engine")


def test_other_homes_stay_beside_serving_yaml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVING_ENGINES", "/app/engine")
    assert home(written(tmp_path, home="envs/vllm")) == tmp_path / "envs" / "vllm"
