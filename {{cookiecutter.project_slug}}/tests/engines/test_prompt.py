"""Prompts are counted as the model will see them.

The counts were compared with `AutoTokenizer(...).apply_chat_template` of transformers 5.23 on the
same folder; here they stand as numbers, because the gateway does not have transformers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tokenizers import Tokenizer

from serving.contract.chat import ChatRequest
from serving.contract.completions import CompletionRequest
from serving.contract.errors import ApiError
from serving.engines.prompt import PromptCounter

HELLO = [{"role": "user", "content": "Hello world"}]


def chat(**fields: Any) -> ChatRequest:
    return ChatRequest.model_validate({"model": "chat", "messages": HELLO, **fields})


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
        ("{{ tools is none and documents is none and add_generation_prompt }}", 1),
        ("{% generation %}Hello world{% endgeneration %}", 2),
    ],
)
def test_the_helpers_templates_rely_on_are_there(
    model_folder: Path, template: str, count: int
) -> None:
    assert with_template(model_folder, template).chat(HELLO) >= count


TOOL = {"type": "function", "function": {"name": "Paris", "description": "is the capital"}}
SHOWING = "{% for tool in tools or [] %}{{ tool.function.description }}{% endfor %} {{ place }}"


def test_tools_and_the_requests_own_variables_are_shown_to_the_template(
    model_folder: Path,
) -> None:
    counter = with_template(model_folder, SHOWING)
    assert counter.chat(HELLO) == 0
    assert counter.chat(HELLO, [TOOL, TOOL]) == 5  # is the capitalis the capital
    assert counter.chat(HELLO, [TOOL], place="of France") == 5


def test_the_arguments_of_a_call_are_an_object_for_the_template(model_folder: Path) -> None:
    template = (
        "{% for m in messages %}{% for call in m.tool_calls or [] %}"
        "{{ call.id }}{% for key, value in call.function.arguments.items() %} {{ value }}"
        "{% endfor %}{% endfor %}{% endfor %}"
    )
    function = {"name": "f", "arguments": '{"a": "Hello world", "b": "Paris"}'}
    call = {"id": "x", "type": "function", "function": function}
    answer: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": [call]}
    told = [*HELLO, answer]
    assert with_template(model_folder, template).chat(told) == 4
    assert function["arguments"] == '{"a": "Hello world", "b": "Paris"}'


def test_a_request_is_counted_as_the_engine_will_be_asked(model_folder: Path) -> None:
    counter = with_template(model_folder, SHOWING)
    fields = {"tools": [TOOL], "chat_template_kwargs": {"place": "of France"}}
    assert counter.request(chat(**fields)) == 5
    assert counter.request(chat(**fields, tool_choice="none")) == 2
    assert counter.request(CompletionRequest(model="chat", prompt="Hello world")) == 2


@pytest.mark.parametrize("name", ["tools", "messages", "eos_token", "self"])
def test_a_variable_that_takes_the_place_of_anothers_never_gets_here(name: str) -> None:
    with pytest.raises(ValidationError):
        chat(chat_template_kwargs={name: "x"})


@pytest.mark.parametrize("characters", [0, 1, 12, 13, 26, 1000])
def test_the_fewest_tokens_are_as_many_as_the_longest_one_fits_in(
    model_folder: Path, characters: int
) -> None:
    assert PromptCounter(model_folder).least(characters) == characters // len("<|assistant|>")


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
