"""Whether a version can be served at all, as far as that shows before an engine starts."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

from serving.contract.embeddings import EmbeddingRequest
from serving.engines import create_engine
from serving.engines.base import LocalEngine
from serving.runtime.replica import not_installed
from serving.runtime.store import ModelStore, StoreError, Version
from serving.settings import OpenAICompatibleEngine, Settings, SettingsError

#: The version of a model whose files are on somebody else's machine, when none is named.
ELSEWHERE = 1


def check_plan(settings: Settings, store: ModelStore) -> None:
    """Raises `SettingsError` when a model has none of the versions that serving.yaml asks for, or
    one of them that cannot be served: better no start than a service that can never be ready."""
    for name in settings.models:
        try:
            numbers = policy_numbers(settings, name, store.numbers(name))
            if not numbers:
                store.latest(name)  # says that there is none
            for number in numbers:
                version = find(settings, store, name, number)
                reason = obstacle(settings, version)
                if reason:
                    raise SettingsError(f"serving.yaml: {reason}")
        except StoreError as error:
            raise SettingsError(f"serving.yaml: models.{name}: {error}") from None


def policy_numbers(settings: Settings, name: str, present: list[int]) -> list[int]:
    """Those versions of the `present` ones that a model's policy asks for, newest first."""
    policy = settings.models[name].versions
    if policy.numbers:
        return sorted(policy.numbers, reverse=True)
    if isinstance(settings.engine_of(name, ELSEWHERE), OpenAICompatibleEngine):
        return [ELSEWHERE]
    newest = sorted(present, reverse=True)
    return newest if policy.policy == "all" else newest[: policy.count]


def find(settings: Settings, store: ModelStore, name: str, number: int) -> Version:
    """Raises `StoreError` when the store lacks it."""
    section = settings.engine_of(name, number)
    if isinstance(section, OpenAICompatibleEngine):  # its files are on another machine
        task = "embed" if EmbeddingRequest.TASK in section.capabilities else "generate"
        return Version(name, number, Path(os.devnull), datetime.now(), section.url, [], task)
    return store.get(name, number)


def obstacle(settings: Settings, version: Version) -> str:
    """Why its engine cannot serve the version, or nothing."""
    section = settings.engine_of(version.name, version.number)
    engine = create_engine(section, version.path, version.task)
    if isinstance(engine, LocalEngine) and not os.access(engine.program, os.X_OK):
        return f"{not_installed(engine.name, engine.program)}."
    if version.task not in engine.tasks:
        return (
            f"models.{version.name}: {version.tag} was imported to {version.task}, which "
            f"{engine.name} cannot do; choose vllm or sglang for it."
        )
    lacking = [file for file in engine.needs if not (version.path / file).is_file()]
    if lacking:
        return (
            f"models.{version.name}: {engine.name} needs {lacking[0]}, which {version.tag} lacks; "
            "choose another engine, or import a model that has it."
        )
    return ""
