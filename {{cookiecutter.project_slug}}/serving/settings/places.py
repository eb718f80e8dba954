"""Places that the environment names instead of serving.yaml: an image's folders, a cluster's
mounts, a load test's own."""

from __future__ import annotations

import os
from pathlib import Path

#: Another serving.yaml than the project's.
CONFIG = "SERVING_CONFIG"
#: Another state folder than `service.state`.
STATE = "SERVING_STATE"
#: Another routing.json than the one in the state folder: a mounted one, which may be read-only.
ROUTING = "SERVING_ROUTING"
#: What `.engine` stands for at the beginning of an engine's `home`.
ENGINES = "SERVING_ENGINES"

ALL = (CONFIG, STATE, ROUTING, ENGINES)

_HOME = ".engine"


def config_file(project: Path) -> Path:
    """serving.yaml, that of `project` unless SERVING_CONFIG names another."""
    return Path(os.environ.get(CONFIG) or project / "serving.yaml")


def routing_file(state: Path) -> Path:
    """routing.json, that in the folder `state` unless SERVING_ROUTING names another."""
    return Path(os.path.abspath(os.environ.get(ROUTING) or state / "routing.json"))


def engine_home(home: Path) -> Path:
    """Where an engine's environment is: with SERVING_ENGINES=/app/engine, `.engine` is that folder,
    and `.engine-sglang` /app/engine-sglang. Other homes are what they are."""
    engines = os.environ.get(ENGINES)
    if not engines or not str(home).startswith(_HOME):
        return home
    return Path(os.path.abspath(engines) + str(home)[len(_HOME) :])
