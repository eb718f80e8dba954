"""The load generators of a run: this process, or workers of Locust's, here and on other machines.

Locust brings the workers together and carries the messages. Its users and statistics are not used:
the statistics round response times, and users that each wait for an answer cannot keep a schedule.

Messages to a worker: `setup`, `stage`, `enough`, `halt`. From one: `here`, `samples`, `pulse`,
`done`, `failed`. Locust knows a worker a moment before that worker knows its messages, and drops
what nobody waits for: nothing is sent before it says that it is `here`.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import gevent
import msgspec
from gevent.event import Event
from locust.env import Environment
from locust.runners import LocalRunner, MasterRunner, Runner, WorkerRunner

from loadtests.asker import Asker, Target
from loadtests.clock import Clock, Pulse, still
from loadtests.generator import Generator
from loadtests.ports import free_port
from loadtests.prompts import PromptsError, Recorded
from loadtests.results import Sample, Stage
from loadtests.workload import Plan, Scale, Workload
from serving.bearer import BadKey

HERE = Path(__file__).parent
#: Where each target's key is: a command line can be read by every user of the machine.
KEYS = {"": "SERVING_KEY", "engine": "ENGINE_KEY"}
#: Seconds between two deliveries of samples.
DELIVER_EVERY = 0.25
#: Seconds for the workers to come.
PATIENCE = 60.0
#: Seconds for a message to reach the farthest worker, before it is time to begin.
LEAD = 0.2


class CrewError(Exception):
    """The load cannot be offered. The message says why and what to do."""


class Setup(msgspec.Struct):
    """What a worker has to know: whom to ask what. `epoch`: when the run began, Unix time."""

    targets: list[Target]
    plan: Plan
    scale: Scale
    seed: int
    epoch: float
    patience: float


class _Order(msgspec.Struct):
    number: int
    stage: Stage
    begin: float
    part: int
    parts: int


class Hand:
    """A worker: does as the messages say."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._generator: Generator | None = None
        self._samples: list[Sample] = []
        for name, listener in (
            ("setup", self._setup),
            ("stage", self._stage),
            ("enough", self._enough),
            ("halt", self._halt),
        ):
            runner.register_message(name, listener)

    def _setup(self, environment: Environment, msg: Any) -> None:
        setup = msgspec.convert(msg.data, Setup)
        clock = Clock(setup.epoch)
        try:
            askers = {
                target.name: Asker(
                    target, os.environ.get(KEYS[target.name], ""), clock, setup.patience
                )
                for target in setup.targets
            }
            recorded = Recorded.read(Path(setup.plan.path)) if setup.plan.path else None
        except (PromptsError, BadKey) as error:  # of another machine, where both must be too
            self._runner.send_message("failed", {"why": str(error)})
            return
        workload = Workload(setup.plan, setup.seed, setup.scale, recorded)
        self._generator = Generator(askers, workload, setup.seed, clock, self._samples.append)
        gevent.spawn(Pulse(self._pulse).run)
        gevent.spawn(self._deliver_always)

    def _stage(self, environment: Environment, msg: Any) -> None:
        if self._generator is None:
            return
        gevent.spawn(self._work, msgspec.convert(msg.data, _Order))

    def _enough(self, environment: Environment, msg: Any) -> None:
        if self._generator is not None:
            self._generator.enough()

    def _halt(self, environment: Environment, msg: Any) -> None:
        if self._generator is not None:
            self._generator.stop()

    def _work(self, order: _Order) -> None:
        assert self._generator is not None
        try:
            self._generator.run(order.number, order.stage, order.begin, order.part, order.parts)
        except Exception as error:  # whoever waits for this worker must not wait for ever
            self._runner.send_message("failed", {"why": f"{type(error).__name__}: {error}"})
            raise
        self._deliver()
        self._runner.send_message("done", {"number": order.number})

    def _deliver_always(self) -> None:
        while True:
            gevent.sleep(DELIVER_EVERY)
            self._deliver()

    def _deliver(self) -> None:
        if self._samples:
            samples, self._samples[:] = list(self._samples), []
            self._runner.send_message("samples", {"samples": msgspec.to_builtins(samples)})

    def _pulse(self, late: float, cpu: float) -> None:
        self._runner.send_message("pulse", {"late": late, "cpu": cpu})


class Crew:
    """`workers` processes of this machine and `others` who are started elsewhere and come to
    `bind`; with neither, the load is offered by this process."""

    def __init__(
        self,
        setup: Setup,
        on_samples: Callable[[list[Sample]], None],
        on_pulse: Callable[[float, float], None],
        *,
        workers: int = 0,
        others: int = 0,
        bind: tuple[str, int] = ("127.0.0.1", 0),
    ) -> None:
        logging.getLogger("locust").setLevel(logging.ERROR)
        self._on_samples, self._on_pulse = on_samples, on_pulse
        self._processes: list[subprocess.Popen[bytes]] = []
        self._here, self._done, self._all_done, self._failed = 0, 0, Event(), ""
        self._parts = workers + others
        environment = Environment(user_classes=[])
        self._runner: LocalRunner | MasterRunner
        if self._parts:
            host, port = bind[0], bind[1] or free_port(bind[0])
            self._runner = environment.create_master_runner(host, port)
        else:
            self._runner = environment.create_local_runner()
        for name, listener in (
            ("here", self._one_here),
            ("samples", self._samples),
            ("pulse", self._pulse),
            ("done", self._one_done),
            ("failed", self._one_failed),
        ):
            self._runner.register_message(name, listener)
        if self._parts:
            here = "127.0.0.1" if host in ("0.0.0.0", "*") else host  # noqa: S104 - asked for
            self._processes = [_start_worker(f"{here}:{port}") for _ in range(workers)]
            self._wait_for_workers()
        else:
            Hand(self._runner)
        self._send("setup", setup)

    def run(self, number: int, stage: Stage, begin: float) -> None:
        """Offers the stage from `begin` on, at least `LEAD` from now, and waits for all its
        answers. Raises `CrewError` when a worker goes away."""
        self._done = 0
        self._all_done.clear()
        parts = max(1, self._parts)
        for part, worker in enumerate(self._workers()):
            self._send("stage", _Order(number, stage, begin, part, parts), worker)
        while not self._all_done.wait(1.0):
            if self._failed:
                raise CrewError(f"A load worker cannot work: {self._failed}")
            if len(self._workers()) < parts:
                raise CrewError("A load worker went away: what it did is lost, so run again.")

    def enough(self) -> None:
        """Ends the stage before its time; `run` still waits for its answers."""
        self._send("enough", None)

    def close(self) -> None:
        """Ends what is running, and the workers that this process started."""
        if self._parts:
            self._runner.quit()
            for process in self._processes:
                try:
                    process.wait(5)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        else:
            self._send("halt", None)

    def _workers(self) -> list[str | None]:
        if isinstance(self._runner, MasterRunner):
            return [client.id for client in self._runner.clients.ready]
        return [None]

    def _wait_for_workers(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while self._here < self._parts:
            if time.monotonic() > deadline or any(p.poll() is not None for p in self._processes):
                self.close()
                raise CrewError(
                    f"{self._here} of {self._parts} load workers came: start the others with "
                    "`python -m loadtests worker HOST:PORT`, and open that port to them."
                )
            gevent.sleep(0.05)

    def _send(self, name: str, data: Any, worker: str | None = None) -> None:
        # Plain values, although both sides of a local runner are in this process.
        cast(Any, self._runner).send_message(name, msgspec.to_builtins(data), worker)

    def _one_here(self, environment: Environment, msg: Any) -> None:
        self._here += 1

    def _samples(self, environment: Environment, msg: Any) -> None:
        self._on_samples(msgspec.convert(msg.data["samples"], list[Sample]))

    def _pulse(self, environment: Environment, msg: Any) -> None:
        self._on_pulse(msg.data["late"], msg.data["cpu"])

    def _one_done(self, environment: Environment, msg: Any) -> None:
        self._done += 1
        if self._done >= max(1, self._parts):
            self._all_done.set()

    def _one_failed(self, environment: Environment, msg: Any) -> None:
        self._failed = msg.data["why"]


def work(address: str) -> None:
    """A worker's whole life: until the master says that it is over. Raises `CrewError`."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise CrewError(f"{address!r} is no address; write HOST:PORT.")
    # Ctrl-C is for the master, who then tells.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.getLogger("locust").setLevel(logging.ERROR)
    still()
    runner: WorkerRunner = Environment(user_classes=[]).create_worker_runner(host, int(port))
    Hand(runner)
    runner.send_message("here")
    runner.greenlet.join()


def _start_worker(address: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "loadtests", "worker", address]
    return subprocess.Popen(command, cwd=HERE.parent, stdin=subprocess.DEVNULL)
