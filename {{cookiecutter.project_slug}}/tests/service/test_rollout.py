"""Rollouts on a running service under load: into production, back by themselves, over a restart."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
from commands import said
from live_service import Service, chat_body, eventually
from scripted_engine import script
from versions import all_gone, family_of, import_versions, in_production, kill, status_of

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("deadline")]

Serve = Callable[..., Service]
Start = Callable[..., Service]


@pytest.fixture
def start(serve: Serve, model_template: Path, tmp_path: Path) -> Start:
    """A service with version 1 in production and a version 2, which answers as told here."""

    def start(load: str = "prewarm", **second: Any) -> Service:
        behaviour = tmp_path / "second.json"
        behaviour.write_text(json.dumps({"default": second}), "utf-8")
        engine = {
            "name": "vllm",
            "home": "engine",
            "max_model_len": 256,
            "env": {"SCRIPTED_BEHAVIOUR": str(behaviour)},
        }
        service = serve(settings={"models": {"chat": {"engines": {2: engine}, "load": load}}})
        import_versions(service, model_template, 2)
        in_production(service, 1)
        return service.start().wait_ready()

    return start


@contextlib.contextmanager
def load(service: Service) -> Iterator[Counter[str]]:
    """Callers without end, four at a time. Counts what they get: versions and status codes."""
    met: Counter[str] = Counter()
    callers, over = count(), threading.Event()

    def client() -> None:
        with httpx.Client(base_url=service.url, timeout=20) as http:
            while not over.is_set():
                body = chat_body("Hello", user=f"caller-{next(callers)}", stream=True)
                reply = http.post("/v1/chat/completions", json=body)
                done = reply.is_success and reply.text.endswith("data: [DONE]\n\n")
                met[reply.headers["x-served-version"] if done else str(reply.status_code)] += 1

    clients = [threading.Thread(target=client) for _ in range(4)]
    for thread in clients:
        thread.start()
    try:
        yield met
    finally:
        over.set()
        for thread in clients:
            thread.join()


def rollout(service: Service) -> Any:
    return status_of(service)["models"]["chat"]["rollout"]


def start_rollout(service: Service, **options: str) -> str:
    usual = {"steps": "20,100", "every": "1s", "min-answers": "20", "max-ttft-p95-ratio": "none"}
    given = [f"--{name}={value}" for name, value in (usual | options).items()]
    return said(service, "rollout", "start", "chat", "2", *given)


def test_a_good_version_goes_into_production_by_itself_and_nobody_notices(start: Start) -> None:
    service = start()
    with load(service) as met:
        # Long enough for a slow machine to look at it meanwhile.
        assert "chat:2 gets 20 % of the traffic" in start_rollout(service, every="4s")
        assert re.search(r"rollout to chat:2: step \d of 2, (20|100) %", said(service, "status"))
        eventually(lambda: rollout(service) is None, "the rollout is over")
    assert set(met) == {"chat:1", "chat:2"}
    assert status_of(service)["models"]["chat"]["labels"] == {
        "production": {"version": 2, "wanted": 2}
    }
    history = service.http.get("/admin/history").json()["history"]
    assert "promoted canary: production 1 -> 2: 0 of " in history[-1]["what"]
    assert history[-1]["by"] == "rollout"
    assert "rolled back: rollout to 2" not in said(service, "rollback", "chat")
    assert service.chat("Hello").headers["x-served-version"] == "chat:1"


def test_a_version_that_fails_its_requests_goes_back_by_itself(start: Start) -> None:
    service = start(load="eager", fault="status_500")
    with load(service) as met:
        start_rollout(service, every="10m")
        eventually(lambda: rollout(service) is None, "the rollout is over")
        met.clear()
        eventually(lambda: met["chat:1"] > 100, "answers after it")
    assert met["502"] <= 4  # those that were under way
    last = service.http.get("/admin/history").json()["history"][-1]["what"]
    assert "at 20 %: over 1.00% of its answers fail" in last
    assert last in " ".join(service.log_text.split())


def test_a_version_that_is_slow_to_answer_goes_back_by_itself(start: Start) -> None:
    service = start(first_delay_ms=300)
    with load(service):
        start_rollout(service, **{"every": "10m", "max-ttft-p95-ratio": "2"})
        eventually(lambda: rollout(service) is None, "the rollout is over")
    last = service.http.get("/admin/history").json()["history"][-1]["what"]
    assert "its TTFT p95 is over 2 times production's" in last


def test_a_killed_service_goes_on_where_the_rollout_was(start: Start) -> None:
    service = start()
    start_rollout(service, **{"every": "5s", "min-answers": "1"})
    with load(service):
        eventually(lambda: rollout(service) is None or rollout(service)["step"] == 2, "step 2")
    assert rollout(service)["step"] == 2
    family = family_of(service)
    kill(family)
    eventually(partial(all_gone, family), "all are gone")
    service.start().wait_ready()
    shown = rollout(service)
    assert (shown["step"], shown["percent"], shown["version"]) == (2, 100, 2)
    with load(service):
        eventually(lambda: rollout(service) is None, "the rollout is over")
    assert service.chat(script(tokens=1)).headers["x-served-version"] == "chat:2"
