"""What a changed serving.yaml changes at once, and what waits for a restart."""

from __future__ import annotations

from typing import Any

import pytest

from serving.settings import Settings
from serving.settings.changes import take_over


def settings(**sections: Any) -> Settings:
    document: dict[str, Any] = {
        "service": {"name": "llm"},
        "engine": {"name": "vllm", "max_model_len": 256},
        "models": {"chat": {}, "code": {}},
    }
    return Settings.model_validate({**document, **sections})


def taken_over(
    running: Settings, served: tuple[int, ...] = (1,), **sections: Any
) -> tuple[list[str], list[str]]:
    return take_over(
        running,
        settings(**sections),
        settings().timeouts.longest_wait,
        lambda _, number: number in served,
    )


@pytest.mark.parametrize(
    ("sections", "changed"),
    [
        ({}, []),
        (
            {"limits": {"waiting": 5, "max_body_bytes": 1024}},
            ["limits.max_body_bytes", "limits.waiting"],
        ),
        ({"limits": {"on_failure": "closed"}}, ["limits.on_failure"]),
        ({"timeouts": {"drain": 5}}, ["timeouts.drain"]),
        ({"timeouts": {"answer": 60}}, ["timeouts.answer"]),
        (
            {"timeouts": {"head": 5, "body": 5, "idle": 5, "write": 5}},
            ["timeouts.body", "timeouts.head", "timeouts.idle", "timeouts.write"],
        ),
        ({"restarts": {"attempts": 9}}, ["restarts.attempts"]),
        (
            {"models": {"chat": {"warmup": {"prompts": ["Hi"]}}, "code": {}}},
            ["models.chat.warmup.prompts"],
        ),
        (
            {"models": {"chat": {}, "code": {"versions": {"policy": "all"}, "required": False}}},
            ["models.code.required", "models.code.versions.policy"],
        ),
    ],
)
def test_these_are_in_force_at_once(sections: dict[str, Any], changed: list[str]) -> None:
    running = settings()
    assert taken_over(running, **sections) == (changed, [])
    assert running == settings(**sections)


@pytest.mark.parametrize(
    ("sections", "waiting"),
    [
        ({"service": {"name": "other"}}, ["service.name"]),
        ({"engine": {"name": "vllm", "max_model_len": 512}}, ["engine.max_model_len"]),
        ({"models": {"chat": {"replicas": 2}, "code": {}}}, ["models.chat.replicas"]),
        ({"models": {"chat": {"swap": "in_place"}, "code": {}}}, ["models.chat.swap"]),
        ({"models": {"chat": {}}}, ["models.code"]),
        ({"models": {"chat": {}, "code": {}, "embed": {}}}, ["models.embed"]),
        ({"timeouts": {"answer": 3600}}, ["timeouts.answer"]),
        ({"limits": {"redis_env": "REDIS_URL"}}, ["limits.redis_env"]),
    ],
)
def test_these_wait_for_a_restart(sections: dict[str, Any], waiting: list[str]) -> None:
    running = settings()
    assert taken_over(running, **sections) == ([], waiting)
    assert running == settings()
    assert taken_over(running) == ([], [])  # written back: nothing waits any more


def test_a_version_that_is_not_loaded_gets_its_own_engine_at_once() -> None:
    engine = {"name": "vllm", "max_model_len": 512}
    models = {"chat": {"engines": {1: engine, 2: engine}}, "code": {}}
    running = settings()
    changed, waiting = taken_over(running, served=(1,), models=models)
    assert (changed, waiting) == (["models.chat.engines.2"], ["models.chat.engines.1"])
    assert running.engine_of("chat", 1).max_model_len == 256
    assert running.engine_of("chat", 2).max_model_len == 512


def test_what_waits_does_not_hold_up_what_does_not() -> None:
    running = settings()
    sections: dict[str, Any] = {
        "engine": {"name": "vllm", "max_model_len": 512},
        "limits": {"waiting": 5},
    }
    assert taken_over(running, **sections) == (["limits.waiting"], ["engine.max_model_len"])
    assert (running.limits.waiting, running.engine.max_model_len) == (5, 256)
