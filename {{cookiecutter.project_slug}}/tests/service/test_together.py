"""Two replicas of the service, with one PostgreSQL and one Redis, which may go away."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import postgres as postgres_module
import pytest
import redis_server
from commands import command
from live_service import IN_FORCE, Service, chat_body, eventually, let_in_until
from scripted_engine import script
from versions import family_of, kill, stats_of

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("deadline")]

DATABASE_VARIABLE, REDIS_VARIABLE = "TOGETHER_DATABASE", "TOGETHER_REDIS"
#: Seconds that no request may take here, whatever is away. They take a tenth of one.
TOO_LONG = 10


def settings(durability: str = "batched", on_failure: str = "open") -> dict[str, Any]:
    return {
        "auth": {"mode": "keys"},
        "database": {"url_env": DATABASE_VARIABLE},
        "limits": {"redis_env": REDIS_VARIABLE, "on_failure": on_failure},
        "ledger": {"durability": durability, "flush": 0.1},
    }


@pytest.fixture(scope="module")
def redis() -> Iterator[redis_server.Server]:
    with redis_server.server() as server:
        yield server


@pytest.fixture(scope="module")
def environment(
    postgres: postgres_module.Server, redis: redis_server.Server
) -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(DATABASE_VARIABLE, postgres.make("together"))
        patch.setenv(REDIS_VARIABLE, redis.url)
        yield patch


@pytest.fixture(scope="module")
def pair(serve: Callable[..., Service], environment: pytest.MonkeyPatch) -> tuple[Service, Service]:
    """The second one keeps its ledger strictly."""
    one, two = serve(settings=settings()), serve(settings=settings("strict"))
    one.start()
    two.start()
    return one.wait_ready(60), two.wait_ready(60)


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def knows(service: Service, key: str) -> bool:
    return service.http.get("/v1/models", headers=bearer(key)).status_code == 200


def make(pair: tuple[Service, ...], *options: str) -> str:
    """A key, once all know it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SERVING_CONFIG", str(pair[0].config))
        done = command(pair[0], "keys", "create", "ann", *options)
    assert done.returncode == 0, done.stderr
    key = done.stdout.strip()
    path = "/admin/usage?by=key" if "admin" in options else "/v1/models"

    def known() -> bool:
        return all(s.http.get(path, headers=bearer(key)).status_code == 200 for s in pair)

    eventually(known, "the key is known")
    return key


class Crowd:
    """Clients of both services, all with one key. `met` counts replies by their status, `codes`
    errors by their code."""

    def __init__(self, pair: tuple[Service, ...], key: str) -> None:
        self.met: Counter[int] = Counter()
        self.codes: Counter[str] = Counter()
        self.slowest = 0.0
        self._pair = pair
        self._key = key

    async def ask(self, client: httpx.AsyncClient, **fields: Any) -> None:
        began = time.monotonic()
        reply = await client.post("/v1/chat/completions", json=chat_body(script(**fields)))
        self.slowest = max(self.slowest, time.monotonic() - began)
        self.met[reply.status_code] += 1
        if reply.status_code != 200:
            self.codes[reply.json()["error"]["code"]] += 1
            assert int(reply.headers["retry-after"]) > 0

    async def ask_all(self, count: int, **fields: Any) -> None:
        """Each of them `count` times, at once."""
        async with self._clients() as clients:
            await asyncio.gather(
                *(self.ask(client, **fields) for client in clients for _ in range(count))
            )

    async def ask_on(self, workers: int, meanwhile: Callable[[], None], **fields: Any) -> None:
        """So many clients of each, one request after the other, until `meanwhile` is over."""
        over = False

        async def work(client: httpx.AsyncClient) -> None:
            while not over:
                await self.ask(client, **fields)
                await asyncio.sleep(0.02)

        async with self._clients() as clients:
            tasks = [asyncio.ensure_future(work(c)) for c in clients for _ in range(workers)]
            await asyncio.to_thread(meanwhile)
            over = True
            await asyncio.gather(*tasks)

    @contextlib.asynccontextmanager
    async def _clients(self) -> AsyncIterator[list[httpx.AsyncClient]]:
        limits = httpx.Limits(max_connections=None)
        async with contextlib.AsyncExitStack() as stack:
            yield [
                await stack.enter_async_context(
                    httpx.AsyncClient(
                        base_url=service.url, headers=bearer(self._key), limits=limits, timeout=30
                    )
                )
                for service in self._pair
            ]


def most_at_once(pair: tuple[Service, ...], since: float) -> int:
    """In all engines together."""
    steps = []
    for service in pair:
        for began, ended in stats_of(service, 1)["spans"]:
            if began > since:
                steps += [(began, 1), (ended, -1)]
    now = most = 0
    for _, step in sorted(steps):
        now += step
        most = max(most, now)
    return most


def used(service: Service, admin: str, key: str) -> dict[str, int]:
    """What the ledger has of a key."""
    reply = service.http.get("/admin/usage", headers=bearer(admin), params={"by": "key"})
    assert reply.status_code == 200, reply.text
    key_id = key.split("-")[1]
    rows = [row for row in reply.json()["usage"] if row["group"]["key"] == key_id]
    return rows[0] if rows else {"requests": 0}


def test_a_key_limited_to_10_has_no_more_in_both_engines_together(
    pair: tuple[Service, Service],
) -> None:
    key = make(pair, "--concurrent", "10")
    since = time.monotonic()
    crowd = Crowd(pair, key)
    asyncio.run(crowd.ask_all(50, tokens=20, delay_ms=30))
    asyncio.run(crowd.ask_on(10, lambda: time.sleep(2), tokens=3, delay_ms=10))
    assert crowd.met == {200: crowd.met[200], 429: crowd.met[429]}
    assert crowd.met[200] >= 10
    assert crowd.met[429] >= 50
    assert 5 <= most_at_once(pair, since) <= 10


def test_tokens_are_of_both_together(pair: tuple[Service, Service]) -> None:
    key, admin = make(pair, "--tokens-per-day", "2000"), make(pair, "--scope", "admin")
    crowds = [Crowd((service,), key) for service in pair]
    while not all(crowd.met[429] for crowd in crowds):
        for crowd in crowds:
            asyncio.run(crowd.ask_all(1, tokens=100))
    assert {*crowds[0].codes, *crowds[1].codes} == {"rate_limit_exceeded"}
    assert all(crowd.met[200] > 2 for crowd in crowds)
    total = sum(crowd.met.total() for crowd in crowds)
    eventually(lambda: used(pair[0], admin, key)["requests"] == total, "all is in the ledger")
    row = used(pair[0], admin, key)
    # One more would have taken the 512 that are assumed of an answer.
    assert 2000 - 600 < row["prompt_tokens"] + row["completion_tokens"] <= 2000
    assert used(pair[1], admin, key) == row


def test_a_key_revoked_at_one_is_refused_at_the_other(pair: tuple[Service, Service]) -> None:
    key = make(pair)
    one, two = pair
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SERVING_CONFIG", str(one.config))
        done = command(one, "keys", "revoke", key.split("-")[1])
    revoked = time.monotonic()
    assert done.returncode == 0, done.stderr
    assert let_in_until(lambda: knows(two, key)) - revoked <= IN_FORCE


def said(pair: tuple[Service, ...], words: str) -> list[int]:
    """How often each has, in its log."""
    return [service.log_text.count(words) for service in pair]


def away_and_back(pair: tuple[Service, Service], redis: redis_server.Server) -> None:
    """Redis is killed, is known to be away, and is back. Each says so once."""
    away, back = "cannot be used", "limits are shared again"
    once_more_away = [count + 1 for count in said(pair, away)]
    once_more_back = [count + 1 for count in said(pair, back)]
    time.sleep(0.5)
    redis.stop()
    try:
        eventually(lambda: said(pair, away) == once_more_away, "it is known to be away")
        time.sleep(0.5)
    finally:
        redis.start()
    eventually(lambda: said(pair, back) == once_more_back, "it is known to be back")
    time.sleep(0.5)
    assert (said(pair, away), said(pair, back)) == (once_more_away, once_more_back)


def test_redis_away_in_the_midst_of_it_open(
    pair: tuple[Service, Service], redis: redis_server.Server
) -> None:
    key = make(pair, "--concurrent", "10")
    crowd = Crowd(pair, key)
    asyncio.run(crowd.ask_on(8, lambda: away_and_back(pair, redis), tokens=5, delay_ms=20))
    assert crowd.met == {200: crowd.met[200], 429: crowd.met[429]}
    assert crowd.slowest < TOO_LONG
    since = time.monotonic()
    asyncio.run(crowd.ask_all(20, tokens=10, delay_ms=30))
    assert 5 <= most_at_once(pair, since) <= 10
    for service in pair:
        assert redis_server.PASSWORD not in service.log_text


def test_redis_away_in_the_midst_of_it_closed(
    pair: tuple[Service, Service], redis: redis_server.Server
) -> None:
    key, free = make(pair, "--concurrent", "10"), make(pair)
    one, two = pair
    try:
        one.write_settings(settings(on_failure="closed"))
        two.write_settings(settings("strict", on_failure="closed"))
        line = "serving.yaml: in force now: limits.on_failure"
        eventually(lambda: all(said(pair, line)), "it is taken over")
        crowd, others = Crowd(pair, key), Crowd(pair, free)

        async def both() -> None:
            await asyncio.gather(
                crowd.ask_on(4, lambda: away_and_back(pair, redis), tokens=5, delay_ms=20),
                others.ask_on(1, lambda: time.sleep(1), tokens=5, delay_ms=20),
            )

        asyncio.run(both())
        assert set(crowd.met) == {200, 503}
        assert crowd.codes == {"limits_unavailable": crowd.met[503]}
        assert set(others.met) == {200}  # who has no limits does not need to be counted
        assert max(crowd.slowest, others.slowest) < TOO_LONG
        again = Crowd(pair, key)
        asyncio.run(again.ask_all(2))
        assert again.met == {200: 4}
    finally:
        one.write_settings(settings())
        two.write_settings(settings("strict"))


def test_postgresql_away_in_the_midst_of_it(
    pair: tuple[Service, Service], postgres: postgres_module.Server
) -> None:
    key, admin = make(pair), make(pair, "--scope", "admin")
    crowd = Crowd(pair, key)
    spools = [service.folder / "state" / "ledger.spool" for service in pair]

    def go() -> None:
        time.sleep(0.5)
        postgres.stop()
        try:
            eventually(spools[1].exists, "the strict one keeps its rows in its spool")
            time.sleep(1)
        finally:
            postgres.start()
        eventually(lambda: not spools[1].exists(), "the spool is empty again")
        time.sleep(0.5)

    asyncio.run(crowd.ask_on(4, go, tokens=5, delay_ms=20))
    assert set(crowd.met) == {200}
    assert crowd.slowest < TOO_LONG
    total = crowd.met.total()
    eventually(
        lambda: all(used(service, admin, key)["requests"] == total for service in pair),
        f"all {total} are in the ledger",
    )
    assert not any(spool.exists() for spool in spools)
    assert "the ledger lost" not in pair[0].log_text + pair[1].log_text


def test_slots_of_a_killed_service_come_back(
    serve: Callable[..., Service], pair: tuple[Service, Service], redis: redis_server.Server
) -> None:
    key = make(pair, "--concurrent", "3")
    name = f"{{serving/test-service}}/key {key.split('-')[1]}/running"
    killed = serve(settings=settings()).start().wait_ready(60)
    eventually(lambda: knows(killed, key), "the key is known")
    body = chat_body(script(tokens=10_000, delay_ms=100), stream=True)

    def leases() -> dict[str, float]:
        with redis.client() as client:
            return dict(client.zrange(name, 0, -1, withscores=True))

    with contextlib.ExitStack() as stack:
        for _ in range(3):
            http = stack.enter_context(httpx.Client(base_url=killed.url, timeout=30))
            path = "/v1/chat/completions"
            reply = stack.enter_context(http.stream("POST", path, headers=bearer(key), json=body))
            assert reply.status_code == 200
        first = leases()
        assert len(first) == 3
        crowd = Crowd(pair, key)
        asyncio.run(crowd.ask_all(1))
        assert crowd.met == {429: 2}
        eventually(
            lambda: all(end > first[slot] for slot, end in leases().items()), "all are renewed"
        )
        kill(family_of(killed))
    left = leases()
    assert left.keys() == first.keys()
    with redis.client() as client:
        seconds, _ = client.time()
        assert all(0 < end / 1000 - seconds <= 31 for end in left.values())
        # As if that time had passed. Nobody is left to renew them.
        client.zadd(name, dict.fromkeys(left, seconds * 1000 - 1), xx=True)
    again = Crowd(pair, key)
    asyncio.run(again.ask_all(1))
    assert again.met == {200: 2}
    eventually(lambda: not leases(), "all slots are free")
