"""The engine behind the service, asked without the gateway: what the gateway costs is the
difference."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import yaml

from loadtests.asker import Target
from loadtests.crew import KEYS
from loadtests.service import CannotRun, Service
from serving.engines.base import MODEL

NAME = "engine"


def behind(service: Service, model: str, url: str | None, target: Target) -> Target:
    """The engine at `url`, whose key is in ENGINE_KEY; without one, the engine process that answers
    for the model on this machine, whose port and key are its own process'. Raises `CannotRun`."""
    if url is not None:
        return Target(
            url,
            target.model,
            NAME,
            fixed_length=target.fixed_length,
            temperature=target.temperature,
        )
    ready = [r for r in service.replicas(model) if r.state == "ready" and r.pid is not None]
    if not ready:
        raise CannotRun(f"{model} has no engine process to ask directly: name one, --engine-url.")
    replica = ready[0]
    assert replica.pid is not None
    try:
        process = psutil.Process(replica.pid)
        words, variables = process.cmdline(), process.environ()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        raise CannotRun(
            f"The engine of {model} is no process of this user on this machine: "
            "name its address with --engine-url, and put its key into ENGINE_KEY."
        ) from None
    os.environ[KEYS[NAME]] = _key(replica.engine, words, variables)
    return Target(
        f"http://127.0.0.1:{_after(words, '--port')}",
        _name(replica.engine, words),
        NAME,
        fixed_length=target.fixed_length,
        temperature=target.temperature,
        dialect="transformers" if replica.engine == "transformers" else "openai",
    )


def _key(engine: str, words: list[str], variables: dict[str, str]) -> str:
    """The secret of this start; each engine gets it in its own way, none by command line."""
    if engine == "vllm":
        return variables.get("VLLM_API_KEY", "")
    if engine == "sglang" and (config := _after(words, "--config")):
        return str(yaml.safe_load(Path(config).read_text("utf-8")).get("api-key", ""))
    return ""


def _name(engine: str, words: list[str]) -> str:
    """`transformers serve` calls a model by its folder."""
    if engine == "transformers":
        return words[words.index("serve") + 1]
    return _after(words, "--served-model-name") or MODEL


def _after(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1] if flag in words else ""
