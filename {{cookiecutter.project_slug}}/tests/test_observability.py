"""The files in observability/: what Prometheus and Grafana would make of them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml
from gateway_client import settings
from live_service import PROJECT, Service, chat_body
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from promtool import promtool

from serving.accounts.ledger import Ledger
from serving.contract.events import Delta, EngineEvent, Usage
from serving.gateway import shadow
from serving.gateway.limits import Limiter
from serving.gateway.metrics import Figures
from serving.gateway.observed import Observed
from serving.gateway.upkeep import Upkeep
from serving.runtime.outcome import Outcome
from serving.runtime.replica import State

FOLDER = PROJECT / "observability"
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "dashboard.json").read_text("utf-8"))
RULES: list[dict[str, Any]] = yaml.safe_load((FOLDER / "alerts.yaml").read_text("utf-8"))["groups"][
    0
]["rules"]
#: What every series has that Prometheus took from a service, and what it makes itself.
SCRAPED = {"job", "instance"}
OF_PROMETHEUS = {"up"}

_STRINGS = re.compile(r'"[^"]*"')
_BRACES = re.compile(r"(?P<name>\w+)\{(?P<matchers>[^}]*)\}")
_GROUPING = re.compile(r"\bby \((?P<labels>[^)]*)\)")
_NAMES = re.compile(r"\b(?:(?:serving|process|bentoml|vllm)_\w+|up)\b")


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def queries() -> list[str]:
    """Those of the dashboard, with all that Grafana fills in."""
    filled = {"$model": ".*", "$version": ".*", "$__rate_interval": "1m"}
    found = [target["expr"] for panel in panels() for target in panel["targets"]]
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            found.append(label_values(variable)[0])
    for name, value in filled.items():
        found = [query.replace(name, value) for query in found]
    return found


def label_values(variable: dict[str, Any]) -> tuple[str, str]:
    """Of which series a variable of the dashboard has which label's values."""
    asked = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
    assert asked is not None
    return asked[1], asked[2]


def expressions() -> list[str]:
    return [*queries(), *(rule["expr"] for rule in RULES)]


def names(expression: str) -> set[str]:
    return set(_NAMES.findall(_STRINGS.sub('""', expression)))


def labels(expression: str) -> set[str]:
    """All that it matches or groups by."""
    found: set[str] = set()
    for braces in _BRACES.finditer(expression):
        found |= set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", _STRINGS.sub('""', braces["matchers"])))
    for grouping in _GROUPING.finditer(expression):
        found |= {label.strip() for label in grouping["labels"].split(",")}
    return found


def exported() -> dict[str, set[str]]:
    """The labels of every series, by its name: of each kind there is one here."""
    outcome = Outcome("chat", 3, "production", "vllm", queued=0.1)
    outcome.note([EngineEvent([Delta(0, "a")])])
    outcome.note([EngineEvent([Delta(0, "b")], usage=Usage(1, 2, 3))])
    observed = Observed()
    observed.answered(outcome.end(failed=False), 200)
    observed.refused("overloaded")
    engine = ("running", "waiting", "kv_cache_usage")
    tokens = ("prompt_tokens", "generated_tokens", "cached_tokens")
    replica = SimpleNamespace(
        version=SimpleNamespace(name="chat", number=3),
        engine=SimpleNamespace(name="vllm"),
        figures=dict.fromkeys((*engine, *tokens), 1.0),
        state=State.READY,
        in_flight=0,
        index=0,
    )
    served: Any = SimpleNamespace(
        replicas=[replica],
        states={("chat", 3): State.READY},
        transitions={("chat", 3, State.READY): 1},
        queues={("chat", 3): 0},
        swaps={("chat", "done"): 1},
    )
    limiter, ledger = Limiter(settings()), Ledger(settings(), cast(Any, None))
    limiter.refusals["tokens"] += 1
    for metric in shadow.METRICS:
        metric.labels(*("a-test",) * 3)
    registry = CollectorRegistry()
    collectors = (
        observed,
        Figures(served, {("chat", "passed"): 1}),
        Upkeep(ledger, limiter),
        *shadow.METRICS,
    )
    for collector in collectors:
        registry.register(collector)
    found: dict[str, set[str]] = {}
    for family in registry.collect():
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


# What the service exports.


@pytest.fixture(scope="module")
def page(serve: Callable[..., Service]) -> str:
    """The metrics of a service that has answered, and refused."""
    with serve().start().wait_ready() as service:
        assert service.chat("Hello").status_code == 200
        with service.stream("Hello") as stream:
            assert stream.rest()
        body = chat_body("Hello", model="nobody")
        assert service.http.post("/v1/chat/completions", json=body).status_code == 404
        return service.http.get("/metrics").text


@pytest.mark.integration
def test_every_metric_of_dashboard_and_alerts_is_one_that_the_service_exports(page: str) -> None:
    families = {family.name: family for family in text_string_to_metric_families(page)}
    endings = {
        "counter": ("_total",),
        "histogram": ("_bucket", "_count", "_sum"),
        "gauge": ("",),
    }
    series = {
        family.name + ending for family in families.values() for ending in endings[family.type]
    }
    asked = {name for expression in expressions() for name in names(expression)}
    assert len(asked) >= 30
    assert asked - series == OF_PROMETHEUS


@pytest.mark.integration
def test_the_metrics_are_as_prometheus_wants_them(page: str) -> None:
    assert "serving_time_to_first_token_seconds_bucket{" in page
    promtool("check", "metrics", given=page)


def test_every_label_of_dashboard_and_alerts_is_one_of_its_metrics() -> None:
    series = exported()
    for expression in expressions():
        # Grouping happens over all that is in the expression, matching in one series' own braces.
        asked = names(expression) - OF_PROMETHEUS
        own = {name for name in asked if not name.startswith("process_")}
        known = set().union(*(series[name] for name in own), SCRAPED)
        assert labels(expression) <= known, expression
        for braces in _BRACES.finditer(expression):
            if braces["name"] in series:
                matched = labels(braces[0])
                assert matched <= series[braces["name"]] | SCRAPED, expression
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            selector, label = label_values(variable)
            assert label in series[selector.partition("{")[0]]


def test_no_query_asks_by_key_or_path() -> None:
    asked = {label for expression in expressions() for label in labels(expression)}
    assert asked & {"key", "path", "user", "client", "endpoint"} == set()


# What promtool says.


def test_the_alerts_do_what_their_tests_say() -> None:
    promtool("check", "rules", str(FOLDER / "alerts.yaml"))
    promtool("test", "rules", str(FOLDER / "alerts_test.yaml"))


def test_each_alert_has_a_test_in_which_it_fires() -> None:
    tests = yaml.safe_load((FOLDER / "alerts_test.yaml").read_text("utf-8"))["tests"]
    fired = {
        case["alertname"]
        for test in tests
        for case in test["alert_rule_test"]
        if case.get("exp_alerts")
    }
    quiet = {
        case["alertname"]
        for test in tests
        for case in test["alert_rule_test"]
        if not case.get("exp_alerts")
    }
    assert fired == quiet == {rule["alert"] for rule in RULES}


def test_each_alert_says_how_bad_it_is_and_what_to_do() -> None:
    for rule in RULES:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert set(rule["annotations"]) == {"summary", "description"}


def test_prometheus_takes_the_example_configuration(tmp_path: Path) -> None:
    for name in ("prometheus.yml", "alerts.yaml"):
        shutil.copy(FOLDER / name, tmp_path)
    (tmp_path / "metrics.key").write_text("sk-a-key-of-the-tests")
    promtool("check", "config", str(tmp_path / "prometheus.yml"))


def test_every_query_of_the_dashboard_is_promql(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{at}", "expr": query} for at, query in enumerate(queries())]
    assert len(rules) > 40
    path = tmp_path / "panels.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}), "utf-8")
    promtool("check", "rules", str(path))


# What Grafana would trip over.


def test_the_dashboard_is_whole() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in panels():
        assert panel["title"]
        assert panel["description"]
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}
    variables = [variable["name"] for variable in DASHBOARD["templating"]["list"]]
    assert variables == ["datasource", "model", "version"]
    used = set(re.findall(r"\$(\w+)", " ".join(t["expr"] for p in panels() for t in p["targets"])))
    assert used == {"model", "version", "__rate_interval"}


def test_no_panel_lies_upon_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        columns = range(place["x"], place["x"] + place["w"])
        rows = range(place["y"], place["y"] + place["h"])
        cells = {(x, y) for x in columns for y in rows}
        assert max(columns) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
