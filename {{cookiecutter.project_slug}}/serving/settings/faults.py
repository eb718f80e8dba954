"""What is wrong with a document, in one sentence that names the key and what to write instead."""

from __future__ import annotations

import types
import typing
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import BaseModel, ValidationError

from serving.settings.engines import ENGINE_SECTIONS


def sentence(error: ValidationError, document: type[BaseModel]) -> str:
    """The first problem: its key as a dotted path, and for an unknown key the nearest valid one."""
    problems = error.errors(include_url=False)
    # A misspelt required key shows twice, as unknown and as missing: the unknown one says more.
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    path, section = _walk(problem["loc"], document)
    key = ".".join(path)
    if problem["type"] == "extra_forbidden":
        lacking = _lacking(path[-1], section)
        if lacking:
            return f"{key}: {lacking}"
        known = list(section.model_fields) if section else []
        near = get_close_matches(path[-1], known, 1, cutoff=0.5)
        advice = f"did you mean {near[0]}?" if near else f"valid here are {', '.join(known)}."
        return f"{key} is not a known key; {advice}"
    if problem["type"] == "missing":
        return f"{key} is missing."
    if problem["type"] == "union_tag_not_found":
        return f"{key}.name is missing."
    if problem["type"] == "union_tag_invalid":
        return f"{key}.name must be one of {problem['ctx']['expected_tags']}."
    if problem["type"] == "value_error":  # our own words, which show the value where they should
        return f"{key}: {problem['ctx']['error']}." if key else f"{problem['ctx']['error']}."
    message = problem["msg"]
    written = "" if isinstance(problem["input"], dict) else f", not {problem['input']!r}"
    return f"{key}: {message[0].lower()}{message[1:]}{written}."


def _lacking(key: str, section: type[BaseModel] | None) -> str:
    """Of a key that one engine lacks and others have: who. Empty for any other key."""
    name = next((name for name, kind in ENGINE_SECTIONS.items() if kind is section), None)
    others = [other for other, kind in ENGINE_SECTIONS.items() if key in kind.model_fields]
    if name is None or not others:
        return ""
    having = f"{' and '.join(others)} {'has' if len(others) == 1 else 'have'}"
    return f"{name} has no such setting; {having}."


def _walk(
    loc: tuple[int | str, ...], document: type[BaseModel]
) -> tuple[list[str], type[BaseModel] | None]:
    """The path as the file shows it (without pydantic's union tags), and the section it ends in."""
    section: Any = document
    parent: type[BaseModel] | None = document
    path: list[str] = []
    for part in loc:
        if part == "[key]":
            continue
        tagged = _tagged(section, part)
        if tagged is not None:
            section = tagged
            continue
        path.append(str(part))
        parent = section if isinstance(section, type) and issubclass(section, BaseModel) else None
        section = _child(section, part)
    return path, parent


def _tagged(annotation: Any, tag: int | str) -> type[BaseModel] | None:
    for member in _members(annotation):
        name = getattr(member, "model_fields", {}).get("name")
        if name is not None and tag in typing.get_args(name.annotation):
            found: type[BaseModel] = member
            return found
    return None


def _child(annotation: Any, key: int | str) -> Any:
    for member in _members(annotation):
        if isinstance(member, type) and issubclass(member, BaseModel):
            field = member.model_fields.get(str(key))
            return field.annotation if field else None
        if typing.get_origin(member) in (dict, list):
            return typing.get_args(member)[-1]
    return None


def _members(annotation: Any) -> list[Any]:
    if typing.get_origin(annotation) is Annotated:
        annotation = typing.get_args(annotation)[0]
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return [inner for member in typing.get_args(annotation) for inner in _members(member)]
    return [annotation]
