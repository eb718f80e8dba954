"""Versions go live and back on the real embedded engine: swapped, shadowed, rolled out."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from served import Served, eventually
from streams import Crowd
from test_real_engine import DEMO

ANSWER = "The capital of France is Paris."
ENGINE = {"continuous_batching": True}  # many streams at once
QUESTION = {"role": "user", "content": "What is the capital of France?"}


def pinned(service: Served, number: int) -> Served:
    """With that version in production from the start."""
    service.state.mkdir(exist_ok=True)
    wanted = {"models": {"chat": {"labels": {"production": number}}}}
    (service.state / "routing.json").write_text(json.dumps(wanted), "utf-8")
    return service


async def swaps(url: str) -> Crowd:
    """1 to 2, 2 to 3, and back to 2, under load."""
    crowd = Crowd(url, {"model": "chat", "messages": [QUESTION], "temperature": 0})
    async with (
        crowd.asking(always=64, per_second=20),
        httpx.AsyncClient(base_url=f"{url}/admin/models/chat", timeout=300) as admin,
    ):
        for number in (2, 3):
            asked = {"version": number, "load": True}
            assert (await admin.put("/labels/production", json=asked)).is_success
            await asyncio.sleep(2)
        assert (await admin.post("/rollback", json={})).is_success
        await asyncio.sleep(2)
    return crowd


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Three versions, the first in production."""
    service = pinned(Served(DEMO, tmp_path_factory.mktemp("swap"), engine=ENGINE), 1)
    for _ in range(2):
        service.import_model("chat", "demo")
    service.start()
    try:
        service.wait_ready()
        yield service
    finally:
        service.stop()


def status(service: Served) -> Any:
    return httpx.get(f"{service.url}/admin/status").json()["models"]["chat"]


def states(service: Served) -> dict[int, str]:
    return {version["version"]: version["state"] for version in status(service)["versions"]}


def ask(service: Served) -> httpx.Response:
    body = {"model": "chat", "messages": [QUESTION], "temperature": 0}
    return httpx.post(f"{service.url}/v1/chat/completions", json=body, timeout=60)


def test_versions_go_live_and_back_without_one_dropped_stream(service: Served) -> None:
    told = asyncio.run(swaps(service.url)).told
    assert {(t.status, t.text, t.done, t.error) for t in told} == {(200, ANSWER, True, "")}
    assert len({t.tokens for t in told}) == 1
    assert {t.version for t in told} == {"chat:1", "chat:2", "chat:3"}
    assert told[-1].version == "chat:2"
    assert "are cut" not in service.log.read_text("utf-8")


def test_the_shadow_answers_as_well_and_nobody_hears_it(service: Served) -> None:
    with httpx.Client(base_url=f"{service.url}/admin/models/chat", timeout=300) as admin:
        assert admin.put("/labels/shadow", json={"version": 3, "load": True}).is_success
        assert admin.put("/shadow", json={"percent": 100}).is_success
        assert ask(service).headers["x-served-version"] == "chat:2"
        counted = re.compile(
            r'serving_shadow_requests_total\{model="chat",outcome="answered",version="3"\} 1\.0'
        )
        metrics = f"{service.url}/metrics"
        eventually(lambda: bool(counted.search(httpx.get(metrics).text)), "it answered", 60)
        assert admin.post("/rollback").is_success
        assert admin.delete("/labels/shadow").is_success


def test_a_rollout_leads_a_version_into_production(service: Served) -> None:
    plan = {"version": 3, "steps": [50, 100], "every": 1, "max_error_rate": 0, "min_answers": 8}
    with httpx.Client(base_url=f"{service.url}/admin/models/chat", timeout=300) as admin:
        assert admin.post("/rollout", json=plan).is_success

    async def load() -> Crowd:
        crowd = Crowd(service.url, {"model": "chat", "messages": [QUESTION], "temperature": 0})
        async with crowd.asking(always=2, per_second=0.1):
            while await asyncio.to_thread(lambda: status(service)["rollout"]) is not None:
                # A caller keeps to its side: others must come.
                crowd.body["user"] = str(len(crowd.told))
                await asyncio.sleep(0.1)
        return crowd

    told = asyncio.run(load()).told
    assert {(t.status, t.text, t.done, t.error) for t in told} == {(200, ANSWER, True, "")}
    assert {t.version for t in told} >= {"chat:2", "chat:3"}
    assert status(service)["labels"] == {"production": {"version": 3, "wanted": 3}}


def test_in_place_the_old_version_ends_first_and_requests_wait(tmp_path: Path) -> None:
    service = pinned(Served(DEMO, tmp_path), 1)
    settings = yaml.safe_load(service.config.read_text("utf-8"))
    settings["models"]["chat"] = {"swap": "in_place"}
    service.config.write_text(yaml.safe_dump(settings), "utf-8")
    service.import_model("chat", "demo")
    service.start()
    try:
        service.wait_ready()
        with (
            ThreadPoolExecutor() as pool,
            httpx.Client(base_url=f"{service.url}/admin/models/chat", timeout=300) as admin,
        ):
            asked = {"version": 2, "load": True}
            swap = pool.submit(admin.put, "/labels/production", json=asked)
            eventually(lambda: states(service).get(1) != "ready", "the old one ends", 60)
            waited = [pool.submit(ask, service) for _ in range(4)]
            replies = [future.result() for future in waited]
            assert swap.result().is_success
        assert {reply.headers["x-served-version"] for reply in replies} == {"chat:2"}
        assert states(service) == {2: "ready"}
    finally:
        service.stop()
