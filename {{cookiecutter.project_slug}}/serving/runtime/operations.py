"""What an operator can do: move labels, split traffic, load, promote, roll out, roll back.

Each ends as one change of state/routing.json or as a refusal that changed nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from pydantic import ValidationError

from serving.runtime.checks import ModelRefused
from serving.runtime.plan import find, obstacle
from serving.runtime.reconciler import Reconciler
from serving.runtime.replica import State
from serving.runtime.routing_file import RevisionConflict
from serving.runtime.store import StoreError
from serving.runtime.wanted import (
    CANARY,
    PRODUCTION,
    Change,
    Rollout,
    RolloutPlan,
    Routing,
    Wanted,
)

log = logging.getLogger("bentoml.serving")

#: Seconds between two looks at a version that loads.
LOAD_CHECK = 0.05


class Refused(Exception):
    """It would do harm or means nothing. The message says why; nothing was changed."""


class UnknownModel(Exception):
    """There is no model of that name."""


class Operations:
    """One operator's `revision` is the one they looked at: given, the change is made only if
    nobody made another one since; see `RevisionConflict`. `by` is who asked, for the history."""

    def __init__(self, reconciler: Reconciler) -> None:
        self._reconciler = reconciler

    async def set_label(
        self,
        model: str,
        label: str,
        number: int,
        *,
        by: str,
        revision: int | None = None,
        load: bool = False,
    ) -> Routing:
        """Points `label` to a version, which must be ready. With `load` it is loaded first, beside
        what answers; one that does not become ready is put away again."""
        now = self._now(model)
        what = f"label {label}: {now.get(label, 'none')} -> {number}"
        if not load:
            self._check_ready(model, number)
        await self._check_files(model, number)
        with self._loading(model, number, place=label == PRODUCTION, revision=revision):
            await self._until_ready(model, number)
            return await self._change(
                model,
                lambda w: {"labels": {**w.labels, label: number}},
                by,
                what,
                revision,
                production=now[PRODUCTION],
            )

    async def drop_label(
        self, model: str, label: str, *, by: str, revision: int | None = None
    ) -> Routing:
        """Takes a label away, with its part of the traffic."""
        if label not in self._wanted(model).labels:
            raise Refused(f"{model} has no label {label}.")

        def dropped(wanted: Wanted) -> dict[str, object]:
            labels = {name: number for name, number in wanted.labels.items() if name != label}
            traffic = {name: weight for name, weight in wanted.traffic.items() if name != label}
            return {"labels": labels, "traffic": traffic if any(traffic.values()) else {}}

        return await self._change(model, dropped, by, f"label {label} dropped", revision)

    async def set_traffic(
        self, model: str, weights: dict[str, int], *, by: str, revision: int | None = None
    ) -> Routing:
        """The relative weights of labels. Every one with a weight must lead to a ready version."""
        labels = self._now(model)
        for label, weight in weights.items():
            if weight and label not in labels:
                raise Refused(f"{model} has no label {label}; set it to a version first.")
            if weight:
                self._check_ready(model, labels[label])
        shares = ", ".join(f"{label} {weight}" for label, weight in weights.items()) or "production"
        return await self._change(
            model, lambda _: {"traffic": weights}, by, f"traffic: {shares}", revision
        )

    async def set_shadow(
        self, model: str, percent: float, *, by: str, revision: int | None = None
    ) -> Routing:
        """The percentage of requests that the label `shadow` gets a copy of."""
        return await self._change(
            model, lambda _: {"shadow": percent}, by, f"shadow: {percent:g} %", revision
        )

    async def promote(
        self,
        model: str,
        label: str = CANARY,
        *,
        by: str,
        revision: int | None = None,
        why: str = "",
    ) -> Routing:
        """Makes the version of `label` the one in production, with all the traffic. A rollout of it
        is over then."""
        labels = self._now(model)
        if label == PRODUCTION or label not in labels:
            raise Refused(f"{model} has no label {label} that could be promoted.")
        number = labels[label]
        self._check_ready(model, number)

        def promoted(wanted: Wanted) -> dict[str, object]:
            rest = {name: n for name, n in wanted.labels.items() if name != label}
            return {"labels": {**rest, PRODUCTION: number}, "traffic": {}, "rollout": None}

        what = f"promoted {label}: production {labels[PRODUCTION]} -> {number}"
        return await self._change(
            model, promoted, by, f"{what}: {why}" if why else what, revision, within=label == CANARY
        )

    async def start_rollout(
        self, model: str, number: int, plan: RolloutPlan, *, by: str, revision: int | None = None
    ) -> Routing:
        """Loads a version and gives it the plan's first part of the traffic, as `canary`. What
        follows is up to `Rollouts`."""
        labels, rollout = self._now(model), Rollout(**plan.model_dump())

        def started(wanted: Wanted) -> dict[str, object]:
            _check_no_rollout(model, wanted)
            split = [label for label, weight in wanted.traffic.items() if weight]
            if split not in ([], [PRODUCTION]):
                raise Refused(
                    f"The traffic of {model} is split; give all of it to production first: "
                    f"serving traffic {model} production=1"
                )
            return {
                "labels": {**wanted.labels, CANARY: number},
                "traffic": rollout.traffic,
                "rollout": rollout.model_dump(),
            }

        if self._alone(model):
            raise Refused(
                f"{model} has one version in memory; a rollout needs two: write swap: side_by_side."
            )
        if number == labels[PRODUCTION]:
            raise Refused(f"{model}:{number} is in production already.")
        started(self._wanted(model))
        with self._loading(model, number, revision=revision):
            await self._until_ready(model, number)
            return await self._change(
                model,
                started,
                by,
                f"rollout to {number} started: {rollout.percent} % of the traffic",
                revision,
            )

    async def advance_rollout(
        self, model: str, baseline: float | None, *, by: str, revision: int, why: str
    ) -> Routing:
        """Goes to the next step of the rollout under way, after the last into production.
        `baseline` is production's 95th percentile of TTFT, if that is known."""
        wanted = self._wanted(model)
        rollout = wanted.rollout
        if rollout is None:
            raise Refused(f"There is no rollout of {model}.")
        if rollout.step + 1 == len(rollout.steps):
            return await self.promote(model, by=by, revision=revision, why=why)
        fields = {**rollout.model_dump(), "step": rollout.step + 1, "baseline": baseline}
        following = Rollout.model_validate(fields)
        return await self._change(
            model,
            lambda _: {"traffic": following.traffic, "rollout": fields},
            by,
            f"rollout to {wanted.labels[CANARY]}: {following.percent} % of the traffic: {why}",
            revision,
            within=True,
        )

    async def stop_rollout(self, model: str, *, by: str, revision: int | None = None) -> Routing:
        """Leaves labels and traffic as the rollout under way has set them, for good."""
        wanted = self._wanted(model)
        if wanted.rollout is None:
            raise Refused(f"There is no rollout of {model}.")
        what = f"rollout to {wanted.labels[CANARY]} stopped at {wanted.rollout.percent} %"
        return await self._change(
            model, lambda _: {"rollout": None}, by, what, revision, within=True
        )

    async def rollback(
        self, model: str, *, by: str, revision: int | None = None, why: str = ""
    ) -> tuple[Change, Routing]:
        """Undoes the last change that is not undone yet, after its versions are ready again; a
        rollout under way at once. Returns that change, and what came of it."""
        rollout = self._wanted(model).rollout
        change = self._reconciler.file.routing.last_change(model)
        if change is None:
            raise Refused(f"There is no change of {model} to roll back.")
        what = f"rolled back: {change.what}"
        if rollout is not None:
            what = f"{what}, at {rollout.percent} %" + (f": {why}" if why else "")
            routing = await self._change(
                model, _without_canary, by, what, revision, undoes=change.revision
            )
            return change, routing
        production = self._now(model)[PRODUCTION]
        numbers = self._loaded_for(model, change.before)
        with ExitStack() as loading:
            for number in sorted(numbers):
                await self._check_files(model, number)
                loading.enter_context(self._loading(model, number, place=True, revision=revision))
                await self._until_ready(model, number)
            routing = await self._change(
                model,
                lambda _: change.before.model_dump(),
                by,
                what,
                revision,
                undoes=change.revision,
                production=production,
            )
        return change, routing

    async def load(self, model: str, number: int, *, by: str) -> None:
        """Loads a version and keeps it loaded, restarts included. Returns once it is ready."""
        with self._loading(model, number):
            await self._until_ready(model, number)
            loaded = self._wanted(model).loaded
            if number not in loaded:
                await self._change(
                    model, lambda w: {"loaded": sorted({*w.loaded, number})}, by, f"loaded {number}"
                )

    async def unload(self, model: str, number: int, *, by: str) -> None:
        """Puts a version away that was loaded by `load`."""
        means = sorted(label for label, n in self._now(model).items() if n == number)
        if means:
            raise Refused(
                f"{model}:{number} is what {', '.join(means)} means; move the label first."
            )
        if number not in self._wanted(model).loaded:
            raise Refused(f"{model}:{number} was not loaded by hand; serving.yaml asks for it.")
        await self._change(
            model,
            lambda w: {"loaded": [n for n in w.loaded if n != number]},
            by,
            f"unloaded {number}",
        )

    # What they share.

    def _wanted(self, model: str) -> Wanted:
        if model not in self._reconciler.settings.models:
            raise UnknownModel(f"There is no model {model}; /admin/status lists them.")
        return self._reconciler.file.routing.of(model)

    def _now(self, model: str) -> dict[str, int]:
        """What each label means now."""
        self._wanted(model)
        return self._reconciler.labels[model]

    @contextmanager
    def _loading(
        self, model: str, number: int, *, place: bool = False, revision: int | None = None
    ) -> Iterator[None]:
        """Whatever comes of it, the version is not put away meanwhile. With `place` it takes the
        place of the one in production, where there is but one."""
        _check_no_rollout(model, self._wanted(model))
        if revision is not None and revision != self._reconciler.file.routing.revision:
            raise RevisionConflict(self._reconciler.file.routing.revision)
        if self._alone(model):
            self._check_place(model, number, place=place)
        self._reconciler.hold(model, number)
        try:
            yield
        finally:
            self._reconciler.release(model, number)

    def _alone(self, model: str) -> bool:
        return self._reconciler.settings.models[model].swap != "side_by_side"

    def _check_place(self, model: str, number: int, *, place: bool) -> None:
        others = self._reconciler.held(model) - {number}
        if others:
            raise Refused(f"{model} is being swapped to version {min(others)}; ask again after it.")
        if not place and number != self._now(model)[PRODUCTION]:
            raise Refused(
                f"{model} is swapped in place, and {number} is not the version in memory; move the "
                "label production, or write swap: side_by_side."
            )

    async def _check_files(self, model: str, number: int) -> None:
        """Of a version whose start would end the one that answers: what is known to be wrong with
        it costs no pause."""
        if not self._alone(model) or number in self._reconciler.served[model]:
            return
        reconciler = self._reconciler
        try:
            version = find(reconciler.settings, reconciler.store, model, number)
            reason = obstacle(reconciler.settings, version)
            await asyncio.to_thread(reconciler.store.verify, version)
        except (StoreError, ModelRefused) as error:
            reason = str(error)
        if reason:
            raise Refused(reason)

    def _loaded_for(self, model: str, wanted: Wanted) -> set[int]:
        if self._alone(model):
            return {wanted.labels[PRODUCTION]}
        return set(wanted.labels.values())

    def _check_ready(self, model: str, number: int) -> None:
        self._wanted(model)
        version = self._reconciler.served[model].get(number)
        if version is None:
            raise Refused(f"{model}:{number} is not loaded; load it first, or ask for that too.")
        if version.state != State.READY:
            why = f": {version.reason}" if version.reason else "."
            raise Refused(f"{model}:{number} is not ready but {version.state}{why}")

    async def _until_ready(self, model: str, number: int) -> None:
        served = self._reconciler.served[model]
        while not self._reconciler.stopped:
            if number not in served or served[number].state in (State.READY, State.FAILED):
                self._check_ready(model, number)
                return
            await asyncio.sleep(LOAD_CHECK)
        raise Refused("The service stops.")

    async def _change(
        self,
        model: str,
        make: Callable[[Wanted], dict[str, object]],
        by: str,
        what: str,
        revision: int | None = None,
        undoes: int | None = None,
        production: int | None = None,
        within: bool = False,
    ) -> Routing:
        """`production` is what that label meant before versions were loaded for the change. During
        a rollout there is none but its own, those `within` it, and the one that undoes it."""
        production = production or self._now(model)[PRODUCTION]

        def changed(routing: Routing) -> Routing:
            old = routing.of(model)
            if not within and undoes is None:
                _check_no_rollout(model, old)
            # From the first change on, production moves only when somebody moves it.
            pinned = old.model_copy(update={"labels": {PRODUCTION: production, **old.labels}})
            wanted = Wanted.model_validate({**pinned.model_dump(), **make(pinned)})
            return routing.changed(model, wanted, before=pinned, by=by, what=what, undoes=undoes)

        file = self._reconciler.file
        try:
            routing = await asyncio.to_thread(file.change, changed, revision=revision)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in problem["loc"] if part != "[key]")
            told = problem["msg"].removeprefix("Value error, ")
            raise Refused(f"{model}: {place}: {told}." if place else f"{model}: {told}.") from None
        log.info("%s: %s, by %s (revision %d)", model, what, by, routing.revision)
        self._reconciler.reconcile()
        return routing


def _check_no_rollout(model: str, wanted: Wanted) -> None:
    if wanted.rollout is not None:
        raise Refused(
            f"A rollout of {model} to {wanted.labels[CANARY]} is under way; end it first: "
            f"serving rollout stop {model}, or promote, or rollback."
        )


def _without_canary(wanted: Wanted) -> dict[str, object]:
    """What is asked for once a rollout has come to nothing. The version that the label canary may
    have meant before it is not loaded, and nobody may wait for that now."""
    labels = {label: number for label, number in wanted.labels.items() if label != CANARY}
    return {"labels": labels, "traffic": {}, "rollout": None}
