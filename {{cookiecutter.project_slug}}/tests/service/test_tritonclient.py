"""Triton's own client, unchanged, on a running service."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import scripted_engine
from live_service import Service, eventually
from tritonclient.http import InferenceServerClient
from tritonclient.utils import InferenceServerException
from versions import import_versions, in_production, version_states

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("deadline")]


@pytest.fixture(scope="module")
def running(serve: Callable[..., Service], model_template: Path) -> Service:
    service = serve(settings={"restarts": {"attempts": 1}})
    import_versions(service, model_template, 3)
    in_production(service, 1)
    return service.start().wait_ready()


@pytest.fixture
def service(running: Service) -> Iterator[Service]:
    """With version 1 alone, after each test."""
    yield running
    scripted_engine.behave(running.engine_home)
    running.http.post("/v2/repository/models/chat/unload")
    eventually(lambda: version_states(running) == {1: "ready"}, "only version 1")


@pytest.fixture
def client(service: Service) -> Iterator[Any]:
    client = InferenceServerClient(f"127.0.0.1:{service.port}")
    yield client
    client.close()


def index(client: Any) -> dict[str, tuple[str, str]]:
    return {
        entry["version"]: (entry["state"], entry.get("reason", ""))
        for entry in client.get_model_repository_index()
    }


def test_health_and_metadata(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    server = client.get_server_metadata()
    assert server["name"] == "test-service"
    assert "model_repository" in server["extensions"]
    model = client.get_model_metadata("chat")
    assert (model["name"], model["versions"], model["platform"]) == ("chat", ["1"], "vllm")
    config = client.get_model_config("chat", "1")
    assert (config["name"], config["backend"]) == ("chat", "vllm")


def test_readiness_by_model_and_version(client: Any) -> None:
    ready = [client.is_model_ready("chat", version) for version in ("", "1", "2", "x")]
    assert ready == [True, True, False, False]
    assert not client.is_model_ready("code")


def test_the_newest_version_is_loaded_and_unloaded(service: Service, client: Any) -> None:
    unloaded = ("UNAVAILABLE", "unloaded")
    assert index(client) == {"1": ("READY", ""), "2": unloaded, "3": unloaded}
    client.load_model("chat")
    assert index(client) == {"1": ("READY", ""), "2": unloaded, "3": ("READY", "")}
    assert client.is_model_ready("chat", "3")
    assert service.chat("Hello").json()["system_fingerprint"] == "chat:1"
    assert service.chat("Hello", model="chat:3").json()["system_fingerprint"] == "chat:3"
    client.unload_model("chat")
    eventually(lambda: index(client)["3"] == unloaded, "unloaded")
    assert client.is_model_ready("chat", "1")


def test_versions_are_loaded_by_name_or_by_policy(client: Any) -> None:
    client.load_model("chat:2")
    assert client.is_model_ready("chat", "2")
    policy = {"version_policy": {"specific": {"versions": [2, 3]}}}
    client.load_model("chat", config=json.dumps(policy))
    assert client.is_model_ready("chat", "3")
    client.unload_model("chat:2")
    eventually(lambda: not client.is_model_ready("chat", "2"), "unloaded")
    assert client.is_model_ready("chat", "3")


def test_a_failed_load_says_why_and_the_old_version_serves_on(
    service: Service, client: Any
) -> None:
    scripted_engine.behave(service.engine_home, crash_at_start="out of memory")
    with pytest.raises(InferenceServerException, match="out of memory"):
        client.load_model("chat")
    assert service.chat("Hello").json()["system_fingerprint"] == "chat:1"
    eventually(lambda: index(client)["3"][0] == "UNAVAILABLE", "put away")


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (lambda client: client.load_model("code"), "no model code"),
        (lambda client: client.load_model("chat:9"), "not in the model store"),
        (lambda client: client.unload_model("chat:1"), "production means; move the label"),
        (lambda client: client.load_model("chat", config="{"), "not valid JSON"),
        (lambda client: client.load_model("chat", config='{"backend": "x"}'), "Unknown field"),
        (
            lambda client: client.load_model(
                "chat", config='{"version_policy": {"latest": {"num_versions": 2}}}'
            ),
            "num_versions",
        ),
        (lambda client: client.get_model_metadata("chat", "9"), "chat:9 is not served"),
    ],
)
def test_what_cannot_be_done_is_an_exception_with_the_reason(
    client: Any, ask: Callable[[Any], Any], told: str
) -> None:
    with pytest.raises(InferenceServerException, match=told):
        ask(client)


def test_files_in_place_of_a_model_are_refused(service: Service) -> None:
    parameters = {"config": "{}", "file:1/model.onnx": "AAAA"}
    reply = service.http.post("/v2/repository/models/chat/load", json={"parameters": parameters})
    assert reply.status_code == 400
    assert "file:1/model.onnx" in reply.json()["error"]


def test_only_health_answers_to_everybody(service: Service) -> None:
    def status(method: str, path: str) -> int:
        reply: httpx.Response = service.http.request(method, path, headers={"host": "evil.example"})
        return reply.status_code

    assert status("GET", "/v2/health/live") == status("GET", "/v2/health/ready") == 200
    for method, path in (
        ("GET", "/v2"),
        ("GET", "/v2/models/chat"),
        ("POST", "/v2/repository/index"),
        ("POST", "/v2/repository/models/chat/load"),
    ):
        assert status(method, path) == 403
