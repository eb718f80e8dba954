"""A stop lets running answers finish, refuses new ones, and then tells the server."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest
from gateway_client import settings

from serving.contract.errors import ApiError
from serving.runtime import shutdown as module
from serving.runtime.shutdown import Shutdown


class Server:
    """What is told of the signals after the stop: the handlers uvicorn has installed."""

    def __init__(self) -> None:
        self.heard: list[int] = []
        self.stopped = asyncio.Event()

    def handle(self, number: int, _: object) -> None:
        self.heard.append(number)
        self.stopped.set()

    async def hears(self) -> list[int]:
        async with asyncio.timeout(10):
            await self.stopped.wait()
        return self.heard


@pytest.fixture(autouse=True)
def _worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a worker of `bentoml serve`, with this process's own handlers back at the end."""
    monkeypatch.setenv("BENTOML_RUNNER_MAP", "{}")
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def installed(limit: float) -> tuple[Shutdown, Server]:
    server = Server()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, server.handle)
    shutdown = Shutdown(settings(drain=limit))
    shutdown.install()
    return shutdown, server


def kill(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


async def until_started(shutdown: Shutdown) -> None:
    async with asyncio.timeout(10):
        while not shutdown.started:
            await asyncio.sleep(0.001)


class Request:
    """A request that runs until it is released, in a task of its own as in the server."""

    def __init__(self, shutdown: Shutdown) -> None:
        self.release = asyncio.Event()
        self.cut = False
        self._shutdown = shutdown
        self.task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        try:
            with self._shutdown.request():
                await self.release.wait()
        except asyncio.CancelledError:
            self.cut = True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_without_requests_the_server_hears_of_the_stop_at_once(number: int) -> None:
    shutdown, server = installed(limit=60)
    assert not shutdown.started
    kill(number)
    assert await server.hears() == [number]
    assert shutdown.started


async def test_the_server_hears_of_the_stop_only_when_the_last_answer_is_finished() -> None:
    shutdown, server = installed(limit=60)
    first, second = Request(shutdown), Request(shutdown)
    await asyncio.sleep(0)
    kill()
    await until_started(shutdown)
    first.release.set()
    await first.task
    assert server.heard == []
    second.release.set()
    assert await server.hears() == [signal.SIGTERM]
    assert not first.cut
    assert not second.cut


async def test_a_request_after_the_stop_has_begun_is_sent_elsewhere() -> None:
    shutdown, server = installed(limit=60)
    running = Request(shutdown)
    await asyncio.sleep(0)
    kill()
    await until_started(shutdown)
    with pytest.raises(ApiError) as caught, shutdown.request():
        pytest.fail("it was taken")
    assert (caught.value.status, caught.value.code) == (503, "shutting_down")
    assert "retry-after" in caught.value.headers
    running.release.set()
    await server.hears()


async def test_answers_that_outlast_the_limit_are_cut_off() -> None:
    shutdown, server = installed(limit=0.05)
    request = Request(shutdown)
    await asyncio.sleep(0)
    kill()
    assert await server.hears() == [signal.SIGTERM]
    await request.task
    assert request.cut
    assert shutdown.cutting


async def test_a_cut_request_may_still_say_its_last_words() -> None:
    shutdown, server = installed(limit=0.001)
    said = asyncio.Event()

    async def run() -> None:
        with shutdown.request():
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await asyncio.sleep(0.05)  # the error event on its way to a slow client
                assert server.heard == []
                said.set()

    task = asyncio.ensure_future(run())
    await asyncio.sleep(0)
    kill()
    await server.hears()
    assert said.is_set()
    await task


async def test_a_request_that_will_not_end_does_not_keep_the_service_alive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "LAST_WORDS", 0.05)
    shutdown, server = installed(limit=0.001)
    release = asyncio.Event()

    async def run() -> None:
        with shutdown.request():
            while not release.is_set():
                try:
                    await release.wait()
                except asyncio.CancelledError:
                    continue

    task = asyncio.ensure_future(run())
    await asyncio.sleep(0)
    kill()
    assert await server.hears() == [signal.SIGTERM]
    release.set()
    await task


async def test_a_second_sigterm_changes_nothing() -> None:
    shutdown, server = installed(limit=600)
    request = Request(shutdown)
    await asyncio.sleep(0)
    kill()
    await until_started(shutdown)
    kill()
    await asyncio.sleep(0.01)  # time for a wrong reaction
    request.release.set()
    assert await server.hears() == [signal.SIGTERM]
    assert not request.cut


async def test_the_death_of_the_parent_is_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PARENT_CHECK", 0.001)
    _, server = installed(limit=60)
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert await server.hears() == [signal.SIGTERM]


async def test_under_another_host_the_signals_stay_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("BENTOML_RUNNER_MAP")
    _, server = installed(limit=60)
    assert signal.getsignal(signal.SIGTERM) == server.handle
