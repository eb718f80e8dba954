"""One running engine that serves one version: from process start to warm, to drained, to gone."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import itertools
import logging
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from serving.contract.errors import ApiError
from serving.engines import create_engine
from serving.engines.base import Launch, LocalEngine
from serving.engines.openai_compatible import OpenAICompatible
from serving.runtime.devices import Gpu, environment
from serving.runtime.process import EngineProcess, Exit
from serving.runtime.store import Version
from serving.runtime.warmup import WarmupClient, WarmupFailed, load_hook, warm_up
from serving.runtime.wire import EngineGone, Wire
from serving.settings import Settings

log = logging.getLogger("bentoml.serving")

HOST = "127.0.0.1"
HEALTH_EVERY = 1.0  # seconds
#: Health checks from one look at the engine's metrics to the next: making them takes it 10 ms.
FIGURES_EVERY = 5
#: Silent health checks in a row after which a replica counts as hung.
HEALTH_STRIKES = 3


class State(enum.StrEnum):
    UNAVAILABLE = "unavailable"
    LOADING = "loading"
    WARMING = "warming"
    READY = "ready"
    ASLEEP = "asleep"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"


class ReplicaDied(Exception):
    """The replica did not become ready, or stopped being so. The message says why."""


class Replica:
    """A replica of `version`, the one of that `index`. Used once: a restart makes a new one.

    `in_flight` counts the requests it is answering now; `figures` are what the engine tells of
    itself, see `engines.metrics`; `gpus` the devices it was given, none when that is not known.
    """

    def __init__(
        self,
        settings: Settings,
        version: Version,
        hooks: Path,
        index: int = 0,
        gpus: Sequence[Gpu] = (),
    ) -> None:
        self.version = version
        self.index = index
        self.gpus = list(gpus)
        section = settings.engine_of(version.name, version.number)
        self.engine = create_engine(section, version.path, version.task)
        self.state = State.UNAVAILABLE
        self.in_flight = 0
        self.figures: dict[str, float] = {}
        self.wire = Wire(HOST, 0, {})
        self._settings = settings
        self._hooks = hooks
        self._process: EngineProcess | None = None
        self._folder: Path | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def start(self, changed: Callable[[], None] = lambda: None) -> None:
        """Start the process, wait until it is healthy, warm it up; `changed` is called between.
        Raises `ReplicaDied`."""
        began = time.monotonic()
        self.state = State.LOADING
        await self._launch()
        await self._until_healthy()
        healthy = time.monotonic()
        model = self._settings.models[self.version.name]
        if model.load == "prewarm":
            self.state = State.WARMING
            changed()
            await self._warm_up()
        self.state = State.READY
        log.info(
            "%s is ready on %s, process %s (engine healthy after %.1f s, warm-up %.1f s)",
            self.version.tag,
            self.engine.name,
            self.pid,
            healthy - began,
            time.monotonic() - healthy,
        )

    async def sleep(self) -> None:
        """Gives the device up. It must answer nothing now. Raises `ReplicaDied` when it cannot."""
        assert isinstance(self.engine, LocalEngine) and self.engine.sleep is not None
        self.state = State.ASLEEP
        await self._order(self.engine.sleep.down)

    async def wake(self, changed: Callable[[], None]) -> None:
        """Takes the device back, and is warmed up: what its cache held is gone. Raises
        `ReplicaDied`."""
        assert isinstance(self.engine, LocalEngine) and self.engine.sleep is not None
        self.state = State.LOADING
        changed()
        await self._order(self.engine.sleep.up)
        if self._settings.models[self.version.name].load == "prewarm":
            self.state = State.WARMING
            changed()
            await self._warm_up()
        self.state = State.READY

    async def _order(self, path: str) -> None:
        timeout = self._settings.timeouts.start
        try:
            status, _ = await self.wire.post(path, b"{}", timeout=timeout)
        except (ApiError, EngineGone, TimeoutError) as error:
            raise ReplicaDied(f"{path} failed: {error or type(error).__name__}") from None
        if status != 200:
            raise ReplicaDied(f"{path} was answered with {status}; see {self._evidence}")

    async def until_dead(self) -> str:
        """Returns why, once the engine is gone, says that it is unwell, or hangs."""
        strikes = 0
        exited = self._exited
        for round_number in itertools.count():
            await asyncio.wait({exited}, timeout=HEALTH_EVERY)
            if exited.done():
                break
            try:
                status, _ = await self.wire.get(
                    self.engine.health_path, timeout=self._settings.timeouts.health
                )
            except ApiError:
                continue  # out of sockets: that is us, not the engine
            except (EngineGone, TimeoutError):
                strikes += 1  # it may be about to exit, which says more: wait for that
            else:
                if status != 200:
                    return f"its health check answers {status}"
                strikes = 0
                if round_number % FIGURES_EVERY == 0:
                    await self._read_figures()
            if strikes >= HEALTH_STRIKES:
                return f"it did not answer {strikes} health checks in a row"
        return f"the engine ended by itself: {exited.result()}"

    async def _read_figures(self) -> None:
        if self.engine.gauges is None:
            return
        with contextlib.suppress(ApiError, EngineGone, TimeoutError, ValueError):
            timeout = self._settings.timeouts.health
            status, body = await self.wire.get("/metrics", timeout=timeout)
            if status == 200:
                self.figures = self.engine.gauges.read(body.decode("utf-8", "replace"))

    async def stop(self) -> None:
        """Ends the engine, gently first. Requests still running on it break."""
        self.state = State.STOPPED
        self.wire.close()
        if self._process is not None:
            await self._process.stop()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    async def _launch(self) -> None:
        if isinstance(self.engine, OpenAICompatible):
            key = self.engine.key
            headers = {"authorization": f"Bearer {key}"} if key else {}
            self.wire = Wire(self.engine.host, self.engine.port, headers, tls=self.engine.tls)
        elif isinstance(self.engine, LocalEngine):
            await self._launch_process(self.engine)

    async def _launch_process(self, engine: LocalEngine) -> None:
        if not os.access(engine.program, os.X_OK):
            raise ReplicaDied(not_installed(engine.name, engine.program))
        try:
            self._folder = Path(tempfile.mkdtemp(prefix="serving-"))
            sleeps = self._settings.models[self.version.name].swap == "sleep"
            launch = Launch(HOST, _free_port(), secrets.token_hex(32), self._folder, sleeps)
            headers = {"authorization": f"Bearer {launch.key}"} if engine.takes_key else {}
            self.wire = Wire(HOST, launch.port, headers)
            engine.prepare(launch)
            self._process = await EngineProcess.start(
                engine.command(launch),
                {**engine.environment(launch), **environment(self.gpus)},
                log=self.log_file,
                secret=launch.key,
                # Engines log each of our health checks, 86,400 a day.
                noise=f"GET {engine.health_path} HTTP",
                stop_seconds=self._settings.timeouts.stop,
            )
        except OSError as error:
            raise ReplicaDied(f"the engine could not be started: {error}") from None

    @property
    def _evidence(self) -> str:
        """Where a person finds out more."""
        if isinstance(self.engine, OpenAICompatible):
            return f"{self.engine.settings.url}"
        return str(self.log_file)

    @property
    def log_file(self) -> Path:
        replica = f".r{self.index}" if self.index else ""
        name = f"{self.version.name}-{self.version.number}{replica}.log"
        return self._settings.service.state / "logs" / name

    @property
    def _exited(self) -> asyncio.Future[Exit]:
        """Done once the engine's process is gone: never, when it has none here."""
        if self._process is None:
            return asyncio.get_running_loop().create_future()
        return self._process.exited

    async def _until_healthy(self) -> None:
        limit = self._settings.timeouts.start
        deadline = time.monotonic() + limit
        exited = self._exited
        while time.monotonic() < deadline:
            if exited.done():
                raise ReplicaDied(f"the engine did not start: {exited.result()}")
            with contextlib.suppress(ApiError, EngineGone, TimeoutError):
                status, _ = await self.wire.get(self.engine.health_path, timeout=5)
                if status == 200:
                    return
            await asyncio.wait({exited}, timeout=0.2)
        raise ReplicaDied(f"the engine was not healthy after {limit:g} s; see {self._evidence}")

    async def _warm_up(self) -> None:
        timeouts = self._settings.timeouts
        client = WarmupClient(self.version.tag, self.engine, self.wire, patience=timeouts.warmup)
        try:
            async with asyncio.timeout(timeouts.warmup):
                settings = self._settings.models[self.version.name].warmup
                await warm_up(client, settings, load_hook(self._hooks))
        except WarmupFailed as error:
            raise ReplicaDied(f"{error}; see {self._evidence}") from None
        except TimeoutError:
            raise ReplicaDied(f"its warm-up took over {timeouts.warmup:g} s") from None


def not_installed(engine: str, program: Path) -> str:
    return f"the engine {engine} is not installed ({program} is missing); run `make install`"


def _free_port() -> int:
    """A port nobody has now. Should somebody take it first, the engine exits and is started again
    on another one."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
