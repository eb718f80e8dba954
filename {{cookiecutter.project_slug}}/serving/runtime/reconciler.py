"""Drives what runs to what is asked for: by serving.yaml's policies and by state/routing.json.

New versions start beside those that answer. A label means its new version only once that is ready;
until then, and for good if it fails, it goes on meaning the one before. What nothing asks for any
more gets no new request, finishes its answers, and stops. A model that is swapped in place has one
version at a time: there the old one ends first, and requests wait.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Literal

from serving.runtime.devices import Devices
from serving.runtime.in_place import Place
from serving.runtime.plan import find, obstacle, policy_numbers
from serving.runtime.replica import Replica, State
from serving.runtime.routing import Router, ServedModel, Snapshot, Target
from serving.runtime.routing_file import RoutingFile
from serving.runtime.served_version import ServedVersion
from serving.runtime.store import ModelStore, StoreError, Version
from serving.runtime.wanted import PRODUCTION
from serving.settings import Settings

log = logging.getLogger("bentoml.serving")

#: Seconds between two looks at the store and at routing.json. Both may be mounts of somebody
#: else's, where the kernel tells of no change.
WATCH_EVERY = 1.0

_NEVER = datetime.fromtimestamp(0, UTC)


class Reconciler:
    """Holds every version that is served and publishes to the router which of them answers what."""

    def __init__(
        self, settings: Settings, store: ModelStore, file: RoutingFile, hooks: Path
    ) -> None:
        self.router = Router(settings)
        self.settings = settings
        self.store = store
        self.file = file
        self.served: dict[str, dict[int, ServedVersion]] = {name: {} for name in settings.models}
        #: What each label means now, by model.
        self.labels: dict[str, dict[str, int]] = {name: {} for name in settings.models}
        #: How often a version came into a state.
        self.transitions: Counter[tuple[str, int, State]] = Counter()
        #: How often another version came into production, or one beside that failed, by model.
        #: From zero on, because Prometheus sees no growth in what appears as one.
        self.swaps: Counter[tuple[str, Literal["done", "failed"]]] = Counter()
        for name in settings.models:
            self.swaps[name, "done"] = self.swaps[name, "failed"] = 0
        self._answering: dict[str, int] = {}
        self._seen: dict[tuple[str, int], tuple[State, datetime]] = {}
        self._present: dict[str, list[int]] = {}
        self._held: Counter[tuple[str, int]] = Counter()
        self._places = {
            name: Place(sleeps=model.swap == "sleep")
            for name, model in settings.models.items()
            if model.swap != "side_by_side"
        }
        self._hooks = hooks
        self._devices = Devices()
        self._ending: set[asyncio.Task[None]] = set()
        self._watcher: asyncio.Task[None] | None = None
        self._reconciling = False
        self.stopped = False

    def start(self) -> None:
        self._look()
        self.reconcile()
        self._watcher = asyncio.ensure_future(self._watch())

    async def stop(self) -> None:
        """Ends all engines, at the same time."""
        self.stopped = True
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        await asyncio.gather(*(version.stop() for version in self._all()))

    @property
    def replicas(self) -> Iterator[Replica]:
        """Those that have been started and not yet put away."""
        for version in self._all():
            yield from version.started

    @property
    def queues(self) -> dict[tuple[str, int], int]:
        """How many requests wait for a place, by version."""
        return {(v.version.name, v.version.number): v.line.length for v in self._all()}

    @property
    def states(self) -> dict[tuple[str, int], State]:
        """Of every version that is served, by model and number."""
        return {(v.version.name, v.version.number): v.state for v in self._all()}

    @property
    def ready(self) -> bool:
        """Whether every required model can answer. A lazy one can, at its own pace."""
        return all(
            self.answers(name) for name, model in self.settings.models.items() if model.required
        )

    def since(self, version: ServedVersion) -> datetime:
        """When it came into its state."""
        return self._seen[version.version.name, version.version.number][1]

    def present(self, name: str) -> list[int]:
        """The model's versions in the store, as of a moment ago."""
        return self._present[name]

    def hold(self, name: str, number: int) -> None:
        """Loads a version, once more if it failed, and keeps it, whatever else is asked for, until
        `release`."""
        version = self.served[name].get(number)
        if version is not None and version.failed:
            del self.served[name][number]
            ending = asyncio.ensure_future(version.stop())
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)
        if name in self._places:
            self._places[name].failed.discard(number)
        self._held[name, number] += 1
        self.reconcile()

    def held(self, name: str) -> set[int]:
        return {number for (model, number), count in self._held.items() if model == name and count}

    def release(self, name: str, number: int) -> None:
        self._held[name, number] -= 1
        self.reconcile()

    def reconcile(self) -> None:
        """Compares what is asked for with what there is, and sets the difference in motion."""
        if self.stopped:
            return
        self._reconciling = True  # what starts below reports its changes at once
        try:
            for name in self.settings.models:
                self._ask_for(name)
            self._start_what_waits()
            for name in self.settings.models:
                self._label(name)
        finally:
            self._reconciling = False
        self._note_states()
        for name in self.settings.models:
            self._let_go(name)
        self._note_states()
        self._note_swaps()
        self._publish()

    def _changed(self) -> None:
        if not self._reconciling:
            self.reconcile()

    async def _watch(self) -> None:
        trouble = ""
        while True:
            await asyncio.sleep(WATCH_EVERY)
            try:
                await asyncio.to_thread(self._look)
                self.reconcile()
            except Exception as error:  # a store that hiccups, a defect of ours: what runs goes on
                if repr(error) != trouble:
                    log.exception("the store and routing.json could not be looked at; trying on")
                trouble = repr(error)
            else:
                trouble = ""

    def _look(self) -> None:
        self.file.refresh()
        self._present = {name: self.store.numbers(name) for name in self.settings.models}

    # What is asked for.

    def _asked(self, name: str) -> set[int]:
        """The versions of a model that anybody asks for. `latest` asks for none once production was
        set: a version that was rolled back must not stay loaded for being the newest."""
        place = self._places.get(name)
        if place is not None:
            self._choose(name, place)
            # One that failed is kept besides, for its reason.
            asked = self._asked_in_place(name)
            return {*asked, *([] if place.number is None else [place.number]), *self._asleep(name)}
        wanted = self.file.routing.of(name)
        latest = self.settings.models[name].versions.policy == "latest"
        policy = [] if latest and PRODUCTION in wanted.labels else self._policy(name)
        return {*policy, *wanted.labels.values(), *wanted.loaded, *self.held(name)}

    def _asleep(self, name: str) -> list[int]:
        """The version that sleeps beside the one in the place, or is about to."""
        place = self._places.get(name)
        number = place.asleep if place is not None else None
        return [] if number is None or self._gone(self.served[name].get(number)) else [number]

    def _choose(self, name: str, place: Place) -> None:
        served, asked = self.served[name], self._asked_in_place(name)
        if not asked and place.number is None:
            return
        place.choose(
            asked,
            ready=lambda number: number in served and served[number].state == State.READY,
            failed=lambda number: self._failed(served.get(number)),
        )

    def _asked_in_place(self, name: str) -> list[int]:
        """Who is to have the place of a model that is swapped in place, best first: who an operator
        is moving there, who production was set to, who has it. An import alone costs no pause."""
        pinned = self.file.routing.of(name).labels.get(PRODUCTION)
        for number in (*self.held(name), pinned):
            if number is not None:
                return [number]
        now = self._places[name].number
        if now is None or self._failed(self.served[name].get(now)):
            return self._policy(name)
        return [now]

    def _policy(self, name: str) -> list[int]:
        """By serving.yaml, newest first. When none of the newest can start, the one before them:
        a bad import must not outlive a restart and leave nothing to answer."""
        present, served = self._present[name], self.served[name]
        numbers = policy_numbers(self.settings, name, present)
        if numbers and all(self._failed(served.get(number)) for number in numbers):
            older = [number for number in present if number < min(numbers)]
            if self.settings.models[name].versions.policy == "latest" and older:
                numbers.append(max(older))
        return numbers

    @staticmethod
    def _failed(version: ServedVersion | None) -> bool:
        return version is not None and version.state == State.FAILED

    @staticmethod
    def _gone(version: ServedVersion | None) -> bool:
        return version is None or version.state == State.STOPPED

    def _ask_for(self, name: str) -> None:
        served = self.served[name]
        # A version that is refused at once can mean that another one is asked for.
        while new := sorted(n for n in self._asked(name) if self._gone(served.get(n))):
            for number in new:
                served[number] = self._new(name, number)
        for number in self._asked(name) - set(self._asleep(name)):
            if served[number].state == State.DRAINING:
                served[number].resume()

    def _new(self, name: str, number: int) -> ServedVersion:
        try:
            version = find(self.settings, self.store, name, number)
            refused = obstacle(self.settings, version)
        except StoreError as error:
            version = Version(name, number, Path(), _NEVER, "", [])
            refused = str(error)
        if refused:
            log.error("%s:%d failed: %s", name, number, refused)
        place = self._places.get(name)
        return ServedVersion(
            self.settings,
            self.store,
            version,
            self._hooks,
            self._changed,
            self._devices,
            refused=refused,
            patient=place is None or place.before is None,  # who waits to come back
        )

    def _start(self, name: str, number: int) -> None:
        """Starts a version, unless it has to wait for its place in memory."""
        place = self._places.get(name)
        others = (version for n, version in self.served[name].items() if n != number)
        if place is not None and (
            number != place.number or any(version.takes_memory for version in others)
        ):
            return
        version = self.served[name][number]
        if version.state == State.ASLEEP:
            version.wake()
        else:
            version.start()

    def _start_what_waits(self) -> None:
        """What an operator loads at once; else models of lower priority once those above have
        settled, and lazy ones once asked for."""
        for (name, number), count in self._held.items():
            if count:
                self._start(name, number)
        awake = {v.version.name for v in self._all() if v.started}
        awake |= {name for name, place in self._places.items() if place.swapping}
        unsettled = [
            (self.settings.models[version.version.name].priority, version)
            for version in self._all()
            if (not version.settled or version.state == State.ASLEEP)
            and version.state != State.DRAINING
            and version.version.number not in self._asleep(version.version.name)
            and not (version.lazy and version.version.name not in awake)
        ]
        first = max((priority for priority, _ in unsettled), default=0)
        for priority, version in unsettled:
            if priority == first:
                self._start(version.version.name, version.version.number)

    # What each label means.

    def _label(self, name: str) -> None:
        asked = dict(self.file.routing.of(name).labels)
        place = self._places.get(name)
        if place is not None and place.number is not None:
            there = {label: number for label, number in asked.items() if number == place.number}
            self.labels[name] = {**there, PRODUCTION: place.number}
            return
        if PRODUCTION not in asked:
            number = self._newest(name)
            if number is not None:
                asked[PRODUCTION] = number
        now = self.labels[name]
        self.labels[name] = {
            label: number if self._may_take_over(name, number, now.get(label)) else now[label]
            for label, number in asked.items()
        }

    def _newest(self, name: str) -> int | None:
        """What `production` means until somebody sets it: the newest version that is ready."""
        policy, served = self._policy(name), self.served[name]
        ready = [number for number in policy if served[number].state == State.READY]
        hopeful = [number for number in policy if not self._failed(served[number])]
        now = self.labels[name].get(PRODUCTION)
        return next(iter([*ready, *([now] if now in policy else []), *hopeful, *policy]), now)

    def _may_take_over(self, name: str, number: int, before: int | None) -> bool:
        """A label leaves a version that answers, or will again, only for one that is ready."""
        old = self.served[name].get(before) if before is not None else None
        if old is None or before == number or old.state in (State.FAILED, State.STOPPED):
            return True
        return self.served[name][number].state == State.READY

    # What comes of it.

    def _publish(self) -> None:
        models = {}
        for name, labels in self.labels.items():
            asked = self.file.routing.of(name)
            traffic = {label: weight for label, weight in asked.traffic.items() if label in labels}
            targets = {n: self._target(version) for n, version in self.served[name].items()}
            if PRODUCTION in labels:
                models[name] = ServedModel(targets, labels, traffic, asked.shadow)
        self.router.publish(Snapshot(models))

    def _target(self, served: ServedVersion) -> Target:
        name, number = served.version.name, served.version.number
        place = self._places.get(name)
        return Target(
            name=name,
            number=number,
            created=served.version.created,
            state=served.state,
            replicas=served.replicas,
            load=partial(self._start, name, number),
            awaited=served.lazy or (place is not None and place.swapping),
            adapters=served.adapters,
            balance=served.balance,
            line=served.line,
        )

    def _let_go(self, name: str) -> None:
        """Ends what nothing asks for and no label means."""
        needed = self._asked(name) | set(self.labels[name].values())
        drain = self.settings.timeouts.drain
        for number, version in list(self.served[name].items()):
            if number in self._asleep(name):
                version.rest(drain)
            if number in needed:
                continue
            if version.state in (State.STOPPED, State.UNAVAILABLE):
                del self.served[name][number]
            elif version.state != State.DRAINING:
                version.end(drain)

    def _note_states(self) -> None:
        for version in self._all():
            key = (version.version.name, version.version.number)
            state = version.state
            if key not in self._seen or self._seen[key][0] != state:
                self._seen[key] = (state, datetime.now(UTC))
                self.transitions[*key, state] += 1
                if state == State.FAILED and key[1] != self._answering.get(key[0], key[1]):
                    self.swaps[key[0], "failed"] += 1
                log.info("%s is %s", version.version.tag, state)

    def _note_swaps(self) -> None:
        for name, labels in self.labels.items():
            number = labels.get(PRODUCTION)
            version = self.served[name].get(number) if number is not None else None
            if number is None or version is None or version.state != State.READY:
                continue
            if self._answering.setdefault(name, number) != number:
                self._answering[name] = number
                self.swaps[name, "done"] += 1

    def answers(self, name: str) -> bool:
        """Whether a request that names only this model gets an answer, sooner or later."""
        number = self.labels[name].get(PRODUCTION)
        version = self.served[name].get(number) if number is not None else None
        if version is None:
            return False
        return bool(version.replicas) or (version.lazy and not self._failed(version))

    def _all(self) -> Iterator[ServedVersion]:
        for versions in self.served.values():
            yield from list(versions.values())
