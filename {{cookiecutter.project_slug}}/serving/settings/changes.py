"""What of a changed serving.yaml can be taken over while the service runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from serving.settings.document import ModelSection, Settings

#: What makes up `Timeouts.longest_wait`.
_LONG = ("lazy", "queue", "answer", "start", "warmup")
_OF_A_MODEL = (
    "versions",
    "balance",
    "shadow_concurrency",
    "load",
    "required",
    "priority",
    "warmup",
    "limits",
)


def take_over(
    running: Settings, new: Settings, longest_wait: float, served: Callable[[str, int], bool]
) -> tuple[list[str], list[str]]:
    """Gives `running` what of `new` can be in force at once, and returns the keys that are now and
    those that need a restart.

    Engines keep the settings they were started with: an engine section is taken over for versions
    that are not `served`. BentoML gives up on a reply after `longest_wait` seconds for as long as
    it runs, so that nothing may wait longer.
    """
    before = running.model_dump()
    running.restarts = new.restarts
    running.limits = new.limits.model_copy(update={"redis_env": running.limits.redis_env})
    running.timeouts, running.logs = new.timeouts, new.logs
    if new.timeouts.longest_wait > longest_wait:
        kept = {name: before["timeouts"][name] for name in _LONG}
        running.timeouts = new.timeouts.model_copy(update=kept)
    running.models = {
        name: _merged(section, new.models[name], partial(served, name))
        if name in new.models
        else section
        for name, section in running.models.items()
    }
    now = running.model_dump()
    return list(_differences(before, now)), list(_differences(now, new.model_dump()))


def _merged(
    running: ModelSection, new: ModelSection, served: Callable[[int], bool]
) -> ModelSection:
    fields: dict[str, Any] = {name: getattr(new, name) for name in _OF_A_MODEL}
    if new.swap != running.swap:
        del fields["versions"]  # which go with the kind of swap
    fields["engines"] = {
        number: section
        for number in running.engines.keys() | new.engines.keys()
        if (section := (running if served(number) else new).engines.get(number)) is not None
    }
    return running.model_copy(update=fields)


def _differences(one: Any, other: Any, path: str = "") -> Iterator[str]:
    """The dotted keys of what differs."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other}, key=str):
            inner = f"{path}.{key}" if path else str(key)
            yield from _differences(one.get(key), other.get(key), inner)
    elif one != other:
        yield path
