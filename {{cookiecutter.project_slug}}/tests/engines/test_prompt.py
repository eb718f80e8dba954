"""Prompts are counted as the model will see them.

The counts were compared with `AutoTokenizer(...).apply_chat_template` of transformers 5.23 on the
same folder; here they stand as numbers, because the gateway does not have transformers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from serving.contract.errors import ApiError
from serving.engines.prompt import PromptCounter

HELLO = [{"role": "user", "content": "Hello world"}]


def with_template(folder: Path, template: Any, **config: Any) -> PromptCounter:
    (folder / "chat_template.jinja").unlink()
    written = {"chat_template": template, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(written), "utf-8")
    return PromptCounter(folder)


def test_a_chat_is_counted_with_its_template_and_the_opening_of_the_answer(
    model_folder: Path,
) -> None:
    counter = PromptCounter(model_folder)
    # <|user|> Hello world </s> <|assistant|>
    assert counter.chat(HELLO) == 5
    system = {"role": "system", "content": "the capital"}
    answer = {"role": "assistant", "content": "Paris"}
    assert counter.chat([system, *HELLO, answer, *HELLO]) == 4 + 4 + 3 + 4 + 1


def test_a_text_is_counted_as_it_is(model_folder: Path) -> None:
    assert PromptCounter(model_folder).text("Paris is the capital of France") == 6


def test_the_limits_a_tokenizer_was_saved_with_do_not_shorten_the_count(
    model_folder: Path,
) -> None:
    path = str(model_folder / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    tokenizer.save(path)
    counter = PromptCounter(model_folder)
    assert counter.text("Hello world " * 10) == 20
    assert counter.text("Hello") == 1


def test_special_tokens_reach_the_template_in_either_form(model_folder: Path) -> None:
    template = "{{ bos_token }} {{ eos_token }}{% for m in messages %} {{ m.content }}{% endfor %}"
    counter = with_template(
        model_folder, template, bos_token="</s>", eos_token={"content": "</s>", "special": True}
    )
    assert counter.chat(HELLO) == 4


def test_of_several_templates_the_one_for_plain_chat_is_taken(model_folder: Path) -> None:
    templates = [
        {"name": "tool_use", "template": "Paris"},
        {"name": "default", "template": "{{ messages[0].content }} world"},
    ]
    assert with_template(model_folder, templates).chat(HELLO) == 3


@pytest.mark.parametrize(
    ("template", "count"),
    [
        ("{{ messages | tojson }}", 1),
        ("{{ messages | tojson(indent=2) }}", 1),
        ("{{ messages | tojson(ensure_ascii=False, sort_keys=True) }}", 1),
        ("{{ strftime_now('%Y') }}", 1),
        ("{% for m in messages %}{% if m %}{% break %}{% endif %}{% endfor %}Hello", 1),
        ("{{ tools is defined and tools }}", 1),
        ("{% generation %}Hello world{% endgeneration %}", 2),
    ],
)
def test_the_helpers_templates_rely_on_are_there(
    model_folder: Path, template: str, count: int
) -> None:
    assert with_template(model_folder, template).chat(HELLO) >= count


def test_a_conversation_the_template_refuses_is_the_clients_error(model_folder: Path) -> None:
    with pytest.raises(ApiError, match="first message is the assistant") as caught:
        PromptCounter(model_folder).chat([{"role": "assistant", "content": "Hello"}])
    assert (caught.value.status, caught.value.param) == (400, "messages")


def test_a_template_cannot_reach_out_of_its_sandbox(model_folder: Path) -> None:
    escape = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(ApiError):
        with_template(model_folder, escape).chat(HELLO)


def test_a_model_without_template_is_told_to_use_completions(model_folder: Path) -> None:
    (model_folder / "chat_template.jinja").unlink()
    counter = PromptCounter(model_folder)
    with pytest.raises(ApiError, match="/v1/completions") as caught:
        counter.chat(HELLO)
    assert caught.value.status == 400
    assert counter.text("Hello") == 1
