"""From `bentoml serve` to the first answer, and all the ways not to get there."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
from live_service import Service, eventually

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("deadline")]

Serve = Callable[..., Service]


def error_code(service: Service) -> str:
    reply = service.chat("Hello")
    assert reply.status_code == 503, reply.text
    assert int(reply.headers["retry-after"]) >= 1
    return str(reply.json()["error"]["code"])


def failed(service: Service) -> bool:
    reply = service.chat("Hello")
    return reply.status_code == 503 and bool(reply.json()["error"]["code"] == "model_failed")


def test_while_a_model_loads_the_service_lives_and_says_so(serve: Serve) -> None:
    with serve(behaviour={"start_delay": 3}).start().wait_live() as service:
        assert service.status("/readyz") == 503
        assert error_code(service) == "model_loading"
        assert [model["id"] for model in service.http.get("/v1/models").json()["data"]] == ["chat"]
        assert service.chat("Hello", model="other").status_code == 404
        service.wait_ready()
        assert service.chat("Hello").status_code == 200


def test_a_replica_is_warmed_up_before_its_first_client(serve: Serve) -> None:
    """Prefix, then each round's prompts, as many at once as told, then the project's own hook."""
    warmup = {
        "prompts": ["one", "two"],
        **{"max_tokens": 3, "concurrency": 2, "rounds": 2, "prefixes": ["You are kind."]},
        "logprobs": False,
    }
    hooks = """
async def warm_up(client):
    assert await client.chat("hook", system="Be exact.", max_tokens=2) == "w0 w1"
    assert await client.complete("text", max_tokens=1) == "w0"
"""
    settings = {"models": {"chat": {"warmup": warmup}}}
    slow = {"default": {"delay_ms": 50}}
    service = serve(settings=settings, hooks=hooks, behaviour=slow)
    with service.start().wait_ready():
        stats = service.stats()
    bodies = stats["bodies"]
    assert len(bodies) == 1 + 2 * 2 * 2 + 2
    assert [message["role"] for message in bodies[0]["messages"]] == ["system", "user"]
    first_round = sorted(body["messages"][0]["content"] for body in bodies[1:5])
    assert first_round == ["one", "one", "two", "two"]
    assert {body["max_tokens"] for body in bodies[1:9]} == {3}
    assert bodies[9]["messages"][-1]["content"] == "hook"
    assert bodies[10]["prompt"] == "text"
    assert stats["max_in_flight"] == 2


def test_an_eager_model_serves_without_warm_up(serve: Serve) -> None:
    settings = {"models": {"chat": {"load": "eager"}}}
    with serve(settings=settings).start().wait_ready() as service:
        assert service.stats()["requests"] == 0
        assert service.chat("Hello").status_code == 200


def test_a_lazy_model_is_loaded_by_its_first_request(serve: Serve) -> None:
    settings = {"models": {"chat": {"load": "lazy"}}}
    with serve(settings=settings).start().wait_ready() as service:
        assert not service.has_engine()
        assert service.chat("Hello").status_code == 200
        assert service.has_engine()
        assert service.ready


def test_an_optional_model_that_fails_does_not_hold_up_the_others(serve: Serve) -> None:
    settings = {
        "models": {
            "chat": {"priority": 1},
            "spare": {
                "required": False,
                "engine": {
                    "name": "vllm",
                    "home": "engine",
                    "max_model_len": 64,
                    "engine_args": {"nonsense": True},
                },
            },
        },
        "restarts": {"attempts": 2, "backoff": 0.1},
    }
    service = serve(settings=settings)
    models = service.home / "models"
    shutil.copytree(models / "chat", models / "spare")
    described = models / "spare" / "1" / "model.yaml"
    described.write_text(described.read_text().replace("name: chat", "name: spare"))
    with service.start().wait_ready():
        eventually(lambda: "spare:1 failed" in service.log_text, "the spare one failed")
        assert "unrecognized arguments: --nonsense" in service.log_text
        assert service.chat("Hello").status_code == 200
        spare = service.chat("Hello", model="spare")
        assert (spare.status_code, spare.json()["error"]["code"]) == (503, "model_failed")
        assert service.ready


def test_an_engine_that_crashes_at_first_is_started_again(serve: Serve) -> None:
    behaviour = {"crash_at_start": "no free GPU", "crash_first_n": 2}
    with serve(behaviour=behaviour).start().wait_ready() as service:
        assert service.stats()["starts"] == 3
        assert "next start in 0.2 s" in service.log_text
        assert "next start in 0.4 s" in service.log_text


def test_a_crash_loop_ends_as_failed_with_the_engines_last_words(serve: Serve) -> None:
    settings = {"restarts": {"attempts": 3, "backoff": 0.1}}
    service = serve(settings=settings, behaviour={"crash_at_start": "CUDA out of memory"})
    with service.start().wait_live():
        eventually(lambda: failed(service), "the model is failed")
        assert "chat:1 failed" in service.log_text
        assert "CUDA out of memory" in service.log_text
        assert "3 starts in a row" in service.log_text
        assert "CUDA" not in service.chat("Hello").text
        assert service.status("/livez") == 200
        assert service.status("/readyz") == 503
        assert not service.has_engine()


def test_an_engine_that_never_gets_healthy_runs_into_the_start_limit(serve: Serve) -> None:
    settings = {"timeouts": {"start": 1.5}, "restarts": {"attempts": 1}}
    with serve(settings=settings, behaviour={"hang_at_start": True}).start().wait_live() as service:
        eventually(lambda: failed(service), "the model is failed", 10)
        assert "was not healthy after 1.5 s" in service.log_text
        assert not service.has_engine()


def test_a_hook_that_raises_keeps_the_replica_from_serving(serve: Serve) -> None:
    hooks = "async def warm_up(client):\n    raise ValueError('too dull')\n"
    with serve(settings={"restarts": {"attempts": 1}}, hooks=hooks).start().wait_live() as service:
        eventually(lambda: failed(service), "the model is failed", 10)
        assert "warmup_hooks.py raised ValueError: too dull" in service.log_text
        assert not service.ready


def test_a_warm_up_that_fails_or_takes_too_long_keeps_the_replica_from_serving(
    serve: Serve,
) -> None:
    settings = {"timeouts": {"warmup": 1}, "restarts": {"attempts": 2, "backoff": 0.1}}
    behaviour = {"default": {"fault": "stall"}}
    with serve(settings=settings, behaviour=behaviour).start().wait_live() as service:
        eventually(lambda: failed(service), "the model is failed", 10)
        assert "its warm-up took over 1 s" in service.log_text


def test_a_file_changed_after_its_import_is_refused_by_name(serve: Serve) -> None:
    service = serve()
    changed = service.home / "models" / "chat" / "1" / "tokenizer_config.json"
    changed.write_text(changed.read_text() + " ")
    with service.start().wait_live():
        eventually(lambda: failed(service), "the model is failed", 10)
        assert f"{changed} was changed after its import" in service.log_text
        assert not service.has_engine()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown key": (
        {"timeouts": {"drian": 5}},
        "timeouts.drian is not a known key; did you mean drain?",
    ),
    "a model that is not imported": ({"models": {"other": {}}}, "serving models import other"),
    "a version that is not there": (
        {"models": {"chat": {"versions": {"policy": "specific", "numbers": [7]}}}},
        "chat:7 is not in the model store",
    ),
    "an engine that is not installed": ({"engine": {"home": "nowhere"}}, "run `make install`"),
}


@pytest.mark.parametrize(("settings", "sentence"), REFUSED.values(), ids=REFUSED)
def test_the_service_refuses_to_start_with_one_sentence(
    serve: Serve, settings: dict[str, Any], sentence: str
) -> None:
    service = serve(settings=settings).start()
    assert service.wait() != 0
    assert sentence in service.log_text
    assert "serving.yaml" in service.log_text
    assert "Traceback" not in service.log_text
    said = [line for line in service.log_text.splitlines() if "[INFO]" not in line and line.strip()]
    assert len(said) == 1, said


def test_a_log_folder_that_cannot_be_written_fails_the_model_with_its_reason(serve: Serve) -> None:
    settings = {"restarts": {"attempts": 1}}
    service = serve(settings=settings)
    (service.folder / "state").mkdir()
    (service.folder / "state/logs").write_text("a file in the way")
    with service.start().wait_live():
        eventually(lambda: failed(service), "the model is failed", 10)
        assert "the engine could not be started" in service.log_text
        assert "Traceback" not in service.log_text


def test_a_state_folder_that_cannot_be_written_ends_the_start_with_one_sentence(
    serve: Serve,
) -> None:
    service = serve()
    (service.folder / "state").write_text("a file in the way")
    with service.start():
        assert service.wait() != 0
        assert "state/serving.db cannot be used: " in service.log_text
        assert "Traceback" not in service.log_text


def test_a_taken_port_is_told_in_one_sentence(
    serve: Serve, shared: Callable[[str], Service]
) -> None:
    with serve(port=shared("vllm").port).start() as second:
        assert second.wait() != 0
        assert "the port is taken by another program; choose one with --port" in second.log_text
        assert "Traceback" not in second.log_text
