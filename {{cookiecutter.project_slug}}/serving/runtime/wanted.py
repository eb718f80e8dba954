"""What operators ask for beyond serving.yaml: labels, traffic, shadow, rollouts, loaded versions.

It is one JSON document, `state/routing.json`, with the history of its changes. The service writes
it; a person or a mounted ConfigMap may too, and the service takes over what it finds.
"""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from serving.settings.sections import Count, Name

PRODUCTION = "production"
CANARY = "canary"
SHADOW = "shadow"

#: Changes that are remembered, over all models.
HISTORY = 200

Weight = Annotated[int, Field(ge=0, le=1_000_000)]
Percent = Annotated[float, Field(ge=0, le=100)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RolloutPlan(_Part):
    """How a version goes into production by itself. Its part of the traffic grows by `steps`,
    percentages; each takes `every` seconds at least, and until canary and production have given
    `min_answers` answers. The share of its answers that fail must not exceed `max_error_rate`, nor
    its 95th percentile of the time to first token `max_ttft_p95_ratio` times production's. A limit
    that is null is not watched."""

    steps: Annotated[list[Annotated[int, Field(ge=1, le=100)]], Field(min_length=1, max_length=20)]
    every: Annotated[float, Field(gt=0, le=30 * 86400)]
    max_error_rate: Annotated[float, Field(ge=0, lt=1)] | None = None
    max_ttft_p95_ratio: Annotated[float, Field(gt=0, le=100)] | None = None
    min_answers: Count = 100

    @model_validator(mode="after")
    def _goes_up(self) -> Self:
        if any(later <= earlier for earlier, later in pairwise(self.steps)):
            raise ValueError("steps: each must be larger than the one before")
        if self.max_ttft_p95_ratio is not None and self.steps[0] == 100:
            raise ValueError(
                "steps: the first must be under 100, or production has no TTFT to compare with"
            )
        return self


class Rollout(RolloutPlan):
    """One that is under way: at step number `step`, from 0. `baseline` is production's 95th
    percentile of TTFT, in seconds, at the step before."""

    step: Annotated[int, Field(ge=0)] = 0
    baseline: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _is_at_a_step(self) -> Self:
        if self.step >= len(self.steps):
            raise ValueError(f"step: there are {len(self.steps)} steps, counted from 0")
        return self

    @property
    def percent(self) -> int:
        return self.steps[self.step]

    @property
    def traffic(self) -> dict[str, int]:
        """The weights of its step."""
        return {PRODUCTION: 100 - self.percent, CANARY: self.percent}


class Wanted(_Part):
    """What is asked for of one model.

    `labels` point to versions; `traffic` are the relative weights of labels for requests that name
    only the model: all of it goes to `production` when there are none. `shadow` is the percentage
    of those requests that the version labelled `shadow` gets a copy of. `loaded` are versions to
    keep loaded that nothing else asks for. A `rollout` is of the version labelled `canary`.
    """

    labels: dict[Name, Count] = {}
    traffic: dict[Name, Weight] = {}
    shadow: Percent = 0
    loaded: Annotated[list[Count], Field(max_length=100)] = []
    rollout: Rollout | None = None

    @model_validator(mode="after")
    def _holds_together(self) -> Wanted:
        if self.traffic and not any(self.traffic.values()):
            raise ValueError("traffic: one label at least needs a weight over 0")
        for label in self.traffic:
            if label == SHADOW:
                raise ValueError("traffic: the label shadow answers nobody; its share is `shadow`")
            if label not in self.labels and label != PRODUCTION:
                raise ValueError(f"traffic: there is no label {label}")
        if self.shadow and SHADOW not in self.labels:
            raise ValueError("shadow: set the label `shadow` to a version first")
        if self.rollout and not {PRODUCTION, CANARY} <= self.labels.keys():
            raise ValueError("rollout: it needs the labels production and canary")
        return self


class Change(_Part):
    """One entry of the history: `what` was done to `model`, `by` whom, and what was asked for
    `before`. A rollback `undoes` the change of that revision. One that `goes_on` with a rollout is
    undone together with its start."""

    revision: int
    at: datetime
    by: str
    model: Name
    what: str
    before: Wanted
    undoes: int | None = None
    goes_on: bool = False


class Routing(_Part):
    """The whole document. Every change makes `revision` larger."""

    revision: Annotated[int, Field(ge=0)] = 0
    models: dict[Name, Wanted] = {}
    history: list[Change] = []

    def of(self, model: str) -> Wanted:
        return self.models.get(model, Wanted())

    def changed(
        self,
        model: str,
        wanted: Wanted,
        *,
        by: str,
        what: str,
        before: Wanted | None = None,
        undoes: int | None = None,
    ) -> Routing:
        """The next document, in which `model` is asked for as `wanted`. A rollback goes to
        `before`, which is what was asked for until now unless it says more."""
        old = self.of(model)
        change = Change(
            revision=self.revision + 1,
            at=datetime.now(UTC),
            by=by,
            model=model,
            what=what,
            before=before or old,
            undoes=undoes,
            goes_on=old.rollout is not None and undoes is None,
        )
        return Routing(
            revision=change.revision,
            models={**self.models, model: wanted},
            history=[*self.history, change][-HISTORY:],
        )

    def last_change(self, model: str) -> Change | None:
        """The change that a rollback of `model` undoes: the newest that is not undone yet and is
        no rollback itself; of a rollout, its start."""
        undone = {change.undoes for change in self.history}
        for change in reversed(self.history):
            own = change.undoes is None and not change.goes_on
            if change.model == model and own and change.revision not in undone:
                return change
        return None
