"""A service that wants keys, its commands and real clients."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from live_service import IN_FORCE, PROJECT, Service, chat_body, eventually, let_in_until
from scripted_engine import script
from versions import family_of, kill

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("deadline")]


@pytest.fixture(scope="module")
def service(serve: Callable[..., Service]) -> Service:
    service = serve(settings={"auth": {"mode": "keys"}})
    return service.start().wait_ready()


def serving(service: Service, *words: str, key: str = "") -> subprocess.CompletedProcess[str]:
    """The command as an operator of that service runs it."""
    return subprocess.run(
        [sys.executable, "-m", "serving.cli", *words],
        cwd=PROJECT,
        env={
            **os.environ,
            "SERVING_CONFIG": str(service.config),
            "SERVING_URL": service.url,
            "SERVING_KEY": key,
            "COLUMNS": "200",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def make(service: Service, name: str, *options: str) -> str:
    """A new key, once the service knows it."""
    done = serving(service, "keys", "create", name, *options)
    assert (done.returncode, "shown only now" in done.stderr) == (0, True)
    key = done.stdout.strip()
    eventually(lambda: models(service, key).status_code != 401, "the key is known")
    return key


def models(service: Service, key: str) -> httpx.Response:
    return service.http.get("/v1/models", headers={"authorization": f"Bearer {key}"})


def client(service: Service, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{service.url}/v1", api_key=key, max_retries=0, timeout=20)


def ask(service: Service, key: str, model: str = "chat") -> Any:
    messages: Any = [{"role": "user", "content": "Hello"}]
    return client(service, key).chat.completions.create(model=model, messages=messages)


def test_a_service_without_a_key_says_how_to_make_one(service: Service) -> None:
    assert "nobody has a key yet; make one: serving keys create NAME" in service.log_text


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/embeddings"),
        ("POST", "/v1/responses"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/chat"),
        ("GET", "/admin/status"),
        ("PUT", "/admin/models/chat/labels/canary"),
        ("GET", "/v2"),
        ("POST", "/v2/repository/index"),
    ],
)
def test_nobody_gets_in_without_a_key(service: Service, method: str, path: str) -> None:
    wrong = {"authorization": "Bearer sk-abcdefgh-" + "x" * 43}
    for headers in ({}, wrong):
        reply = service.http.request(method, path, headers=headers, json={})
        assert reply.status_code == 401


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/v2/health/live", "/openapi.json"])
def test_probes_need_no_key(service: Service, path: str) -> None:
    assert service.http.get(path).status_code == 200


def test_a_key_from_its_creation_to_its_end(service: Service) -> None:
    key = make(service, "ann", "--model", "chat", "--expires", "90d")
    assert ask(service, key).choices[0].message.content
    with pytest.raises(openai.PermissionDeniedError, match="not for the model code"):
        ask(service, key, "code")
    key_id = key.split("-")[1]
    listed = serving(service, "keys", "list").stdout
    assert key_id in listed
    assert key.split("-", 2)[2] not in listed
    rotated = serving(service, "keys", "rotate", key_id, "--grace", "1h").stdout.strip()
    eventually(lambda: models(service, rotated).status_code == 200, "the new key is known")
    assert ask(service, key).choices
    assert "is revoked" in serving(service, "keys", "revoke", key_id).stdout
    revoked = time.monotonic()
    assert let_in_until(lambda: models(service, key).is_success) - revoked <= IN_FORCE
    with pytest.raises(openai.AuthenticationError, match="expired or revoked"):
        ask(service, key)
    assert ask(service, rotated).choices


def test_a_key_lists_the_models_it_is_for(service: Service) -> None:
    everything = make(service, "all")
    assert [model.id for model in client(service, everything).models.list()] == ["chat"]
    other = make(service, "bob", "--model", "code")
    assert [model.id for model in client(service, other).models.list()] == []


@pytest.mark.parametrize("key", ["sk-secret\nx-other: y", "sk-schlüssel"])
def test_a_key_that_is_no_header_is_told_and_not_shown(service: Service, key: str) -> None:
    done = serving(service, "status", key=key)
    assert done.returncode == 1
    assert done.stderr == (
        "serving: The key holds what no HTTP header can carry: give it alone, on one line.\n"
    )


def test_operators_need_a_key_for_it_and_are_known_by_its_name(service: Service) -> None:
    inference = make(service, "ann")
    admin = make(service, "ops", "--scope", "admin")
    assert "put it into SERVING_KEY" in serving(service, "status").stderr
    refused = serving(service, "status", key=inference)
    assert (refused.returncode, refused.stderr) == (
        1,
        "serving: This key lacks the scope admin.\n",
    )
    assert "chat:1" in serving(service, "status", key=admin).stdout
    assert serving(service, "labels", "set", "chat", "stable", "1", key=admin).returncode == 0
    assert " ops" in serving(service, "history", key=admin).stdout
    with pytest.raises(openai.PermissionDeniedError):
        ask(service, admin)


def test_no_secret_of_a_key_is_kept_or_logged(service: Service) -> None:
    key = make(service, "ann")
    ask(service, key)
    secret = key.split("-", 2)[2]
    assert secret not in service.log_text
    for file in (service.folder / "state").rglob("*"):
        assert not file.is_file() or secret.encode() not in file.read_bytes()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("create", "ann", "--scope", "root"), "There is no scope root"),
        (("create", "ann", "--expires", "soon"), "--expires: 'soon' is no time"),
        (("revoke", "nokey234"), "There is no key nokey234"),
        (("rotate", "nokey234"), "There is no key nokey234"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    service: Service, words: tuple[str, ...], told: str
) -> None:
    done = serving(service, "keys", *words)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert told in done.stderr


# What was used.


def usage(service: Service, key: str, **query: Any) -> Any:
    headers = {"authorization": f"Bearer {key}"}
    reply = service.http.get("/admin/usage", headers=headers, params=query)
    assert reply.status_code == 200, reply.text
    return reply.json()["usage"]


def test_every_request_is_in_the_ledger_with_its_key_and_its_tokens(service: Service) -> None:
    key, admin = make(service, "ann"), make(service, "ops", "--scope", "admin")
    key_id = key.split("-")[1]
    told = [ask(service, key).usage for _ in range(3)]
    with pytest.raises(openai.NotFoundError):
        ask(service, key, "chat:9\0")
    bearer = {"authorization": f"Bearer {key}"}
    body = chat_body(script(fault="status_500"))
    assert service.http.post("/v1/chat/completions", headers=bearer, json=body).status_code == 502
    prompt = script(tokens=1000, delay_ms=50)
    body = chat_body(prompt, stream=True)
    path = "/v1/chat/completions"
    with service.http.stream("POST", path, headers=bearer, json=body) as stream:
        next(stream.iter_raw())  # and away

    def rows() -> Any:
        found = usage(service, admin, by=["key", "version"])
        return {r["group"]["version"]: r for r in found if r["group"]["key"] == key_id}

    eventually(lambda: rows().get(1, {}).get("requests") == 5, "all are written")
    answered, nowhere = rows()[1], rows()[None]
    assert (answered["failed"], nowhere["requests"]) == (1, 1)
    left = len(prompt.split())  # as the engine counts them
    assert answered["prompt_tokens"] == left + sum(usage.prompt_tokens for usage in told)
    came = answered["completion_tokens"] - sum(usage.completion_tokens for usage in told)
    assert 1 <= came < 100


def test_usage_as_a_table_as_csv_and_as_json(service: Service) -> None:
    key = make(service, "ann")
    ask(service, key)
    key_id = key.split("-")[1]
    eventually(lambda: key_id in serving(service, "usage").stdout, "it is written")
    (line,) = (
        line
        for line in serving(service, "usage", "--by", "key,model", "--format", "csv").stdout.split()
        if line.startswith(key_id)
    )
    assert line.split(",")[:4] == [key_id, "chat", "1", "0"]
    rows = json.loads(serving(service, "usage", "--by", "key", "--format", "json").stdout)
    assert any(row["group"] == {"key": key_id} for row in rows)
    wrong = serving(service, "usage", "--by", "colour")
    assert wrong.stderr.startswith("serving: --by: there is no 'colour'; there are key, model")


def test_a_query_that_makes_no_sense_is_refused_by_name(service: Service) -> None:
    headers = {"authorization": f"Bearer {make(service, 'ops', '--scope', 'admin')}"}
    for query, named in (("by=colour", "by"), ("since=x", "since"), ("bay=key", "bay")):
        reply = service.http.get(f"/admin/usage?{query}", headers=headers)
        assert reply.status_code == 400
        assert reply.json()["error"]["param"].startswith(named)


def test_strict_rows_survive_a_kill_at_once(serve: Callable[..., Service]) -> None:
    service = serve(settings={"ledger": {"durability": "strict", "flush": 1000}})
    service.start().wait_ready()
    for _ in range(3):
        with service.stream("Hello") as stream:
            assert stream.rest()[-1].data == "[DONE]"
    kill(family_of(service))
    rows = json.loads(serving(service, "usage", "--by", "model", "--format", "json").stdout)
    assert [(row["group"], row["requests"]) for row in rows] == [({"model": "chat"}, 3)]


def test_a_stop_writes_what_waits(serve: Callable[..., Service]) -> None:
    service = serve(settings={"ledger": {"flush": 1000}}).start().wait_ready()
    assert service.chat("Hello").status_code == 200
    service.stop()
    assert "chat" in serving(service, "usage", "--by", "model").stdout
