"""The admin API and the commands that use it, on a running service with two versions."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from commands import command, complaint, said
from live_service import PROJECT, Service, eventually, free_port
from versions import import_versions, in_production, status_of, version_states

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("deadline")]

MODEL = "/admin/models/chat"


@pytest.fixture(scope="module")
def running(serve: Callable[..., Service], model_template: Path) -> Service:
    service = serve()
    import_versions(service, model_template, 2)
    in_production(service, 1)
    return service.start().wait_ready()


@pytest.fixture
def service(running: Service) -> Iterator[Service]:
    """As it was, after each test."""
    yield running
    eventually(lambda: running.ready, "ready")
    while status_of(running)["revision"] > 1:
        if running.http.post(f"{MODEL}/rollback").status_code == 409:
            break
    eventually(lambda: version_states(running) == {1: "ready"}, "only version 1")


def refusal(reply: httpx.Response) -> tuple[int, str, str | None]:
    error = reply.json()["error"]
    return reply.status_code, error["code"], error["param"]


def test_the_status_shows_versions_labels_and_replicas(service: Service) -> None:
    asked = {"version": 2, "load": True}
    reply = service.http.put(f"{MODEL}/labels/canary", json=asked)
    assert reply.status_code == 200
    assert reply.headers["x-request-id"]
    shown = status_of(service)
    assert (shown["revision"], shown["ready"], shown["fault"]) == (
        reply.json()["revision"],
        True,
        "",
    )
    chat = shown["models"]["chat"]
    assert (chat["ready"], chat["pinned"], chat["traffic"], chat["shadow"]) == (True, True, {}, 0)
    assert chat["labels"] == {
        "production": {"version": 1, "wanted": 1},
        "canary": {"version": 2, "wanted": 2},
    }
    for number, label in ((1, "production"), (2, "canary")):
        version = chat["versions"][number - 1]
        assert (version["version"], version["labels"]) == (number, [label])
        assert (version["state"], version["engine"], version["restarts"]) == ("ready", "vllm", 0)
        (replica,) = version["replicas"]
        assert (replica["state"], replica["in_flight"]) == ("ready", 0)
        assert re.match(r"\d{4}-\d\d-\d\dT", version["since"])


def test_every_change_is_in_the_history_with_who_made_it(service: Service) -> None:
    service.http.put(f"{MODEL}/labels/canary", json={"version": 1}, headers={"x-operator": "ann"})
    service.http.put(f"{MODEL}/traffic", json={"weights": {"production": 1, "canary": 1}})
    history = service.http.get("/admin/history").json()["history"][-2:]
    assert [(change["by"], change["what"]) for change in history] == [
        ("ann", "label canary: none -> 1"),
        ("admin API", "traffic: production 1, canary 1"),
    ]


@pytest.mark.parametrize(
    ("method", "path", "body", "refused"),
    [
        ("PUT", "labels/canary", {}, (400, "invalid_request", "version")),
        ("PUT", "labels/canary", {"version": "2"}, (400, "invalid_request", "version")),
        ("PUT", "labels/canary", {"version": 0}, (400, "invalid_request", "version")),
        ("PUT", "labels/canary", {"version": 1, "laod": True}, (400, "unknown_field", "laod")),
        ("PUT", "labels/canary", {"version": 2}, (409, "refused", None)),
        ("PUT", "labels/Canary", {"version": 1}, (409, "refused", None)),
        ("PUT", "labels/a", {"version": 1, "revision": 0}, (409, "revision_conflict", None)),
        ("PUT", "traffic", {"weights": {"canary": -1}}, (400, "invalid_request", "weights.canary")),
        ("PUT", "traffic", {"weights": {"canary": 1}}, (409, "refused", None)),
        ("PUT", "shadow", {"percent": 101}, (400, "invalid_request", "percent")),
        ("PUT", "shadow", {"percent": 10}, (409, "refused", None)),
        ("POST", "promote", {}, (409, "refused", None)),
        ("POST", "rollout", {"version": 2}, (400, "invalid_request", "steps")),
        (
            "POST",
            "rollout",
            {"version": 2, "steps": [50, 5], "every": 1},
            (400, "invalid_request", None),
        ),
        (
            "POST",
            "rollout",
            {"version": 1, "steps": [5], "every": 1},
            (409, "refused", None),
        ),
        ("DELETE", "rollout", None, (409, "refused", None)),
        ("DELETE", "labels/canary", None, (409, "refused", None)),
        ("DELETE", "labels/canary?revision=x", None, (400, "invalid_request", "revision")),
        ("GET", "labels/canary", None, (405, "method_not_allowed", None)),
        ("PUT", "weights", {}, (404, "not_found", None)),
    ],
)
def test_what_makes_no_sense_is_refused_by_name_and_changes_nothing(
    service: Service, method: str, path: str, body: Any, refused: tuple[int, str, str | None]
) -> None:
    before = service.http.get("/admin/history").json()
    reply = service.http.request(method, f"{MODEL}/{path}", json=body)
    assert refusal(reply) == refused
    assert service.http.get("/admin/history").json() == before


def test_an_unknown_model_is_not_found(service: Service) -> None:
    reply = service.http.post("/admin/models/code/rollback")
    assert refusal(reply) == (404, "model_not_found", "model")


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},  # a page whose own name leads to 127.0.0.1
        {"host": "127.0.0.1.evil.example"},
        {"x-forwarded-for": "203.0.113.7"},  # by a proxy on this machine
        {"forwarded": "for=203.0.113.7"},
    ],
)
def test_who_is_not_on_this_machine_is_refused(service: Service, headers: dict[str, str]) -> None:
    for path in ("/admin/status", "/admin/history"):
        assert refusal(service.http.get(path, headers=headers))[:2] == (403, "local_only")
    for name in ("localhost", "127.0.0.1:3000", "[::1]:80"):
        assert service.http.get("/admin/status", headers={"host": name}).status_code == 200


# The commands.


def test_a_canary_from_its_import_to_production_and_back_by_commands(service: Service) -> None:
    assert "chat@canary is chat:2" in said(service, "labels", "set", "chat", "canary", "2")
    assert "production=90 canary=10" in said(
        service, "traffic", "chat", "production=90", "canary=10"
    )
    shown = said(service, "status")
    assert re.search(r"chat:1 +ready +production +90% +1/1 vllm", shown)
    assert re.search(r"chat:2 +ready +canary +10% +1/1 vllm", shown)
    assert "canary of chat is in production" in said(service, "promote", "chat")
    assert service.chat("Hello").json()["system_fingerprint"] == "chat:2"
    assert "Undone: promoted canary: production 1 -> 2" in said(service, "rollback", "chat")
    assert service.chat("Hello", model="chat@production").json()["system_fingerprint"] == "chat:1"
    assert "rolled back: promoted canary" in said(service, "history")
    assert "no label canary any more" in said(service, "labels", "drop", "chat", "canary")


def test_a_shadow_by_command(service: Service) -> None:
    said(service, "labels", "set", "chat", "shadow", "2")
    assert "12.5 % go to the shadow too" in said(service, "shadow", "chat", "12.5")
    assert status_of(service)["models"]["chat"]["shadow"] == 12.5


def test_a_refusal_is_one_sentence_and_exit_status_1(service: Service) -> None:
    missing = command(service, "labels", "set", "chat", "canary", "9")
    assert "chat:9 is not in the model store." in complaint(missing)
    stale = command(service, "labels", "set", "chat", "canary", "1", "--revision", "0")
    assert "somebody changed the routing meanwhile" in complaint(stale)
    every = command(service, "rollout", "start", "chat", "2", "--every", "10")
    assert "--every: '10' is no time; write 90s, 10m, 2h or 30d." in complaint(every)
    rate = command(service, "rollout", "start", "chat", "2", "--max-error-rate", "few")
    assert "--max-error-rate: 'few' is no number" in complaint(rate)
    steps = command(service, "rollout", "start", "chat", "2", "--steps", "50,5")
    assert "each must be larger than the one before" in complaint(steps)
    share = command(service, "traffic", "chat", "canary:10")
    assert "write LABEL=WEIGHT, as in canary=10" in complaint(share)


def test_without_a_service_the_command_says_so() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    done = subprocess.run(
        [sys.executable, "-m", "serving.cli", "status", "--url", url],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert f"No service of ours answers at {url}" in complaint(done)


def test_a_watched_status_follows_and_ends_with_ctrl_c(service: Service, tmp_path: Path) -> None:
    with (tmp_path / "shown").open("w") as shown:
        watch = subprocess.Popen(
            [sys.executable, "-m", "serving.cli", "status", "--watch"],
            cwd=PROJECT,
            env={**os.environ, "SERVING_URL": service.url, "FORCE_COLOR": "1", "COLUMNS": "120"},
            stdout=shown,
            stderr=subprocess.STDOUT,
        )
        try:
            text = (tmp_path / "shown").read_text
            eventually(lambda: "chat:1" in text(), "the first look")
            service.http.put(f"{MODEL}/labels/canary", json={"version": 2, "load": True})
            eventually(lambda: "chat:2" in text(), "the second version shows")
            time.sleep(0.1)
            watch.send_signal(signal.SIGINT)
            assert watch.wait(20) == 130
        finally:
            watch.kill()
    assert "Traceback" not in text()
