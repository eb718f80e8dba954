"""Prompts of the user's own: JSON lines, or a file in ShareGPT's format."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from loadtests.lengths import Length

FORMS = (
    '{"messages": [{"role": "user", "content": "…"}]}, {"prompt": "…"}, both with "max_tokens" if '
    'you like, or ShareGPT\'s {"conversations": [{"from": "human", "value": "…"}]}'
)
#: A recorded answer's words give its length in tokens; English has about so many a word.
TOKENS_PER_WORD = 1.3
_HUMAN, _MODEL = frozenset({"human", "user"}), frozenset({"gpt", "assistant", "chatgpt", "bing"})

#: The opening (a system prompt or nothing), and each turn with its answer's length, where known.
Script = tuple[str, list[tuple[str, int | None]]]


class PromptsError(Exception):
    """The message says which file and line cannot be used, and what can."""


class Recorded:
    """The conversations of a file, drawn by chance."""

    def __init__(self, scripts: list[Script]) -> None:
        self._scripts = scripts

    def __len__(self) -> int:
        return len(self._scripts)

    @classmethod
    def read(cls, path: Path) -> Recorded:
        """Raises `PromptsError`."""
        scripts = [script for place, entry in _entries(path) if (script := _script(place, entry))]
        if not scripts:
            raise PromptsError(f"{path} holds no prompt; each entry may be {FORMS}.")
        return cls(scripts)

    def take(self, rng: np.random.Generator, answer: Length | None) -> Script:
        """`answer` is the length of those that the file does not tell."""
        opening, turns = self._scripts[int(rng.integers(len(self._scripts)))]
        lengths = [
            (text, length or (answer.draw(rng) if answer else None)) for text, length in turns
        ]
        return opening, lengths


def _entries(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise PromptsError(f"{path} cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise PromptsError(f"{path} is no text in UTF-8.") from None
    if text.lstrip().startswith("["):
        try:
            entries = json.loads(text)
        except ValueError as error:
            raise PromptsError(f"{path} is no JSON: {error}.") from None
        yield from ((f"entry {n} of {path}", entry) for n, entry in enumerate(entries, 1))
        return
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            yield f"line {number} of {path}", json.loads(line)
        except ValueError as error:
            raise PromptsError(f"Line {number} of {path} is no JSON: {error}.") from None


def _script(place: str, entry: Any) -> Script | None:
    """None of a conversation in which no person says anything: ShareGPT's files have some."""
    match entry:
        case {"conversations": list(said)}:
            return _sharegpt(said)
        case {"messages": [*messages]} if messages:
            return _chat(place, messages, entry.get("max_tokens"))
        case {"prompt": str(prompt)} if prompt:
            return "", [(prompt, _length(place, entry.get("max_tokens")))]
    raise PromptsError(f"The {place} is no prompt; it may be {FORMS}.")


def _chat(place: str, messages: list[Any], max_tokens: Any) -> Script:
    """What the model said in it is left out: it will answer for itself."""
    system, turns = "", []
    for message in messages:
        match message:
            case {"role": "system" | "developer", "content": str(text)}:
                system = text
            case {"role": "user", "content": str(text)}:
                turns.append((text, _length(place, max_tokens)))
            case {"role": "assistant"}:
                pass
            case _:
                raise PromptsError(f"The {place} has a message that is no text of a known role.")
    if not turns:
        raise PromptsError(f"The {place} has no message of a user.")
    return system, turns


def _sharegpt(said: list[Any]) -> Script | None:
    system = ""
    turns: list[tuple[str, int | None]] = []
    for part in said:
        match part:
            case {"from": "system", "value": str(text)}:
                system = text
            case {"from": who, "value": str(text)} if who in _HUMAN and text:
                turns.append((text, None))
            case {"from": who, "value": str(text)} if who in _MODEL and turns:
                turns[-1] = (turns[-1][0], max(1, round(len(text.split()) * TOKENS_PER_WORD)))
    return (system, turns) if turns else None


def _length(place: str, given: Any) -> int | None:
    if given is None or (isinstance(given, int) and given > 0):
        return given
    raise PromptsError(
        f"The {place} has max_tokens of {given!r}; it is a number of tokens above 0."
    )
