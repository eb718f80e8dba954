"""Tokens agree to the token, in all that counts them: the engine, the replies, the ledger, the sums
of `serving usage`, the limits.

What an answer that was cut short has taken is a matter of definition, for its engine may have
generated more than anybody read: it is what the engine's last event that reached the gateway says.
So that both sides know that number, the scripted engine generates nothing more once a fault has
struck after so many tokens, and its clients leave only when they have read all of them.

Of an answer that its engine never began, because it refused or failed before its first token,
nothing is counted.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from commands import command
from lean_client import LeanClient, Told
from live_service import TIMEOUTS, Service, eventually
from scripted_engine import script
from versions import stats_of

from serving.contract.completions import CompletionRequest
from serving.gateway.limits import prompt_estimate
from serving.runtime.store import ModelStore

pytestmark = pytest.mark.integration

WORKERS = 40
#: More than there are workers: those who leave go on before the service has noticed.
CONCURRENT = 200
DAY = 86400
PER_DAY = 50_000_000
PATHS = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "embeddings": "/v1/embeddings",
}
_WORD = re.compile(rb'" ?w\d+"')
#: Prompt, completion and reasoning tokens.
Tokens = tuple[int, int, int]


@dataclass
class Case:
    """One request and how it must end. `words` are those it is left after, if it is."""

    name: str
    path: str
    body: dict[str, Any]
    status: int = 200
    key: str = "ann"
    words: int | None = None
    told: Told | None = None

    def leaves(self, body: bytes) -> bool:
        return self.words is not None and len(_WORD.findall(body)) >= self.words

    @property
    def usage(self) -> Tokens | None:
        """What the reply says it took; None when it says nothing."""
        assert self.told is not None
        if self.told.status != 200 or self.told.left:
            return None
        replies = self.told.events if self.body.get("stream") else [json.loads(self.told.body)]
        said = [reply.get("response", reply) for reply in replies if reply != "[DONE]"]
        usage = next((reply["usage"] for reply in reversed(said) if reply.get("usage")), None)
        if usage is None:
            return None
        if "input_tokens" in usage:
            reasoned = usage["output_tokens_details"]["reasoning_tokens"]
            return usage["input_tokens"], usage["output_tokens"], reasoned
        details = usage.get("completion_tokens_details", {"reasoning_tokens": 0})
        return (
            usage["prompt_tokens"],
            usage.get("completion_tokens", 0),
            details["reasoning_tokens"],
        )


#: Kind of request: of a hundred, how many.
MIX: dict[str, int] = {
    **{"chat": 38, "completions": 20, "responses": 5, "embeddings": 10},
    **{"left": 10, "error_event": 3, "reset": 2, "garbage": 2, "no_end": 2, "stall": 1},
    **{"status_500": 2, "refused": 3, "too_long": 2},
}
#: The faults of an engine in the middle of an answer, and what a client is told that waits for all.
BROKEN = {"error_event": 502, "reset": 502, "garbage": 502, "no_end": 502, "stall": 504}


def make_cases(count: int, seed: int) -> list[Case]:
    chance = random.Random(seed)
    kinds = chance.choices(list(MIX), list(MIX.values()), k=count)
    return [_case(f"r{at}", kind, chance) for at, kind in enumerate(kinds)]


def _case(name: str, kind: str, chance: random.Random) -> Case:
    told: dict[str, Any] = {"name": name, "tokens": chance.randint(1, 12)}
    path = kind if kind in PATHS else chance.choice(["chat", "completions"])
    fields: dict[str, Any] = {"stream": chance.random() < 0.6}
    case = Case(name, path, fields)
    if kind == "embeddings":
        texts = [script(**told), *["a b c"] * chance.randint(0, 3)]
        case.body = {"model": "embed", "input": texts}
        return case
    if path != "responses" and chance.random() < 0.2:
        fields["n"] = chance.randint(2, 3)
    if path == "chat" and chance.random() < 0.2:
        told["thoughts"] = chance.randint(1, 4)
    if kind == "chat" and chance.random() < 0.2:
        fields["max_tokens"] = chance.randint(1, 12)
    if kind == "left" or kind in BROKEN:
        after = chance.randint(1, 8)
        told |= {"tokens": 20, "after": after, "thoughts": 0, "fault": kind}
        if kind == "left":
            told["fault"], fields["stream"] = "stall", True
            case.words, case.status = after * fields.get("n", 1), 499
        else:
            case.status = BROKEN[kind]
    elif kind == "status_500":
        told["fault"], case.status = kind, 502
    elif kind == "too_long":
        fields["max_tokens"], case.status = 9999, 400
    elif kind == "refused":
        case.key, case.status = "poor", 429
    if fields["stream"] and path != "responses" and chance.random() < 0.5:
        fields["stream_options"] = {"include_usage": True}
    prompt = script(**told)
    asked: dict[str, dict[str, Any]] = {
        "chat": {"messages": [{"role": "user", "content": prompt}]},
        "responses": {"input": prompt},
    }
    case.body = {"model": "chat", **fields, **asked.get(path, {"prompt": prompt})}
    return case


@dataclass
class Metered:
    """A service that wants keys, with a chat model and an embedding model, and its keys."""

    service: Service
    keys: dict[str, str] = field(default_factory=dict)

    def make_key(self, name: str, *options: str) -> None:
        done = command(self.service, "keys", "create", name, *options)
        assert done.returncode == 0, done.stderr
        self.keys[name] = done.stdout.strip()
        headers = self.bearer(name)
        ask = self.service.http.get
        eventually(lambda: ask("/v1/models", headers=headers).status_code != 401, "it is known")

    def bearer(self, name: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self.keys[name]}"}

    async def run(self, cases: list[Case]) -> None:
        waiting = iter(cases)

        async def work() -> None:
            client = LeanClient(self.service.port)
            for case in waiting:
                headers = {**self.bearer(case.key), "x-request-id": case.name}
                case.told = await client.post(PATHS[case.path], case.body, headers, case.leaves)
            client.close()

        async with asyncio.timeout(240), asyncio.TaskGroup() as workers:
            for _ in range(WORKERS):
                workers.create_task(work())

    @property
    def engine_tokens(self) -> dict[str, Tokens]:
        """What the engines generated, by the request's name."""
        engines = [stats_of(self.service, 1, model) for model in ("chat", "embed")]
        return {
            name: (counted[0], counted[1], counted[2])
            for stats in engines
            for name, counted in stats["counted"].items()
        }

    def rows(self) -> list[tuple[str, int, Tokens]]:
        """The ledger's, each with its request and status."""
        query = (
            "SELECT request, status, prompt_tokens, completion_tokens, reasoning_tokens FROM usage"
        )
        with closing(sqlite3.connect(self.service.folder / "state" / "serving.db")) as database:
            return [(row[0], row[1], row[2:]) for row in database.execute(query)]

    def sums(self) -> dict[tuple[str, str], Tokens]:
        """By key and model, as an operator reads them."""
        done = command(self.service, "usage", "--by", "key,model", "--format", "json")
        assert done.returncode == 0, done.stderr
        return {
            (row["group"]["key"], row["group"]["model"]): (
                row["prompt_tokens"],
                row["completion_tokens"],
                row["reasoning_tokens"],
            )
            for row in json.loads(done.stdout)
        }

    def busy(self) -> int:
        return sum(int(stats_of(self.service, 1, m)["in_flight"]) for m in ("chat", "embed"))

    def asks_for(self, key: str, tokens: int) -> int:
        """The status of a request whose reservation is exactly so many tokens. One that the limits
        let in is refused by the engine, for its context is much smaller: nothing is used."""
        body = {"model": "chat", "prompt": "Hello", "max_tokens": 1}
        body["max_tokens"] = tokens - prompt_estimate(CompletionRequest.model_validate(body))
        reply = self.service.http.post("/v1/completions", headers=self.bearer(key), json=body)
        return reply.status_code


def added(counts: Iterable[Tokens]) -> Tokens:
    prompt, completion, reasoning = map(sum, zip(*counts, strict=True))
    return prompt, completion, reasoning


@pytest.fixture
def metered(
    serve: Callable[..., Service],
    model_template: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Metered:
    left = DAY - time.time() % DAY
    if left < 180:  # tokens per day are looked at in the end, and must be the same day's
        time.sleep(left)
    settings = {
        "auth": {"mode": "keys"},
        "models": {"chat": {"limits": {"tokens_per_day": 2 * PER_DAY}}, "embed": {}},
        "timeouts": {**TIMEOUTS, "first_token": 20},
    }
    service = serve(engine=request.param, settings=settings)
    ModelStore(service.home).add("embed", model_template, "a test", task="embed")
    monkeypatch.setenv("SERVING_CONFIG", str(service.config))
    made = Metered(service.start().wait_ready())
    made.make_key("ann", "--tokens-per-day", str(PER_DAY), "--concurrent", str(CONCURRENT))
    made.make_key("poor", "--tokens-per-day", "1")
    made.make_key("other")
    return made


@pytest.mark.parametrize(
    ("metered", "count"), [("vllm", 10_000), ("sglang", 2_000)], indirect=["metered"]
)
def test_all_that_counts_tokens_agrees_to_the_token(metered: Metered, count: int) -> None:
    cases = make_cases(count, seed=5)
    asyncio.run(metered.run(cases))
    eventually(lambda: metered.busy() == 0, "the engines have nothing to do")
    eventually(lambda: len(metered.rows()) >= count, "the ledger is written")

    ended = Counter((case.status, case.told is not None and case.told.left) for case in cases)
    assert {status for status, _ in ended} == {200, 400, 429, 499, 502, 504}
    for case in cases:
        assert case.told is not None
        assert case.told.left == (case.words is not None), case
        if not case.body.get("stream") and not case.told.left:
            assert case.told.status == case.status, case

    engine, rows = metered.engine_tokens, metered.rows()
    assert sorted(name for name, _, _ in rows) == sorted(case.name for case in cases)
    expected = {case.name: (case.status, engine.get(case.name, (0, 0, 0))) for case in cases}
    assert {name: (status, tokens) for name, status, tokens in rows} == expected
    for case in cases:
        if case.usage is not None:
            assert case.usage == engine[case.name], case

    models = {case.name: case.body["model"] for case in cases}
    chat = added(tokens for name, tokens in engine.items() if models[name] == "chat")
    embed = added(tokens for name, tokens in engine.items() if models[name] == "embed")
    assert min(chat) > 0 and embed[0] > 0
    ann, poor = (metered.keys[name].split("-")[1] for name in ("ann", "poor"))
    assert metered.sums() == {
        (ann, "chat"): chat,
        (ann, "embed"): embed,
        (poor, "chat"): (0, 0, 0),
    }

    # The counters of the limits, by what is still let in.
    used_by_chat, used = sum(chat[:2]), sum(chat[:2]) + sum(embed[:2])
    assert metered.asks_for("ann", PER_DAY - used + 1) == 429
    assert metered.asks_for("ann", PER_DAY - used) == 400
    assert metered.asks_for("other", 2 * PER_DAY - used_by_chat + 1) == 429
    assert metered.asks_for("other", 2 * PER_DAY - used_by_chat) == 400

    # Every slot is free: as many as there are get in at once.
    prompt = script(tokens=5, after=1, fault="stall")
    body = {"model": "chat", "prompt": prompt, "stream": True}
    crowd = [Case("again", "completions", body, words=1) for _ in range(CONCURRENT)]

    async def all_at_once() -> None:
        clients = [LeanClient(metered.service.port) for _ in crowd]
        inside = 0

        def let_in(case: Case, part: bytes) -> bool:
            """Leaves once all of them are in."""
            nonlocal inside
            if case.words and case.leaves(part):
                inside, case.words = inside + 1, 0
            return inside == CONCURRENT

        async def ask(client: LeanClient, case: Case) -> None:
            case.told = await client.post(
                PATHS["completions"], case.body, metered.bearer("ann"), lambda b: let_in(case, b)
            )

        async with asyncio.timeout(60):
            await asyncio.gather(*map(ask, clients, crowd))

    asyncio.run(all_at_once())
    assert {case.told.status for case in crowd if case.told} == {200}
    eventually(lambda: metered.busy() == 0, "the engines have nothing to do")
