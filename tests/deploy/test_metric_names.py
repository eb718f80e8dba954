"""What the deployment files ask Prometheus for is what the service tells it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

#: A metric in a query, a rule or an autoscaler; `serving_` begins no other word in these files.
_NAME = re.compile(r"\bserving_\w+")


@pytest.mark.parametrize("target", ["compose", "kubernetes", "kserve", "bentocloud"])
def test_every_metric_that_is_named_is_one_of_the_services(
    deployed: Callable[[str, int], Path], target: str
) -> None:
    project = deployed(target, 0)
    told = "".join(path.read_text() for path in (project / "serving/gateway").glob("*.py"))
    files = [path for path in (project / "deploy" / target).rglob("*") if path.is_file()]
    named = {name for path in files for name in _NAME.findall(path.read_text())}
    assert {name for name in named if f'"{name}"' not in told} == set()
    assert named == ({"serving_queue_length"} if target == "kubernetes" else set())
