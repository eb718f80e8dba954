"""Leads rollouts: gives a canary more traffic step by step, into production or back.

Where a rollout stands is part of state/routing.json, and a restart goes on from there; what was
answered at the step under way is not, so that this step begins anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from serving.runtime.gates import Answers, Verdict, baseline_of, judge
from serving.runtime.operations import Operations, Refused
from serving.runtime.outcome import Outcome
from serving.runtime.reconciler import Reconciler
from serving.runtime.replica import State
from serving.runtime.routing_file import RevisionConflict, RoutingFileError
from serving.runtime.wanted import CANARY, PRODUCTION, Rollout, Wanted

log = logging.getLogger("bentoml.serving")

#: Seconds between two looks at the rollouts.
LOOK_EVERY = 1.0
#: Who it was, in the history.
BY = "rollout"


@dataclass
class Watch:
    """One step of one rollout. It begins once the canary is ready; `told` is how it does."""

    wanted: Wanted
    rollout: Rollout
    canary: Answers = field(default_factory=Answers)
    production: Answers = field(default_factory=Answers)
    told: str = ""
    _began: float | None = None

    def begin(self) -> None:
        if self._began is None:
            self._began = time.monotonic()

    @property
    def elapsed(self) -> float | None:
        """Seconds since it began."""
        return None if self._began is None else time.monotonic() - self._began

    def note(self, outcome: Outcome) -> None:
        """Answers to requests that named a version are none of the traffic that is compared."""
        if self._began is None or not outcome.label:
            return
        if outcome.number == self.wanted.labels[CANARY]:
            self.canary.note(outcome)
        elif outcome.number == self.wanted.labels[PRODUCTION]:
            self.production.note(outcome)


class Rollouts:
    """The rollouts of all models."""

    def __init__(self, reconciler: Reconciler, operations: Operations) -> None:
        self._reconciler = reconciler
        self._operations = operations
        #: How steps ended: passed, or rolled back because a gate was breached.
        self.steps: Counter[tuple[str, Literal["passed", "rolled_back"]]] = Counter()
        for model in reconciler.settings.models:
            self.steps[model, "passed"] = self.steps[model, "rolled_back"] = 0
        self._watches: dict[str, Watch] = {}
        self._leader: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._leader = asyncio.ensure_future(self._lead())

    async def stop(self) -> None:
        if self._leader is not None:
            self._leader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._leader

    def note(self, outcome: Outcome) -> None:
        """How an answer went."""
        watch = self._watches.get(outcome.model)
        if watch is not None:
            watch.note(outcome)

    def watch(self, model: str) -> Watch | None:
        """The step that the model's rollout is at."""
        return self._watches.get(model)

    async def _lead(self) -> None:
        while True:
            for model in self._reconciler.settings.models:
                try:
                    await self._look(model)
                except Exception:  # a defect of ours: the others go on, and this one tries again
                    log.exception("%s: the rollout could not be looked at", model)
            await asyncio.sleep(LOOK_EVERY)

    async def _look(self, model: str) -> None:
        routing = self._reconciler.file.routing
        wanted = routing.of(model)
        if wanted.rollout is None:
            self._watches.pop(model, None)
            return
        watch = self._watches.get(model)
        if watch is None or watch.wanted != wanted:
            watch = self._watches[model] = Watch(wanted, wanted.rollout)
        verdict = self._judge(model, watch)
        told, watch.told = watch.told, verdict.why
        try:
            await self._act(model, watch, verdict, routing.revision)
        except RevisionConflict:
            return  # somebody was faster: looked at again
        except (Refused, RoutingFileError) as error:
            watch.told = f"{verdict.why}; {error}"
            if watch.told != told:
                log.warning("%s: the rollout cannot go on: %s", model, error)

    def _judge(self, model: str, watch: Watch) -> Verdict:
        number = watch.wanted.labels[CANARY]
        version = self._reconciler.served[model].get(number)
        if version is None:
            return Verdict("wait", f"{model}:{number} is not loaded yet")
        if version.state == State.FAILED:
            return Verdict("breach", f"{model}:{number} failed: {version.reason}")
        if version.state == State.READY:
            watch.begin()
        if watch.elapsed is None:
            return Verdict("wait", f"{model}:{number} is {version.state}")
        return judge(watch.rollout, watch.canary, watch.production, watch.elapsed)

    async def _act(self, model: str, watch: Watch, verdict: Verdict, revision: int) -> None:
        if verdict.decision == "breach":
            await self._operations.rollback(model, by=BY, revision=revision, why=verdict.why)
            self.steps[model, "rolled_back"] += 1
        elif verdict.decision == "pass":
            await self._operations.advance_rollout(
                model,
                baseline_of(watch.rollout, watch.production),
                by=BY,
                revision=revision,
                why=verdict.why,
            )
            self.steps[model, "passed"] += 1
