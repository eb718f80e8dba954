"""What operators ask for beyond serving.yaml: labels, traffic, shadow and loaded versions.

It is one JSON document, `state/routing.json`, with the history of its changes. The service writes
it; a person or a mounted ConfigMap may too, and the service takes over what it finds.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

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


class Wanted(_Part):
    """What is asked for of one model.

    `labels` point to versions; `traffic` are the relative weights of labels for requests that name
    only the model: all of it goes to `production` when there are none. `shadow` is the percentage
    of those requests that the version labelled `shadow` gets a copy of. `loaded` are versions to
    keep loaded that nothing else asks for.
    """

    labels: dict[Name, Count] = {}
    traffic: dict[Name, Weight] = {}
    shadow: Percent = 0
    loaded: Annotated[list[Count], Field(max_length=100)] = []

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
        return self


class Change(_Part):
    """One entry of the history: `what` was done to `model`, `by` whom, and what was asked for
    `before`. A rollback `undoes` the change of that revision."""

    revision: int
    at: datetime
    by: str
    model: Name
    what: str
    before: Wanted
    undoes: int | None = None


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
        change = Change(
            revision=self.revision + 1,
            at=datetime.now(UTC),
            by=by,
            model=model,
            what=what,
            before=before or self.of(model),
            undoes=undoes,
        )
        return Routing(
            revision=change.revision,
            models={**self.models, model: wanted},
            history=[*self.history, change][-HISTORY:],
        )

    def last_change(self, model: str) -> Change | None:
        """The change that a rollback of `model` undoes: the newest that is not undone yet and is
        no rollback itself."""
        undone = {change.undoes for change in self.history}
        for change in reversed(self.history):
            if change.model == model and change.undoes is None and change.revision not in undone:
                return change
        return None
