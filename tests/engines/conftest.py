"""Each real engine behind a baked project, started once, and what was seen of it.

The environments come from `make test-engines`; ENGINES=vllm,sglang runs some of them only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from baking import ROOT, Template
from engines.features import Features, write_table
from engines.harness import DEMO, ENGINES, SECTIONS, Engine
from engines.lora import make_adapter

SEEN = pytest.StashKey[Features]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[SEEN] = Features()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Writes what was seen into README, if all of it was. A table that no longer said so fails the
    run that wrote it anew."""
    seen = session.config.stash[SEEN]
    whole = exitstatus == 0 and seen.engines == set(SECTIONS)
    if whole and write_table(ROOT / "README.md", seen, list(SECTIONS)):
        print("\nREADME.md's table of capabilities was out of date; it is written: commit it.")
        session.exitstatus = 1


@pytest.fixture(scope="session", params=ENGINES)
def engine(
    request: pytest.FixtureRequest,
    template: Template,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Engine]:
    name: str = request.param
    section = SECTIONS[name]
    home = Path(section["home"])
    assert home.is_dir(), f"{home} is missing: run make test-engines, which installs it"
    project = template.bake(
        tmp_path_factory.mktemp("project") / name,
        engine=name,
        model_source="demo",
        gpus_per_replica="0",
    )
    folder = tmp_path_factory.mktemp(name)
    if name == "vllm":
        section = {**section, "lora": {"shouting": str(make_adapter(project, folder / "lora"))}}
    models = {"chat": ["demo"]}
    if name != "transformers":
        models["vectors"] = ["demo", "--task", "embed"]
    engine = Engine(project, folder, engine=section, models=models, programs=DEMO / ".venv/bin")
    engine.name = name
    engine.features = request.config.stash[SEEN]
    engine.start()
    try:
        engine.wait_ready(600)
        yield engine
    finally:
        engine.stop()


@pytest.fixture
def client(engine: Engine) -> openai.OpenAI:
    return engine.client


@pytest.fixture(scope="session")
def vocabulary() -> dict[str, int]:
    """The demo model's tokens and their ids."""
    tokenizer = json.loads((DEMO / "demo_model/tokenizer.json").read_text("utf-8"))
    tokens: dict[str, int] = tokenizer["model"]["vocab"]
    return tokens
