"""What operators may ask for, and how it is undone."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from serving.runtime.wanted import HISTORY, Routing, Wanted


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"labels": {"canary": 0}}, "greater than or equal to 1"),
        ({"labels": {"Canary": 1}}, "should match pattern"),
        ({"labels": {"canary": "new"}}, "valid integer"),
        ({"traffic": {"canary": 1}}, "there is no label canary"),
        ({"traffic": {"production": -1}}, "greater than or equal to 0"),
        ({"traffic": {"production": 0}}, "needs a weight over 0"),
        ({"labels": {"shadow": 1}, "traffic": {"shadow": 1}}, "shadow answers nobody"),
        ({"shadow": 10}, "set the label `shadow` to a version first"),
        ({"labels": {"shadow": 1}, "shadow": 101}, "less than or equal to 100"),
        ({"loaded": [0]}, "greater than or equal to 1"),
        ({"label": {}}, "Extra inputs are not permitted"),
    ],
)
def test_what_makes_no_sense_is_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        Wanted.model_validate(fields)


def labelled(number: int) -> Wanted:
    return Wanted(labels={"production": number})


def moved(routing: Routing, number: int, model: str = "chat", **more: Any) -> Routing:
    return routing.changed(model, labelled(number), by="ann", what=f"to {number}", **more)


def test_a_change_is_the_next_revision_and_remembers_what_was_before() -> None:
    first = moved(Routing(), 1)
    second = moved(first, 2)
    assert (first.revision, second.revision) == (1, 2)
    assert (first.of("chat"), second.of("chat")) == (labelled(1), labelled(2))
    assert [(c.revision, c.what, c.before) for c in second.history] == [
        (1, "to 1", Wanted()),
        (2, "to 2", labelled(1)),
    ]
    assert second.of("other") == Wanted()


def test_only_so_many_changes_are_remembered() -> None:
    routing = Routing()
    for number in range(1, HISTORY + 11):
        routing = moved(routing, number)
    assert len(routing.history) == HISTORY
    assert routing.history[-1].revision == routing.revision == HISTORY + 10


def rolled_back(routing: Routing, model: str = "chat") -> Routing:
    change = routing.last_change(model)
    assert change is not None
    return routing.changed(model, change.before, by="bob", what="back", undoes=change.revision)


def test_rollbacks_in_a_row_go_further_back_and_a_new_change_is_undone_first() -> None:
    routing = Routing()
    for number in (1, 2, 3):
        routing = moved(routing, number)
    routing = rolled_back(routing)
    assert routing.of("chat") == labelled(2)
    routing = rolled_back(routing)
    assert routing.of("chat") == labelled(1)
    routing = rolled_back(moved(routing, 9))
    assert routing.of("chat") == labelled(1)
    routing = rolled_back(routing)
    assert routing.of("chat") == Wanted()
    assert routing.last_change("chat") is None


def test_each_model_has_its_own_last_change() -> None:
    routing = moved(moved(Routing(), 1), 5, "code")
    chat, code = routing.last_change("chat"), routing.last_change("code")
    assert chat is not None
    assert code is not None
    assert (chat.what, code.what) == ("to 1", "to 5")
    assert rolled_back(routing).of("code") == labelled(5)
