"""Fixtures every test may use: a small valid model folder, an empty model store, a scripted engine.

The folders under tests/ hold no `__init__.py`: `scripted_engine` and `harness` are imported by name.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import scripted_engine
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

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
        WordLevel({word: i for i, word in enumerate(SPECIAL + WORDS)}, unk_token="<unk>")  # noqa: S106
    )
    tokenizer.pre_tokenizer = WhitespaceSplit()  # type: ignore[assignment]
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
    monkeypatch.setenv("BENTOML_DO_NOT_TRACK", "True")
    return home


@pytest.fixture
def scripted_home(tmp_path: Path) -> Path:
    """An engine environment (`engine.home` in serving.yaml) whose programs are the scripted engine.

    `scripted_engine.behave(scripted_home, ...)` tells it how to start.
    """
    return scripted_engine.install(tmp_path / "engine")
