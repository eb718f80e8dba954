"""serving.yaml is understood, and what is wrong in it is said with file, key and remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.settings import (
    OpenAICompatibleEngine,
    ProcessEngine,
    Settings,
    SettingsError,
    SglangEngine,
    VllmEngine,
    load_settings,
)

REMOTE = {
    "name": "openai_compatible",
    "url": "http://127.0.0.1:8000/v1",
    "model": "upstream",
    "max_model_len": 4096,
}


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


def process(engine: object) -> ProcessEngine:
    assert isinstance(engine, ProcessEngine)
    return engine


def vllm(**fields: Any) -> dict[str, Any]:
    return document(engine={"name": "vllm", "max_model_len": 1, **fields})


def sglang(**fields: Any) -> dict[str, Any]:
    return document(engine={"name": "sglang", "max_model_len": 1, **fields})


def test_three_short_sections_are_enough(tmp_path: Path) -> None:
    settings = load(tmp_path, document())
    assert settings.models["chat"].load == "prewarm"
    assert settings.models["chat"].required
    assert settings.limits.max_body_bytes == 8 * 1024 * 1024


def test_relative_paths_are_taken_from_the_files_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "project").mkdir()
    own = {"name": "vllm", "max_model_len": 9, "home": "../other"}
    written = document(models={"chat": {"engine": own}})
    (tmp_path / "project" / "serving.yaml").write_text(yaml.safe_dump(written), "utf-8")
    monkeypatch.chdir(tmp_path)
    settings = load_settings(Path("project/serving.yaml"))
    assert process(settings.engine).home == tmp_path / "project" / ".engine"
    assert process(settings.engine_of("chat", 1)).home == tmp_path / "other"
    assert settings.service.state == tmp_path / "project" / "state"


def test_absolute_paths_stay_as_they_are(tmp_path: Path) -> None:
    engine = {"name": "transformers", "max_model_len": 1, "home": "/opt/engine"}
    assert process(load(tmp_path, document(engine=engine)).engine).home == Path("/opt/engine")


def test_a_models_own_engine_replaces_the_common_one_for_that_model_only(tmp_path: Path) -> None:
    own = {"name": "vllm", "max_model_len": 4096, "gpus": 2, "home": ".vllm"}
    settings = load(tmp_path, document(models={"chat": {"engine": own}, "small": {}}))
    assert isinstance(settings.engine_of("chat", 1), VllmEngine)
    assert settings.engine_of("small", 1).name == "transformers"


def test_a_versions_own_engine_replaces_the_models_for_that_version_only(tmp_path: Path) -> None:
    vllm = {"name": "vllm", "max_model_len": 4096, "home": ".vllm"}
    sglang = {"name": "sglang", "max_model_len": 4096, "home": ".sglang"}
    models = {"chat": {"engine": vllm, "engines": {2: sglang}}, "small": {"engines": {1: sglang}}}
    settings = load(tmp_path, document(models=models))
    assert isinstance(settings.engine_of("chat", 1), VllmEngine)
    assert isinstance(settings.engine_of("chat", 2), SglangEngine)
    assert isinstance(settings.engine_of("small", 1), SglangEngine)
    assert settings.engine_of("small", 2).name == "transformers"
    assert list(settings.engine_sections) == [
        "engine",
        "models.chat.engine",
        "models.chat.engines.2",
        "models.small.engines.1",
    ]


def test_a_fault_in_a_versions_engine_is_told_with_its_number(tmp_path: Path) -> None:
    engines = {2: {"name": "vllm", "max_model_len": 1, "home": ".v", "gpu": 1}}
    message = complaint(tmp_path, document(models={"chat": {"engines": engines}}))
    assert "models.chat.engines.2.gpu is not a known key; did you mean gpus?" in message
    message = complaint(tmp_path, document(models={"chat": {"engines": {0: engines[2]}}}))
    assert "models.chat.engines.0" in message


def test_two_engines_cannot_share_a_home(tmp_path: Path) -> None:
    own = {"name": "vllm", "max_model_len": 1, "home": "./x/../.engine"}
    message = complaint(tmp_path, document(models={"chat": {"engines": {3: own}}}))
    assert "engine and models.chat.engines.3 are different engines with the same home" in message
    assert "give each engine its own home" in message
    own = {"name": "transformers", "max_model_len": 1}
    load(tmp_path, document(models={"chat": {"engines": {3: own}}}))


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


@pytest.mark.parametrize(
    ("engine", "key", "having"),
    [
        ("transformers", "tensor_parallel", "vllm and sglang have"),
        ("vllm", "continuous_batching", "transformers has"),
        ("openai_compatible", "home", "transformers and vllm and sglang have"),
        ("sglang", "url", "openai_compatible has"),
    ],
)
def test_a_key_that_only_other_engines_have_is_told_with_their_names(
    tmp_path: Path, engine: str, key: str, having: str
) -> None:
    own = {**REMOTE} if engine == "openai_compatible" else {"name": engine, "max_model_len": 1}
    told = f"engine.{key}: {engine} has no such setting; {having}."
    assert told in complaint(tmp_path, document(engine={**own, key: 2}))
    models = {"chat": {"engine": {**own, key: 2}}}
    assert f"models.chat.{told}" in complaint(tmp_path, document(models=models))


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"engine": {"name": "transformers", "max_model_len": "long"}}, "engine.max_model_len"),
        ({"engine": {"name": "transformers", "max_model_len": 0}}, "engine.max_model_len"),
        ({"engine": {"name": "transformers"}}, "engine.max_model_len is missing"),
        ({"engine": {"max_model_len": 1}}, "engine.name is missing"),
        ({"engine": {"name": "llama", "max_model_len": 1}}, "engine.name must be one of"),
        ({"engine": "vllm"}, "engine"),
        (
            {"engine": {"name": "vllm", "max_model_len": 1, "args": ["--x"]}},
            "engine.args is not a known key; did you mean engine_args?",
        ),
        ({"engine": {"name": "vllm", "max_model_len": 1, "engine_args": "--x"}}, "engine_args"),
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


# Paths that must be there.


def test_a_file_or_folder_that_is_not_there_is_told_with_its_whole_path(tmp_path: Path) -> None:
    for fields, told in (
        (
            {"chat_template": "a.jinja"},
            f"engine.chat_template: there is no file {tmp_path}/a.jinja.",
        ),
        ({"lora": {"law": "ad/law"}}, f"engine.lora.law: there is no folder {tmp_path}/ad/law."),
        (
            {"speculative": {"method": "eagle", "model": "draft", "tokens": 3}},
            f"engine.speculative.model: there is no folder {tmp_path}/draft.",
        ),
    ):
        assert told in complaint(tmp_path, vllm(**fields))


def test_paths_that_are_there_become_absolute(tmp_path: Path) -> None:
    (tmp_path / "law").mkdir()
    (tmp_path / "t.jinja").touch()
    speculative = {"method": "eagle", "model": "law", "tokens": 3}
    settings = load(
        tmp_path, vllm(lora={"law": "law"}, chat_template="t.jinja", speculative=speculative)
    )
    assert isinstance(settings.engine, VllmEngine)
    assert settings.engine.lora == {"law": tmp_path / "law"}
    assert settings.engine.chat_template == tmp_path / "t.jinja"
    assert settings.engine.speculative is not None
    assert settings.engine.speculative.model == tmp_path / "law"


def test_an_installation_asks_for_no_surroundings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("UPSTREAM_KEY", raising=False)
    path = tmp_path / "serving.yaml"
    remote = {**REMOTE, "key_env": "UPSTREAM_KEY"}
    written = {**vllm(chat_template="later.jinja"), "models": {"chat": {"engine": remote}}}
    path.write_text(yaml.safe_dump(written), "utf-8")
    load_settings(path, surroundings=False)
    with pytest.raises(SettingsError):
        load_settings(path)


# What the engines can be told.


def test_tensor_parallelism_takes_the_gpus_that_the_others_leave(tmp_path: Path) -> None:
    for fields, ranks in (
        ({}, 1),
        ({"gpus": 1}, 1),
        ({"gpus": 8}, 8),
        ({"gpus": 8, "pipeline_parallel": 2}, 4),
        ({"gpus": 8, "pipeline_parallel": 2, "data_parallel": 2}, 2),
        ({"gpus": 8, "tensor_parallel": 4, "data_parallel": 2}, 4),
        ({"gpus": 0, "tensor_parallel": 2}, 2),  # a CPU's sockets
    ):
        engine = load(tmp_path, vllm(**fields)).engine
        assert isinstance(engine, VllmEngine)
        assert engine.tensor_ranks == ranks


@pytest.mark.parametrize(
    ("fields", "taken"),
    [
        ({"gpus": 4, "tensor_parallel": 3}, 3),
        ({"gpus": 1, "tensor_parallel": 2}, 2),
        ({"gpus": 3, "pipeline_parallel": 2}, 2),
        ({"gpus": 2, "pipeline_parallel": 2, "data_parallel": 2}, 4),
    ],
)
def test_parallel_parts_that_do_not_take_the_gpus_are_refused(
    tmp_path: Path, fields: dict[str, int], taken: int
) -> None:
    for written in (vllm(**fields), sglang(**fields)):
        message = complaint(tmp_path, written)
        assert f"take {taken} GPUs, but gpus is {fields['gpus']}" in message


def test_sglangs_dp_attention_takes_no_gpus_of_its_own(tmp_path: Path) -> None:
    args = {"enable-dp-attention": True}
    engine = load(tmp_path, sglang(gpus=8, data_parallel=4, engine_args=args)).engine
    assert isinstance(engine, SglangEngine)
    assert engine.tensor_ranks == 8


@pytest.mark.parametrize(
    ("written", "told"),
    [
        (vllm(dtype="int8"), "engine.dtype: input should be 'auto', 'bfloat16'"),
        (vllm(quantization="w8a8_fp8"), "engine.quantization: input should be"),
        (sglang(quantization="torchao"), "engine.quantization: input should be"),
        (vllm(kv_cache_dtype="mxfp8"), "engine.kv_cache_dtype: input should be"),
        (sglang(kv_cache_dtype="fp8"), "engine.kv_cache_dtype: input should be"),
        (vllm(memory_fraction=0), "engine.memory_fraction"),
        (vllm(memory_fraction=1.1), "engine.memory_fraction"),
        (vllm(chunked_prefill=True), "engine.chunked_prefill: write a number of tokens, or false"),
        (vllm(chunked_prefill=0), "engine.chunked_prefill: write a number of tokens, or false"),
        (vllm(chunked_prefill="x"), "engine.chunked_prefill: write a number of tokens, or false"),
        (vllm(max_running=0), "engine.max_running"),
        (vllm(lora={"Law": "x"}), "engine.lora.Law"),
        (vllm(lora={"model": "."}), "engine.lora: `model` is the base model's name"),
        (vllm(speculative={"method": "nextn"}), "engine.speculative.method: input should be"),
        (sglang(speculative={"method": "suffix"}), "engine.speculative.method: input should be"),
        (vllm(speculative={"methd": "ngram"}), "engine.speculative.methd is not a known key"),
        (
            vllm(speculative={"method": "eagle", "tokens": 3}),
            "engine.speculative: the method eagle needs `model`",
        ),
        (
            vllm(speculative={"method": "ngram", "model": ".", "tokens": 3}),
            "engine.speculative: the method ngram takes no `model`",
        ),
        (
            vllm(speculative={"method": "ngram"}),
            "engine.speculative: vllm needs `tokens`, how many ngram drafts ahead",
        ),
        (
            sglang(
                speculative={"method": "ngram", "tokens": 3},
                engine_args={"speculative-num-draft-tokens": 9},
            ),
            "speculative.tokens and engine_args.speculative-num-draft-tokens both say",
        ),
        (sglang(chat_template="serving.yaml"), "engine.chat_template: sglang takes a Jinja"),
    ],
    ids=str,
)
def test_what_an_engine_cannot_honour_is_refused(
    tmp_path: Path, written: dict[str, Any], told: str
) -> None:
    assert told in complaint(tmp_path, written)


def test_chunked_prefill_may_be_left_to_the_engine_switched_off_or_sized(tmp_path: Path) -> None:
    for value in (None, False, 2048):
        engine = load(tmp_path, vllm(chunked_prefill=value)).engine
        assert isinstance(engine, VllmEngine)
        assert (type(engine.chunked_prefill), engine.chunked_prefill) == (type(value), value)


# An engine that somebody else runs.


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000/v1"),
        ("https://llm.example.com", "https://llm.example.com"),
        ("http://[::1]:80/v1//", "http://[::1]:80/v1"),
    ],
)
def test_a_remote_engine_is_a_url_without_its_last_slash(
    tmp_path: Path, written: str, kept: str
) -> None:
    engine = load(tmp_path, document(engine={**REMOTE, "url": written})).engine
    assert isinstance(engine, OpenAICompatibleEngine)
    assert engine.url == kept
    assert engine.health_path == "/models"


@pytest.mark.parametrize(
    "url",
    [
        *("", "127.0.0.1:8000/v1", "ftp://a/v1", "http:///v1", "http://a:x/v1", "http://a:99999"),
        *("http://a/v1?k=1", "http://a/v1#x", "http://a b/v1", "unix:/tmp/s", "http://[::1/v1"),
    ],
)
def test_a_url_that_is_none_is_refused(tmp_path: Path, url: str) -> None:
    assert "engine.url: " in complaint(tmp_path, document(engine={**REMOTE, "url": url}))


def test_credentials_in_a_url_are_refused_and_not_repeated(tmp_path: Path) -> None:
    for url in ("http://ada:s3cret@a/v1", "http://s3cret@a/v1"):
        message = complaint(tmp_path, document(engine={**REMOTE, "url": url}))
        assert "must hold no credentials; name their variable in key_env" in message
        assert "s3cret" not in message


def test_a_key_in_place_of_its_variables_name_is_refused_and_not_repeated(tmp_path: Path) -> None:
    for key in ("sk-abc123", "hf_AbCdEf", "0123456789abcdef", "a key", "x" * 65, ""):
        message = complaint(tmp_path, document(engine={**REMOTE, "key_env": key}))
        assert "engine.key_env: write the name of an environment variable" in message
        assert not key or key not in message


def test_a_variable_that_is_not_set_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = document(engine={**REMOTE, "key_env": "UPSTREAM_KEY"})
    for value in (None, ""):
        monkeypatch.delenv("UPSTREAM_KEY", raising=False)
        if value is not None:
            monkeypatch.setenv("UPSTREAM_KEY", value)
        told = "engine.key_env: the environment variable UPSTREAM_KEY is not set"
        assert told in complaint(tmp_path, remote)
    monkeypatch.setenv("UPSTREAM_KEY", "sk-abc123")
    engine = load(tmp_path, remote).engine
    assert isinstance(engine, OpenAICompatibleEngine)
    assert engine.key_env == "UPSTREAM_KEY"


REDIS_URLS = ["redis://h", "redis://h:6380", "rediss://ann:s3cret@h/3?ssl_ca_certs=/ca.pem"]


@pytest.mark.parametrize("url", REDIS_URLS)
def test_the_url_of_a_redis_is_in_a_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("REDIS_URL", url)
    limits = load(tmp_path, document(limits={"redis_env": "REDIS_URL"})).limits
    assert (limits.redis_env, limits.on_failure) == ("REDIS_URL", "open")


@pytest.mark.parametrize(
    "url",
    [
        *("s3cret", "http://:s3cret@h", "redis://", "redis:///0", "redis://:s3cret@h:port"),
        *("redis://:s3cret@h/name", "redis://:s3#cret@h", "redis://:s3cret@h?ssl_ca_certs=/ca"),
        *("rediss://:s3cret@h?retry=1", "redis://[::1", "unix:///s3cret"),
    ],
)
def test_what_is_no_url_of_a_redis_is_refused_and_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("REDIS_URL", url)
    message = complaint(tmp_path, document(limits={"redis_env": "REDIS_URL"}))
    assert "limits.redis_env: the environment variable REDIS_URL must hold redis://USER" in message
    assert "cret" not in message
