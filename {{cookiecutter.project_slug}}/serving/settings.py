"""serving.yaml as typed settings: what a person wrote, checked before anything starts.

Durations are seconds, sizes bytes, lengths tokens.
"""

from __future__ import annotations

import types
import typing
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from serving.engine_settings import (
    ENGINE_SECTIONS,
    EngineBase,
    EngineSettings,
    OpenAICompatibleEngine,
    ProcessEngine,
    SglangEngine,
    TransformersEngine,
    VllmEngine,
)
from serving.sections import Count, Name, Placed, Section

__all__ = [
    "EngineBase",
    "EngineSettings",
    "OpenAICompatibleEngine",
    "ProcessEngine",
    "Settings",
    "SettingsError",
    "SglangEngine",
    "TransformersEngine",
    "VllmEngine",
    "Warmup",
    "load_settings",
]

Seconds = Annotated[float, Field(gt=0)]


class SettingsError(Exception):
    """serving.yaml cannot be used. The message names the file, the key and what to write."""


class ServiceSection(Section):
    """`state` is the folder for what the service itself writes, engine logs first of all."""

    name: Name
    state: Placed = Path("state")


class Versions(Section):
    """Which imported versions are served: the newest, or the one named in `numbers`."""

    policy: Literal["latest", "specific"] = "latest"
    numbers: Annotated[list[Count], Field(max_length=1)] = []

    @model_validator(mode="after")
    def _numbers_belong_to_specific(self) -> Versions:
        if (self.policy == "specific") != bool(self.numbers):
            raise ValueError("write `policy: specific` together with `numbers: [N]`")
        return self


class Warmup(Section):
    """The requests a replica answers before it gets its first client.

    Every round sends each prompt, `concurrency` at a time, for up to `max_tokens` tokens.
    `prefixes` are system prompts to place in the engine's prefix cache.
    """

    prompts: list[Annotated[str, Field(min_length=1)]] = ["Hello!"]
    max_tokens: Count = 16
    concurrency: Count = 1
    rounds: Count = 1
    prefixes: list[Annotated[str, Field(min_length=1)]] = []


class ModelSection(Section):
    """One model name. `engine` replaces the common engine section for this model only, and an entry
    of `engines` does so for the version of that number."""

    versions: Versions = Versions()
    load: Literal["prewarm", "eager", "lazy"] = "prewarm"
    required: bool = True
    priority: int = 0
    warmup: Warmup = Warmup()
    engine: EngineSettings | None = None
    engines: dict[Count, EngineSettings] = {}


class Timeouts(Section):
    """Seconds.

    `start`: from an engine's process start to its first healthy answer. `warmup`: all of it.
    `first_token` and `stall`: the longest silence before and within an answer. `answer`: the
    longest that a reply which is not streamed may take. `keepalive`: an SSE comment after so much
    silence. `health`: the longest wait for the engine's health answer.
    `lazy`: how long a request waits for a lazy model to load. `drain`: how long running answers may
    go on after a stop was asked. `stop`: from an engine's SIGTERM to its SIGKILL.
    """

    start: Seconds = 600
    warmup: Seconds = 300
    first_token: Seconds = 120
    stall: Seconds = 60
    answer: Seconds = 600
    keepalive: Seconds = 15
    health: Seconds = 10
    lazy: Seconds = 60
    drain: Seconds = 30
    stop: Seconds = 10


class Restarts(Section):
    """A replica that dies is started again after `backoff` seconds, doubled each time up to
    `backoff_max`. After `attempts` deaths, none of them after `healthy_after` seconds of good
    service, it counts as a crash loop and stays `failed`."""

    attempts: Count = 5
    backoff: Seconds = 1
    backoff_max: Seconds = 30
    healthy_after: Seconds = 60


class Limits(Section):
    max_body_bytes: Annotated[int, Field(ge=1024)] = 8 * 1024 * 1024


class Settings(Section):
    service: ServiceSection
    engine: EngineSettings
    models: Annotated[dict[Name, ModelSection], Field(min_length=1)]
    timeouts: Timeouts = Timeouts()
    restarts: Restarts = Restarts()
    limits: Limits = Limits()

    def engine_of(self, model: str, number: int) -> EngineSettings:
        """The engine section for one version of a model."""
        section = self.models[model]
        return section.engines.get(number) or section.engine or self.engine

    @property
    def engine_sections(self) -> dict[str, EngineSettings]:
        """All engine sections by their keys, used or not."""
        sections: dict[str, EngineSettings] = {"engine": self.engine}
        for name, model in self.models.items():
            if model.engine is not None:
                sections[f"models.{name}.engine"] = model.engine
            for number, engine in model.engines.items():
                sections[f"models.{name}.engines.{number}"] = engine
        return sections

    @model_validator(mode="after")
    def _one_engine_a_home(self) -> Settings:
        homes: dict[Path, tuple[str, str]] = {}
        for key, engine in self.engine_sections.items():
            if isinstance(engine, ProcessEngine):
                first, name = homes.setdefault(engine.home, (key, engine.name))
                if name != engine.name:
                    raise ValueError(
                        f"{first} and {key} are different engines with the same home, "
                        f"{engine.home}; give each engine its own home"
                    )
        return self


def load_settings(path: Path, *, surroundings: bool = True) -> Settings:
    """Read and check serving.yaml. Relative paths in it are taken from its own folder.

    Without `surroundings`, the files and environment variables that it names need not be there yet:
    enough to install its engines. Raises `SettingsError`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{path.name}: not valid YAML: it is not UTF-8 text.") from None
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        line = f", line {place.line + 1}" if place else ""
        problem = getattr(error, "problem", None) or "it cannot be parsed"
        raise SettingsError(f"{path.name}{line}: not valid YAML: {problem}.") from None
    if not isinstance(document, dict):
        raise SettingsError(f"{path.name}: must hold the keys {_names(Settings)}.")
    context = {"folder": path.parent, "surroundings": surroundings}
    try:
        return Settings.model_validate(document, context=context)
    except ValidationError as error:
        raise SettingsError(f"{path.name}: {_sentence(error)}") from None


def _sentence(error: ValidationError) -> str:
    """The first problem: its key as a dotted path, and for an unknown key the nearest valid one."""
    problems = error.errors(include_url=False)
    # A misspelt required key shows twice, as unknown and as missing: the unknown one says more.
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    path, section = _walk(problem["loc"])
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


def _walk(loc: tuple[int | str, ...]) -> tuple[list[str], type[BaseModel] | None]:
    """The path as the file shows it (without pydantic's union tags), and the section it ends in."""
    section: Any = Settings
    parent: type[BaseModel] | None = Settings
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


def _names(section: type[BaseModel]) -> str:
    return ", ".join(section.model_fields)
