"""Counting a prompt's tokens as the model will see them, for engines that do not check it.

The chat template is rendered as `transformers` renders it: Jinja in a sandbox, with the variables
and functions its documentation on chat templates names.
"""

from __future__ import annotations

import json
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from serving.contract.chat import ChatRequest
from serving.contract.completions import CompletionRequest
from serving.contract.errors import invalid
from serving.contract.sampling import Generation


class PromptCounter:
    """Counts tokens with the tokenizer and chat template of one model folder."""

    def __init__(self, model_dir: Path) -> None:
        self._dir = model_dir
        self._tokenizer: Tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
        # Some tokenizers are saved with limits from their training; a prompt is counted whole.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def text(self, prompt: str) -> int:
        return self._count(prompt, special=True)

    def chat(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        **variables: Any,
    ) -> int:
        """`variables` are the request's own, for the template. Raises `ApiError` when the template
        refuses the messages (two users in a row, say)."""
        try:
            if self._template is None:
                raise invalid("The model has no chat template; use /v1/completions.", "messages")
            rendered = self._template.render(
                **variables,
                messages=[_with_parsed_arguments(message) for message in messages],
                tools=tools,
                documents=None,
                add_generation_prompt=True,
                **self._special_tokens,
            )
        except (TemplateError, TypeError, KeyError, ValueError) as error:
            raise invalid(
                f"The model's chat template refuses the conversation: {error}", "messages"
            ) from None
        return self._count(rendered, special=False)

    def request(self, request: Generation) -> int:
        """The prompt tokens of a chat or a completion. Raises `ApiError` as `chat` does."""
        if isinstance(request, ChatRequest):
            asked = request.asked()
            variables = asked.get("chat_template_kwargs", {})
            return self.chat(request.plain_messages, asked.get("tools"), **variables)
        assert isinstance(request, CompletionRequest)
        return self.text(request.prompt)

    def least(self, characters: int) -> int:
        """The fewest tokens so many characters can make: cheap, where counting takes seconds."""
        return characters // self._longest

    @cached_property
    def _longest(self) -> int:
        """Characters of the longest token, as the tokenizer spells it: a byte is one or more."""
        return max(map(len, self._tokenizer.get_vocab()))

    def _count(self, text: str, *, special: bool) -> int:
        # In a batch of one the tokenizer lets other threads run meanwhile.
        return len(self._tokenizer.encode_batch([text], add_special_tokens=special)[0].ids)

    @cached_property
    def _config(self) -> dict[str, Any]:
        path = self._dir / "tokenizer_config.json"
        config: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        return config

    @cached_property
    def _special_tokens(self) -> dict[str, str]:
        tokens = {}
        for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
            value = self._config.get(name)
            if value is not None:
                tokens[name] = value["content"] if isinstance(value, dict) else value
        return tokens

    @cached_property
    def _template(self) -> Template | None:
        file = self._dir / "chat_template.jinja"
        source = file.read_text("utf-8") if file.is_file() else self._config.get("chat_template")
        if isinstance(source, list):  # several named templates: the one for plain chat
            source = next((t["template"] for t in source if t["name"] == "default"), None)
        if not source:
            return None
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
        )
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        environment.filters["tojson"] = _tojson
        return environment.from_string(source)


class _Generation(Extension):
    """`{% generation %}`, which marks the answer's tokens for training, changes nothing here."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _with_parsed_arguments(message: dict[str, Any]) -> dict[str, Any]:
    """Templates want a tool call's arguments as an object; clients send its JSON."""
    if "tool_calls" not in message:
        return message
    calls = []
    for call in message["tool_calls"]:
        function = call["function"]
        arguments = json.loads(function["arguments"])
        calls.append({**call, "function": {**function, "arguments": arguments}})
    return {**message, "tool_calls": calls}


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
