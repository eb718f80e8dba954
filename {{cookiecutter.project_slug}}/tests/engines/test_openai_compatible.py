"""What is asked of a server that somebody else runs."""

from __future__ import annotations

import json
import os
import ssl
from pathlib import Path
from typing import Any

import pytest

from serving.contract.capabilities import EMBEDDING, GENERATION
from serving.contract.chat import ChatRequest
from serving.contract.completions import CompletionRequest
from serving.contract.embeddings import EmbeddingRequest
from serving.contract.sampling import Request
from serving.engines import create_engine
from serving.engines.base import LocalEngine
from serving.engines.openai_compatible import OpenAICompatible
from serving.settings import OpenAICompatibleEngine, SettingsError

NOWHERE = Path(os.devnull)
CHAT = ChatRequest.model_validate(
    {"model": "chat", "messages": [{"role": "user", "content": "Hi"}]}
)
COMPLETION = CompletionRequest(model="chat", prompt="Hi")
EMBED = EmbeddingRequest(model="chat", input="Hi")


def engine(task: str = "generate", **fields: object) -> OpenAICompatible:
    document = {
        "name": "openai_compatible",
        "url": "http://10.0.0.7:8000/v1",
        "model": "org/Model-7B",
        "max_model_len": 4096,
        **fields,
    }
    made = create_engine(OpenAICompatibleEngine.model_validate(document), NOWHERE, task)
    assert isinstance(made, OpenAICompatible)
    return made


@pytest.mark.parametrize(
    ("request_", "path"),
    [(CHAT, "/chat/completions"), (COMPLETION, "/completions"), (EMBED, "/embeddings")],
    ids=["chat", "completion", "embedding"],
)
@pytest.mark.parametrize(
    ("url", "prefix"),
    [
        ("http://10.0.0.7:8000/v1", "/v1"),
        ("http://10.0.0.7:8000/v1/", "/v1"),
        ("http://10.0.0.7:8000", ""),
        ("http://10.0.0.7:8000/team/v1beta/openai", "/team/v1beta/openai"),
    ],
)
def test_a_call_follows_the_path_of_the_url(
    url: str, prefix: str, request_: Request, path: str
) -> None:
    assert engine(url=url).call(request_).path == prefix + path


def test_generations_are_streamed_and_embeddings_are_not() -> None:
    assert engine().call(CHAT).streamed
    assert not engine("embed", capabilities=["embeddings"]).call(EMBED).streamed


def test_the_server_hears_its_own_name_for_the_model_and_never_the_clients() -> None:
    for adapter in ("", "law"):
        body: dict[str, Any] = json.loads(engine().call(CHAT, adapter).body)
        assert body["model"] == "org/Model-7B"
    assert body["messages"] == [{"role": "user", "content": "Hi"}]
    assert (body["stream"], body["stream_options"]) == (True, {"include_usage": True})


@pytest.mark.parametrize(
    ("url", "host", "port", "secure"),
    [
        ("http://10.0.0.7:8000/v1", "10.0.0.7", 8000, False),
        ("http://models.example/v1", "models.example", 80, False),
        ("https://models.example/v1", "models.example", 443, True),
        ("https://models.example:8443", "models.example", 8443, True),
        ("http://[::1]:8000/v1", "::1", 8000, False),
    ],
)
def test_host_port_and_encryption_are_the_urls(
    url: str, host: str, port: int, secure: bool
) -> None:
    remote = engine(url=url)
    assert (remote.host, remote.port, remote.tls is not None) == (host, port, secure)


def test_an_https_server_must_prove_who_it_is() -> None:
    tls = engine(url="https://models.example/v1").tls
    assert tls is not None
    assert (tls.verify_mode, tls.check_hostname) == (ssl.CERT_REQUIRED, True)


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({}, "/v1/models"),
        ({"health_path": "/health/ready"}, "/v1/health/ready"),
        ({"url": "http://10.0.0.7", "health_path": "/healthz"}, "/healthz"),
        ({"url": "http://10.0.0.7/a/b"}, "/a/b/models"),
    ],
)
def test_health_is_asked_below_the_url(fields: dict[str, Any], path: str) -> None:
    assert engine(**fields).health_path == path


def test_the_key_is_read_from_the_variable_the_settings_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MODELS_KEY", "sk-secret")
    named = engine(key_env="MODELS_KEY")
    assert named.key == "sk-secret"
    assert "sk-secret" not in repr(named.settings)
    assert b"sk-secret" not in named.call(CHAT).body
    monkeypatch.setenv("MODELS_KEY", "sk-newer")
    assert named.key == "sk-newer"
    assert engine().key is None


def test_it_can_do_what_its_section_says_and_nothing_else() -> None:
    kinds = {"chat", "completions"}
    assert {CHAT.TASK, COMPLETION.TASK} == kinds
    assert engine().capabilities == kinds | {"temperature", "top_p", "seed", "stop"}
    assert engine(capabilities=[]).capabilities == kinds
    able = engine(capabilities=["tools", "n", "image_url"])
    assert able.capabilities == kinds | {"tools", "n", "image_url"}


def test_all_capabilities_there_are_can_be_named() -> None:
    assert engine(capabilities=sorted(GENERATION)).capabilities == GENERATION
    assert engine("embed", capabilities=sorted(EMBEDDING)).capabilities == EMBEDDING


def test_for_embeddings_it_neither_chats_nor_samples() -> None:
    assert engine("embed", capabilities=["embeddings"]).capabilities == {EmbeddingRequest.TASK}
    able = engine("embed", capabilities=["embeddings", "dimensions", "temperature"])
    assert able.capabilities == {EmbeddingRequest.TASK, "dimensions"}


def test_a_capability_nobody_has_stops_the_start_and_shows_those_there_are() -> None:
    with pytest.raises(SettingsError, match=r"engine\.capabilities: 'tool' is none") as caught:
        engine(capabilities=["stop", "tool"])
    assert "tool_choice, tools" in str(caught.value)


def test_an_answer_that_no_token_ends_is_for_servers_whose_section_says_so() -> None:
    endless = CHAT.model_copy(update={"ignore_eos": True})
    assert set(endless.needs) - engine().capabilities == {"ignore_eos"}
    able = engine(capabilities=["ignore_eos"])
    assert set(endless.needs) <= able.capabilities
    assert json.loads(able.call(endless).body)["ignore_eos"] is True
    assert "ignore_eos" not in json.loads(able.call(CHAT).body)


def test_it_has_no_process_and_needs_no_model_files() -> None:
    remote = engine()
    assert not isinstance(remote, LocalEngine)
    assert remote.needs == ()
    assert remote.gauges is None
    assert remote.model_config == remote.generation_config == {}


def test_a_token_of_an_unknown_vocabulary_is_left_to_the_server() -> None:
    biased = CHAT.model_copy(update={"logit_bias": {"999999": 5.0}})
    body = json.loads(engine(capabilities=["logit_bias"]).call(biased).body)
    assert body["logit_bias"] == {"999999": 5.0}
