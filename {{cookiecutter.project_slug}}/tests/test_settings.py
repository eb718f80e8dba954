"""serving.yaml is understood, and what is wrong in it is said with file, key and remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.settings import Settings, SettingsError, VllmEngine, load_settings


def document(**sections: Any) -> dict[str, Any]:
    return {
        "service": {"name": "llm"},
        "engine": {"name": "transformers", "max_model_len": 512},
        "models": {"chat": {}},
        **sections,
    }


def load(tmp_path: Path, content: Any) -> Settings:
    path = tmp_path / "serving.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), "utf-8")
    return load_settings(path)


def complaint(tmp_path: Path, content: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, content)
    message = str(caught.value)
    assert message.startswith("serving.yaml")
    assert "\n" not in message
    return message


def test_three_short_sections_are_enough(tmp_path: Path) -> None:
    settings = load(tmp_path, document())
    assert settings.models["chat"].load == "prewarm"
    assert settings.models["chat"].required
    assert settings.limits.max_body_bytes == 8 * 1024 * 1024


def test_relative_paths_are_taken_from_the_files_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "project").mkdir()
    own = {"name": "vllm", "max_model_len": 9, "home": "other"}
    written = document(models={"chat": {"engine": own}})
    (tmp_path / "project" / "serving.yaml").write_text(yaml.safe_dump(written), "utf-8")
    monkeypatch.chdir(tmp_path)
    settings = load_settings(Path("project/serving.yaml"))
    assert settings.engine.home == tmp_path / "project" / ".engine"
    assert settings.engine_of("chat").home == tmp_path / "project" / "other"
    assert settings.service.state == tmp_path / "project" / "state"


def test_absolute_paths_stay_as_they_are(tmp_path: Path) -> None:
    engine = {"name": "transformers", "max_model_len": 1, "home": "/opt/engine"}
    assert load(tmp_path, document(engine=engine)).engine.home == Path("/opt/engine")


def test_a_models_own_engine_replaces_the_common_one_for_that_model_only(tmp_path: Path) -> None:
    own = {"name": "vllm", "max_model_len": 4096, "gpus": 2}
    settings = load(tmp_path, document(models={"chat": {"engine": own}, "small": {}}))
    assert isinstance(settings.engine_of("chat"), VllmEngine)
    assert settings.engine_of("small").name == "transformers"


@pytest.mark.parametrize(
    ("sections", "key", "advice"),
    [
        ({"limit": {}}, "limit", "did you mean limits?"),
        ({"service": {"name": "llm", "stat": "x"}}, "service.stat", "did you mean state?"),
        (
            {"engine": {"name": "transformers", "max_model_len": 1, "gpu": 1}},
            "engine.gpu",
            "did you mean gpus?",
        ),
        (
            {"engine": {"name": "transformers", "max_model_length": 1}},
            "engine.max_model_length",
            "did you mean max_model_len?",
        ),
        ({"models": {"chat": {"lod": "lazy"}}}, "models.chat.lod", "did you mean load?"),
        (
            {"models": {"chat": {"versions": {"polcy": "latest"}}}},
            "models.chat.versions.polcy",
            "did you mean policy?",
        ),
        (
            {"models": {"chat": {"warmup": {"prompt": ["a"]}}}},
            "models.chat.warmup.prompt",
            "did you mean prompts?",
        ),
        ({"timeouts": {"drian": 1}}, "timeouts.drian", "did you mean drain?"),
        ({"timeouts": {"zzz": 1}}, "timeouts.zzz", "valid here are start, warmup, first_token"),
    ],
)
def test_an_unknown_key_is_answered_with_its_path_and_the_nearest_valid_key(
    tmp_path: Path, sections: dict[str, Any], key: str, advice: str
) -> None:
    message = complaint(tmp_path, document(**sections))
    assert message.startswith(f"serving.yaml: {key} is not a known key; {advice}")


def test_a_key_of_one_engine_is_unknown_to_another(tmp_path: Path) -> None:
    engine = {"name": "vllm", "max_model_len": 1, "continuous_batching": True}
    message = complaint(tmp_path, document(engine=engine))
    assert "engine.continuous_batching is not a known key" in message
    own = {"engine": engine}
    message = complaint(tmp_path, document(models={"chat": own}))
    assert "models.chat.engine.continuous_batching is not a known key" in message


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"engine": {"name": "transformers", "max_model_len": "long"}}, "engine.max_model_len"),
        ({"engine": {"name": "transformers", "max_model_len": 0}}, "engine.max_model_len"),
        ({"engine": {"name": "transformers"}}, "engine.max_model_len is missing"),
        ({"engine": {"max_model_len": 1}}, "engine.name is missing"),
        ({"engine": {"name": "llama", "max_model_len": 1}}, "engine.name must be one of"),
        ({"engine": "vllm"}, "engine"),
        ({"engine": {"name": "vllm", "max_model_len": 1, "args": "--x"}}, "engine.args"),
        ({"engine": {"name": "vllm", "max_model_len": 1, "env": {"A": 1}}}, "engine.env.A"),
        ({"engine": {"name": "transformers", "max_model_len": 1, "gpus": 2}}, "choose vllm or"),
        ({"service": None}, "service"),
        ({"service": {"name": "Big Name"}}, "service.name"),
        ({"models": {}}, "models"),
        ({"models": ["chat"]}, "models"),
        ({"models": {"Chat": {}}}, "models.Chat"),
        ({"models": {"chat:1": {}}}, "models.chat:1"),
        ({"models": {"chat": None}}, "models.chat"),
        ({"models": {"chat": {"load": "soon"}}}, "models.chat.load"),
        ({"models": {"chat": {"warmup": {"prompts": [""]}}}}, "models.chat.warmup.prompts.0"),
        ({"models": {"chat": {"versions": {"policy": "specific"}}}}, "numbers: [N]"),
        ({"models": {"chat": {"versions": {"numbers": [1]}}}}, "policy: specific"),
        (
            {"models": {"chat": {"versions": {"policy": "specific", "numbers": [0]}}}},
            "models.chat.versions.numbers.0",
        ),
        ({"timeouts": {"drain": -1}}, "timeouts.drain"),
        ({"timeouts": {"drain": "soon"}}, "timeouts.drain"),
        ({"restarts": {"attempts": 0}}, "restarts.attempts"),
        ({"limits": {"max_body_bytes": 1}}, "limits.max_body_bytes"),
        ({1: 2}, "1"),
    ],
    ids=str,
)
def test_a_wrong_value_is_told_with_its_key(
    tmp_path: Path, sections: dict[Any, Any], told: str
) -> None:
    assert told in complaint(tmp_path, {**document(), **sections})


def test_the_wrong_value_itself_is_shown(tmp_path: Path) -> None:
    assert "'soon'" in complaint(tmp_path, document(timeouts={"drain": "soon"}))


def test_an_unknown_engine_is_told_the_engines_there_are(tmp_path: Path) -> None:
    message = complaint(tmp_path, document(engine={"name": "llama.cpp", "max_model_len": 1}))
    assert all(name in message for name in ("'transformers'", "'vllm'", "'sglang'"))


def test_text_that_is_not_yaml_is_told_with_its_line(tmp_path: Path) -> None:
    message = complaint(tmp_path, "service:\n  name: llm\nengine: {name: vllm\nmodels: [")
    assert "not valid YAML" in message
    assert "line " in message


@pytest.mark.parametrize("content", ["", "just a text", "- a\n- b\n", "5"])
def test_a_file_that_holds_no_keys_is_told_the_keys_it_must_hold(
    tmp_path: Path, content: str
) -> None:
    assert "service, engine, models" in complaint(tmp_path, content)


def test_python_objects_in_the_file_are_not_made(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    complaint(tmp_path, f"!!python/object/apply:os.mkdir ['{victim}']")
    assert not victim.exists()


@pytest.mark.parametrize("content", [b"service: \xff\xfe", b"service: \x00"])
def test_a_file_that_is_no_text_is_called_so(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "serving.yaml"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match="not valid YAML"):
        load_settings(path)


def test_a_missing_file_is_named_in_full(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "serving.yaml"
    with pytest.raises(SettingsError, match="No such file") as caught:
        load_settings(path)
    assert str(path) in str(caught.value)


def test_the_settings_this_project_ships_are_valid() -> None:
    settings = load_settings(Path(__file__).parents[1] / "serving.yaml")
    assert settings.models
