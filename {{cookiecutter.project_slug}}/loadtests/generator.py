"""Offers the load of a stage, in one process: on a schedule that waits for nobody, or as users."""

from __future__ import annotations

from collections.abc import Callable

from gevent.event import Event
from gevent.pool import Group

from loadtests.arrivals import schedule
from loadtests.asker import Asker, Ticks
from loadtests.results import Sample, Stage
from loadtests.workload import Conversation, Workload


class Generator:
    """`askers` by the name of their target. Each sample is given to `deliver` as it ends."""

    def __init__(
        self,
        askers: dict[str, Asker],
        workload: Workload,
        seed: int,
        clock: Ticks,
        deliver: Callable[[Sample], None],
    ) -> None:
        self._askers = askers
        self._workload = workload
        self._seed = seed
        self._clock = clock
        self._deliver = deliver
        self._running = Group()
        self._over = Event()

    def run(self, number: int, stage: Stage, begin: float, part: int, parts: int) -> None:
        """Offers this process' part of the stage from `begin` on and waits for its answers."""
        self._over.clear()
        if stage.arrivals == "users":
            for user in range(part, stage.users, parts):
                self._running.spawn(self._user, number, stage, begin, user)
        else:
            self._offer(number, stage, begin, part, parts)
        self._running.join()

    def enough(self) -> None:
        """Ends the stage before its time: what is running gets its answer, nothing new is asked."""
        self._over.set()

    def stop(self) -> None:
        """Ends what is running; nobody counts it."""
        self._running.kill()

    def _offer(self, number: int, stage: Stage, begin: float, part: int, parts: int) -> None:
        due = schedule(stage, (self._seed, number)) + begin
        for arrival in range(part, len(due), parts):
            conversation = self._workload.conversation(number, arrival)
            self._wait_until(at := float(due[arrival]))
            if self._over.is_set():
                return
            self._running.spawn(self._converse, number, stage, conversation, at)

    def _user(self, number: int, stage: Stage, begin: float, user: int) -> None:
        """Users begin one after the other, over a second at most: nobody's do all at once."""
        end = begin + stage.seconds
        self._wait_until(begin + min(1.0, stage.seconds / 10) * user / max(1, stage.users))
        turn = 0
        while (now := self._clock.now()) < end and not self._over.is_set():
            conversation = self._workload.conversation(number, user, turn)
            self._converse(number, stage, conversation, now, end)
            turn += 1
            if stage.think:
                self._over.wait(stage.think)

    def _converse(
        self,
        number: int,
        stage: Stage,
        conversation: Conversation,
        due: float,
        end: float = float("inf"),
    ) -> None:
        """Until a turn fails: what comes after an answer that nobody got would be another work."""
        asker = self._askers[stage.target]
        for turn, question in enumerate(conversation):
            if turn:
                if self._over.wait(self._workload.plan.think):
                    return
                due = self._clock.now()
            sample, text = asker.ask(question, stage=number, due=due)
            self._deliver(sample)
            if sample.outcome != "whole" or self._clock.now() >= end:
                return
            conversation.heard(text)

    def _wait_until(self, at: float) -> None:
        # A busy loop's own time is old, and a wait ends early by as much.
        while (wait := at - self._clock.now()) > 0 and not self._over.wait(wait):
            pass
