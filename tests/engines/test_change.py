"""Changing the engine: the client's side stays as it is."""

from __future__ import annotations

from pathlib import Path

import cruft
import openai
import yaml
from baking import Template
from engines.harness import DEMO, SECTIONS
from served import Served


def the_clients_side(client: openai.OpenAI) -> list[str]:
    """A client's program, which knows nothing of engines. Returns what it was told."""
    told = [model.id for model in client.models.list()]
    for question in ("What is the capital of France?", "Count to 20.", "Send me an emoji."):
        chunks = client.chat.completions.create(
            model="chat", messages=[{"role": "user", "content": question}], stream=True
        )
        told.append("".join(c.choices[0].delta.content or "" for c in chunks if c.choices))
    told.append(client.responses.create(model="chat", input="What is 7 plus 5?").output_text)
    reply = client.completions.create(model="chat", prompt="The capital of Spain is", stop=".")
    told.append(reply.choices[0].text)
    return told


def told_by(service: Served) -> tuple[list[str], str]:
    """What a client is told while the service runs, and by which version."""
    service.start()
    try:
        service.wait_ready(300)
        client = openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", timeout=120)
        told = the_clients_side(client)
        reply = client.chat.completions.create(
            model="chat", messages=[{"role": "user", "content": "Hello!"}]
        )
        return told, reply.system_fingerprint or ""
    finally:
        service.stop()


def test_a_version_may_name_another_engine_and_clients_notice_nothing(tmp_path: Path) -> None:
    """`chat:1` on transformers and `chat:2` on vLLM, each with its own environment."""
    service = Served(
        DEMO,
        tmp_path,
        engine={"max_model_len": 512},
        models={"chat": ["demo"]},
    )
    service.import_model("chat", "demo")
    settings = yaml.safe_load(service.config.read_text("utf-8"))
    settings["models"]["chat"]["engines"] = {2: {"name": "vllm", **SECTIONS["vllm"]}}
    told = []
    for number in (1, 2):
        settings["models"]["chat"]["versions"] = {"policy": "specific", "numbers": [number]}
        service.config.write_text(yaml.safe_dump(settings), "utf-8")
        said, fingerprint = told_by(service)
        assert fingerprint == f"chat:{number}"
        told.append(said)
    assert told[0] == told[1]


def test_cruft_moves_a_project_to_another_engine_and_clients_notice_nothing(
    template: Template, tmp_path: Path
) -> None:
    project = template.cruft_create(tmp_path / "projects", model_source="demo")
    told = []
    for engine in ("transformers", "sglang"):
        if engine != "transformers":
            assert cruft.update(project, extra_context={"engine": engine, "gpus_per_replica": "0"})
        folder = tmp_path / engine
        folder.mkdir()
        service = Served(project, folder, engine=SECTIONS[engine], programs=DEMO / ".venv/bin")
        assert yaml.safe_load(service.config.read_text("utf-8"))["engine"]["name"] == engine
        said, _ = told_by(service)
        told.append(said)
    assert told[0] == told[1]
