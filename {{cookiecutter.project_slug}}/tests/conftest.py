"""Fixtures every test may use: a small valid model folder, a model store, a scripted engine.

The folders under tests/ hold no `__init__.py`: helper modules are imported by their bare names.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import postgres as postgres_module
import pytest
import redis_server
import scripted_engine
from live_service import Service
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")
# A machine that has other work to do makes no test wrong.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

SPECIAL = ["<unk>", "</s>", "<|system|>", "<|user|>", "<|assistant|>"]
WORDS = ["Hello", "world", "Paris", "is", "the", "capital", "of", "France"]
CHAT_TEMPLATE = """\
{%- if messages[0]['role'] == 'assistant' %}
{{- raise_exception('the first message is the assistant\\'s') }}
{%- endif %}
{%- for message in messages %}
{{- '<|' + message['role'] + '|> ' + message['content'] + ' </s>' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|assistant|>' }}
{%- endif %}
"""


def write_model(folder: Path) -> Path:
    """A whole model folder of a few kilobytes. A token is a word; the weights mean nothing."""
    folder.mkdir(parents=True)
    tokenizer = Tokenizer(
        WordLevel({word: i for i, word in enumerate(SPECIAL + WORDS)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    documents = {
        "config.json": {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "eos_token_id": 1,
            "pad_token_id": 1,
            "max_position_embeddings": 256,
        },
        "generation_config.json": {"eos_token_id": 1, "do_sample": True, "temperature": 0.7},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "</s>",
            "unk_token": {"content": "<unk>", "special": True},
        },
    }
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document), "utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, "utf-8")
    save_file({"weight": np.zeros((4, 4), dtype=np.float32)}, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="session")
def model_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model folder for the whole session; only to be read or copied."""
    return write_model(tmp_path_factory.mktemp("template") / "model")


@pytest.fixture
def model_folder(model_template: Path, tmp_path: Path) -> Path:
    """A model folder of the test's own, to import or to break."""
    return Path(shutil.copytree(model_template, tmp_path / "model"))


@pytest.fixture
def store_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty BENTOML_HOME, also set in the environment."""
    home = tmp_path / "bentoml"
    home.mkdir()
    monkeypatch.setenv("BENTOML_HOME", str(home))
    return home


@pytest.fixture
def scripted_home(tmp_path: Path) -> Path:
    """An engine environment (`engine.home` in serving.yaml) whose programs are the scripted engine.

    `scripted_engine.behave(scripted_home, ...)` tells it how to start.
    """
    return scripted_engine.install(tmp_path / "engine")


@pytest.fixture(scope="session")
def postgres() -> Iterator[postgres_module.Server]:
    """One server for the whole session; each test makes a database of its own."""
    with postgres_module.server() as server:
        yield server


@pytest.fixture
def redis() -> Iterator[redis_server.Server]:
    """A server of the test's own, to stop and to start again."""
    with redis_server.server() as server:
        yield server


# For the tests of the running service; see live_service.py.


@pytest.fixture(scope="session")
def store_template(model_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BENTOML_HOME that holds `chat:1`; only to be copied."""
    from serving.runtime.store import ModelStore

    home = tmp_path_factory.mktemp("store") / "bentoml"
    ModelStore(home).add("chat", model_template, "a test")
    return home


@pytest.fixture(scope="session")
def serve(
    store_template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Service]]:
    """Makes services, not yet started; see `live_service.Service`. All are stopped in the end."""
    with contextlib.ExitStack() as stack:

        def make(**options: Any) -> Service:
            folder = tmp_path_factory.mktemp("service")
            return stack.enter_context(Service(folder, store_template, **options))

        yield make


@pytest.fixture(scope="session")
def shared(serve: Callable[..., Service]) -> Callable[[str], Service]:
    """A ready service on the engine of that name, shared by all tests that do it no harm."""
    running: dict[str, Service] = {}

    def get(engine: str) -> Service:
        if engine not in running:
            running[engine] = serve(engine=engine).start()
        return running[engine].wait_ready()

    return get


@pytest.fixture
def deadline(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that takes over a minute, whatever it hangs in."""

    def ring(*_: object) -> None:
        raise TimeoutError("the test took over 60 s")

    previous = signal.signal(signal.SIGALRM, ring)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)
