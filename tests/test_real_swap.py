"""A version goes live and back on the real embedded engine while 64 clients stream."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import httpx
from served import Served
from streams import Crowd
from test_real_engine import DEMO

ANSWER = "The capital of France is Paris."
#: Many streams at once; each engine would take half of the machine's free memory by itself.
ENGINE = {"continuous_batching": True, "engine_args": {"cb-num-blocks": 256, "cb-block-size": 32}}
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


def test_versions_go_live_and_back_without_one_dropped_stream(tmp_path: Path) -> None:
    service = pinned(Served(DEMO, tmp_path, engine=ENGINE), 1)
    for _ in range(2):
        service.import_model("chat", "demo")
    service.start()
    try:
        service.wait_ready()
        told = asyncio.run(swaps(service.url)).told
    finally:
        service.stop()
    assert {(t.status, t.text, t.done, t.error) for t in told} == {(200, ANSWER, True, "")}
    assert len({t.tokens for t in told}) == 1
    assert {t.version for t in told} == {"chat:1", "chat:2", "chat:3"}
    assert told[-1].version == "chat:2"
    assert "are cut" not in service.log.read_text("utf-8")
