"""A new version goes live while everybody streams, and nobody notices."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
import scripted_engine
from commands import said
from live_service import Service, chat_body, eventually
from scripted_engine import script
from streams import Crowd
from versions import (
    all_gone,
    engines,
    family_of,
    import_versions,
    in_production,
    kill,
    status_of,
    version_states,
)

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("deadline")]

Serve = Callable[..., Service]
TOKENS = 40


async def admin(service: Service, method: str, path: str, **body: Any) -> httpx.Response:
    async with httpx.AsyncClient(base_url=service.url, timeout=60) as client:
        return await client.request(method, f"/admin/models/chat/{path}", json=body)


@pytest.mark.parametrize("engine", ["vllm", "transformers"])
async def test_versions_go_live_and_back_under_load_without_one_dropped_stream(
    serve: Serve, model_template: Path, engine: str
) -> None:
    """64 streams always, 20 new ones a second; 1 to 2, 2 to 3, and rolled back."""
    service = serve(engine=engine)
    import_versions(service, model_template, 3)
    in_production(service, 1)
    service.start().wait_ready()
    prompt = script(tokens=TOKENS, delay_ms=50)
    crowd = Crowd(service.url, chat_body(prompt, max_tokens=TOKENS))
    flips: list[tuple[float, float, str]] = []
    async with crowd.asking(always=64, per_second=20):
        await asyncio.sleep(1)
        for method, path, body, now in (
            ("PUT", "labels/production", {"version": 2, "load": True}, "chat:2"),
            ("PUT", "labels/production", {"version": 3, "load": True}, "chat:3"),
            ("POST", "rollback", {}, "chat:2"),
        ):
            asked = time.monotonic()
            reply = await admin(service, method, path, **body)
            assert reply.status_code == 200, reply.text
            flips.append((asked, time.monotonic(), now))
            await asyncio.sleep(2)
    assert {told.status for told in crowd.told} == {200}
    assert [told.error for told in crowd.told if told.error] == []
    words = " ".join(f"w{i}" for i in range(TOKENS))
    assert {(told.text, told.tokens, told.done) for told in crowd.told} == {(words, TOKENS, True)}
    assert {told.version for told in crowd.told} == {"chat:1", "chat:2", "chat:3"}
    for (_, since, version), (until, *_) in pairwise([*flips, (float("inf"), 0.0, "")]):
        # On a busy machine a client may be so late that the next change was there before it.
        between = {t.version for t in crowd.told if since < t.asked and t.begun < until}
        assert between <= {version}
    assert "chat:1" not in {told.version for told in crowd.told if told.asked > flips[0][1]}
    assert crowd.told[-1].version == "chat:2"
    eventually(lambda: version_states(service) == {2: "ready"}, "the others' end")
    assert service.status("/readyz") == 200


@pytest.mark.parametrize("swap", ["in_place", "sleep"])
def test_where_memory_holds_one_version_streams_finish_and_new_requests_wait(
    serve: Serve, model_template: Path, swap: str
) -> None:
    engine = {"gpus": 1} if swap == "sleep" else {}
    service = serve(
        settings={"models": {"chat": {"swap": swap}}, "engine": engine},
        behaviour={"one_device": True},
    )
    import_versions(service, model_template, 2)
    in_production(service, 1)
    service.start().wait_ready()
    began, over, met = threading.Barrier(9), threading.Event(), Counter[str]()

    def stream() -> None:
        with service.stream(script(tokens=30, delay_ms=50)) as answer:
            answer.until_text("w1")
            began.wait()
            assert answer.rest()[-1].data == "[DONE]"
        met["streamed"] += 1

    def ask() -> None:
        with httpx.Client(base_url=service.url, timeout=20) as http:
            while not over.is_set():
                reply = http.post("/v1/chat/completions", json=chat_body("Hello"))
                met[reply.json().get("system_fingerprint") or reply.text] += 1

    threads = [threading.Thread(target=stream) for _ in range(8)]
    threads += [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    began.wait()
    try:
        assert "chat@production is chat:2" in said(
            service, "labels", "set", "chat", "production", "2"
        )
        assert service.chat("Hello").json()["system_fingerprint"] == "chat:2"
        assert "Undone" in said(service, "rollback", "chat")
        assert service.chat("Hello").json()["system_fingerprint"] == "chat:1"
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert met.keys() == {"streamed", "chat:1", "chat:2"}
    assert met["streamed"] == 8
    left = {1: "ready", 2: "asleep"} if swap == "sleep" else {1: "ready"}
    assert version_states(service) == left


@pytest.mark.parametrize(
    ("behaviour", "broken", "why"),
    [
        ({"crash_at_start": "out of memory"}, "", "out of memory"),
        ({"hang_at_start": True}, "", "was not healthy after 2 s"),
        ({}, "model.safetensors", "was changed after its import"),
    ],
    ids=["crashing", "never ready", "corrupt"],
)
def test_a_version_that_cannot_serve_is_refused_with_its_reason_and_put_away(
    serve: Serve, model_template: Path, behaviour: dict[str, Any], broken: str, why: str
) -> None:
    settings = {"timeouts": {"start": 2}, "restarts": {"attempts": 1}}
    service = serve(settings=settings)
    import_versions(service, model_template, 2)
    in_production(service, 1)
    service.start().wait_ready()
    before = status_of(service)["models"]["chat"]["versions"][0]["replicas"]
    scripted_engine.behave(service.engine_home, **behaviour)
    if broken:
        path = service.home / "models/chat/2" / broken
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    asked = {"version": 2, "load": True}
    reply = service.http.put("/admin/models/chat/labels/production", json=asked)
    assert (reply.status_code, reply.json()["error"]["code"]) == (409, "refused")
    assert why in reply.json()["error"]["message"]
    assert reply.json()["error"]["message"].startswith("chat:2 is not ready but failed")
    assert service.chat("Hello").json()["system_fingerprint"] == "chat:1"
    eventually(lambda: version_states(service) == {1: "ready"}, "version 2 is put away")
    eventually(lambda: len(engines(service)) == 1, "its processes are gone")
    assert status_of(service)["models"]["chat"]["versions"][0]["replicas"] == before
    routing = json.loads((service.folder / "state/routing.json").read_text("utf-8"))
    assert (routing["revision"], routing["models"]["chat"]["labels"]) == (1, {"production": 1})


def test_a_version_that_cannot_fit_is_refused_with_the_numbers(
    serve: Serve, model_folder: Path
) -> None:
    config = json.loads((model_folder / "config.json").read_text("utf-8"))
    config |= {"num_hidden_layers": 100, "num_attention_heads": 8, "hidden_size": 1024}
    (model_folder / "config.json").write_text(json.dumps(config), "utf-8")
    large = {"name": "vllm", "home": "engine", "max_model_len": 1_000_000_000}
    models = {"chat": {"engines": {2: large}}}
    service = serve(settings={"models": models, "restarts": {"attempts": 1}})
    import_versions(service, model_folder, 2)
    in_production(service, 1)
    service.start().wait_ready()
    asked = {"version": 2, "load": True}
    reply = service.http.put("/admin/models/chat/labels/production", json=asked)
    assert (reply.status_code, reply.json()["error"]["code"]) == (409, "refused")
    assert re.search(
        r"chat:2 needs at least \d+\.\d GiB of memory .* and \d+\.\d GiB are free; free some",
        reply.json()["error"]["message"],
    )
    assert service.chat("Hello").json()["system_fingerprint"] == "chat:1"
    assert len(engines(service)) == 1


def test_a_version_that_is_missing_is_refused(serve: Serve) -> None:
    service = serve().start().wait_ready()
    for load in (True, False):
        asked = {"version": 9, "load": load}
        reply = service.http.put("/admin/models/chat/labels/canary", json=asked)
        assert reply.status_code == 409
        assert "not in the model store" in reply.text or "not loaded" in reply.text


def test_a_drain_that_takes_too_long_ends_its_streams_with_an_error_event(
    serve: Serve, model_template: Path
) -> None:
    service = serve(settings={"timeouts": {"drain": 0.5}})
    import_versions(service, model_template, 2)
    in_production(service, 1)
    service.start().wait_ready()
    with service.stream(script(tokens=200, delay_ms=50), max_tokens=200) as stream:
        stream.until_text("w2")
        asked = {"version": 2, "load": True}
        assert service.http.put("/admin/models/chat/labels/production", json=asked).is_success
        *_, last = stream.rest()
    assert (last.name, last.json["error"]["code"]) == ("error", "version_replaced")
    assert "chat:1" in last.json["error"]["message"]
    assert "chat:1: 1 answers are cut" in service.log_text


async def test_a_tenth_of_the_callers_meets_the_canary_and_each_stays_on_its_side(
    serve: Serve, model_template: Path
) -> None:
    service = serve()
    import_versions(service, model_template, 2)
    in_production(service, 1, labels={"canary": 2}, traffic={"production": 90, "canary": 10})
    service.start().wait_ready()
    eventually(lambda: version_states(service) == {1: "ready", 2: "ready"}, "both are ready")
    met: dict[int, Counter[str]] = {caller: Counter() for caller in range(1000)}
    work = iter([caller for _ in range(10) for caller in met])

    async def client() -> None:
        async with httpx.AsyncClient(base_url=service.url, timeout=60) as http:
            for caller in work:
                body = chat_body(script(tokens=1), user=f"caller-{caller}")
                reply = await http.post("/v1/chat/completions", json=body)
                met[caller][reply.headers["x-served-label"]] += 1

    async with asyncio.TaskGroup() as tasks:
        for _ in range(16):
            tasks.create_task(client())
    assert {sum(labels.values()) for labels in met.values()} == {10}
    assert {len(labels) for labels in met.values()} == {1}
    canary = sum("canary" in labels for labels in met.values())
    # Four standard deviations of a binomial with n = 1000, p = 0.1.
    assert abs(canary - 100) < 4 * (1000 * 0.1 * 0.9) ** 0.5


def test_kill_9_in_the_middle_of_label_moves_leaves_the_old_or_the_new_state(
    serve: Serve, model_template: Path
) -> None:
    """Moves go on until nobody answers; the kill comes at any moment of one of them."""
    service = serve()
    import_versions(service, model_template, 2)
    in_production(service, 1, loaded=[1, 2])
    path = service.folder / "state" / "routing.json"
    for _ in range(10):
        service.start().wait_ready()
        eventually(lambda: version_states(service) == {1: "ready", 2: "ready"}, "both are ready")
        acknowledged = json.loads(path.read_text("utf-8"))["revision"]
        assert service.process is not None
        family = family_of(service)
        threading.Timer(random.uniform(0.1, 0.5), kill, [family]).start()
        with contextlib.suppress(httpx.HTTPError):
            while True:
                asked = {"version": 1 + acknowledged % 2}
                reply = service.http.put("/admin/models/chat/labels/production", json=asked)
                acknowledged = reply.json()["revision"]
        service.process.wait(20)
        eventually(partial(all_gone, family), "all are gone")
        routing = json.loads(path.read_text("utf-8"))
        assert routing["revision"] in (acknowledged, acknowledged + 1)
        production = routing["models"]["chat"]["labels"]["production"]
        assert production == 2 - routing["revision"] % 2
        assert routing["history"][-1]["what"].endswith(f"-> {production}")
    service.start().wait_ready()
    assert service.chat("Hello").json()["system_fingerprint"] == f"chat:{production}"


def test_a_state_file_edited_to_nonsense_changes_nothing_and_shows_in_the_status(
    serve: Serve, model_template: Path
) -> None:
    service = serve()
    import_versions(service, model_template, 2)
    in_production(service, 1)
    service.start().wait_ready()
    path = service.folder / "state" / "routing.json"
    good = path.read_text("utf-8")
    path.write_text('{"models": {"chat": {"labels": {"production": "two"}}}}', "utf-8")
    fault = eventually(lambda: status_of(service)["fault"], "the fault shows")
    assert str(path) in fault
    assert service.chat("Hello").json()["system_fingerprint"] == "chat:1"
    reply = service.http.put("/admin/models/chat/labels/canary", json={"version": 1})
    assert (reply.status_code, reply.json()["error"]["code"]) == (409, "routing_file")
    path.write_text(good.replace('"production": 1', '"production": 2'), "utf-8")
    eventually(
        lambda: service.chat("Hello").json()["system_fingerprint"] == "chat:2", "followed again"
    )
    assert status_of(service)["fault"] == ""


def test_a_start_with_nonsense_in_the_state_file_says_so(serve: Serve) -> None:
    service = serve()
    in_production(service, 0)
    assert service.start().wait(30) != 0
    assert "routing.json: models.chat.labels.production" in service.log_text
    assert "Traceback" not in service.log_text
