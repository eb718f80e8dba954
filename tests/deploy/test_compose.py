"""deploy/compose: a file that Compose would take, and that keeps our rules."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from deploy.conftest import SHAPES, Validators
from deploy.policy import GRACE, UID

Deployed = Callable[[str, int], Path]
ReadSettings = Callable[..., dict[str, Any]]

_VARIABLE = re.compile(r"\$\{(\w+):\?[^}]+\}")


@pytest.fixture
def folder(deployed: Deployed, shape: int) -> Path:
    return deployed("compose", shape) / "deploy/compose"


@pytest.fixture
def compose(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((folder / "compose.yaml").read_text())
    return document


def seconds(written: str) -> float:
    assert written.endswith("s")
    return float(written[:-1])


def test_compose_yaml_fits_the_compose_specification(
    folder: Path, validators: Validators, tmp_path: Path
) -> None:
    text = (folder / "compose.yaml").read_text()
    assert validators.faults("compose", text, tmp_path / "compose.yaml") == []


def test_a_field_that_compose_does_not_know_is_found(
    deployed: Deployed, validators: Validators, tmp_path: Path
) -> None:
    file = deployed("compose", 0) / "deploy/compose/compose.yaml"
    text = file.read_text().replace("start_period:", "start_periode:")
    [fault] = validators.faults("compose", text, tmp_path / "compose.yaml")
    assert "start_periode" in fault


def test_every_service_has_a_fixed_tag_limits_a_health_check_and_loopback_ports(
    compose: dict[str, Any],
) -> None:
    assert set(compose["services"]) == {"serving", "postgres", "redis", "prometheus", "grafana"}
    for name, service in compose["services"].items():
        tag = service["image"].rpartition(":")[2]
        assert re.search(r"\d+\.\d+", tag), name
        assert {"cpus", "memory", "pids"} <= service["deploy"]["resources"]["limits"].keys()
        assert {"test", "interval", "timeout", "retries"} <= service["healthcheck"].keys()
        assert "no-new-privileges:true" in service["security_opt"]
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        assert "privileged" not in service


def test_the_service_is_the_images_own_user_on_a_read_only_root(compose: dict[str, Any]) -> None:
    service = compose["services"]["serving"]
    assert service["user"] == f"{UID}:{UID}"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    written = {v["target"] for v in service["volumes"] if not v.get("read_only")}
    assert written == {"/var/lib/serving"}


def test_secrets_come_from_an_env_file_whose_example_holds_no_value(
    folder: Path, compose: dict[str, Any]
) -> None:
    text = (folder / "compose.yaml").read_text()
    example = (folder / ".env.example").read_text()
    names = dict(
        line.split("=", 1) for line in example.splitlines() if line and not line.startswith("#")
    )
    assert set(names.values()) == {""}
    assert {found[1] for found in _VARIABLE.finditer(text)} == names.keys()
    for service in compose["services"].values():
        for name, value in service["environment"].items() if "environment" in service else ():
            if re.search("PASSWORD|URL|AUTH", name) and name != "BENTOML_HOME":
                assert _VARIABLE.search(value), name
        command = " ".join(service.get("command", []))
        assert _VARIABLE.search(command) is None  # an argument shows in every list of processes
    ignored = (folder / "../../.gitignore").read_text().splitlines()
    assert {".env", "*.key"} <= set(ignored)


def test_compose_names_the_variable_that_env_lacks_and_fills_in_the_others(
    deployed: Deployed, validators: Validators
) -> None:
    file = deployed("compose", 0) / "deploy/compose/compose.yaml"
    values = dict.fromkeys(("POSTGRES_PASSWORD", "REDIS_PASSWORD", "GRAFANA_PASSWORD"), "abc")
    filled, complaint = validators.compose_config(file, values)
    assert complaint == ""
    environment = yaml.safe_load(filled)["services"]["serving"]["environment"]
    assert environment["DATABASE_URL"] == "postgresql://serving:abc@postgres:5432/serving"
    assert environment["REDIS_URL"] == "redis://:abc@redis:6379/0"
    for name in values:
        _, complaint = validators.compose_config(file, {**values, name: ""})
        assert f"{name} is missing a value: write it into .env" in complaint


def test_redis_takes_its_password_from_a_file_that_only_it_reads(
    deployed: Deployed, tmp_path: Path
) -> None:
    file = deployed("compose", 0) / "deploy/compose/compose.yaml"
    shell, option, script = yaml.safe_load(file.read_text())["services"]["redis"]["command"]
    here = script.replace("$$", "$").replace("/tmp/", f"{tmp_path}/")
    command = [shell, option, here.replace("exec redis-server", "exec echo")]
    done = subprocess.run(
        command, env={"REDISCLI_AUTH": "abc"}, capture_output=True, text=True, check=True
    )
    conf = tmp_path / "redis.conf"
    assert done.stdout.strip() == str(conf)
    assert conf.read_text() == 'requirepass abc\nmaxmemory 192mb\nsave ""\n'
    assert conf.stat().st_mode & 0o777 == 0o600


def test_times_are_longer_than_those_of_serving_yaml(
    folder: Path, compose: dict[str, Any], read_settings: ReadSettings
) -> None:
    times = read_settings(folder.parent.parent, folder / "serving.yaml")["timeouts"]
    service = compose["services"]["serving"]
    assert seconds(service["healthcheck"]["start_period"]) >= times["start"] + times["warmup"]
    longest = times["drain"] + GRACE + times["write"] + times["stop"]
    assert seconds(service["stop_grace_period"]) > longest


def test_the_service_reads_its_settings_by_the_names_that_compose_gives(
    folder: Path, compose: dict[str, Any], read_settings: ReadSettings
) -> None:
    settings = read_settings(folder.parent.parent, folder / "serving.yaml")
    service = compose["services"]["serving"]
    environment = service["environment"]
    assert "@postgres:" in environment[settings["database"]["url_env"]]
    assert "@redis:" in environment[settings["limits"]["redis_env"]]
    mounted = {volume["target"] for volume in service["volumes"]}
    assert environment["SERVING_CONFIG"] in mounted


def test_gpus_are_reserved_as_many_as_the_engine_takes(compose: dict[str, Any], shape: int) -> None:
    wanted = int(SHAPES[shape]["gpus_per_replica"])
    resources = compose["services"]["serving"]["deploy"]["resources"]
    found = resources.get("reservations", {}).get("devices", [])
    device = {"driver": "nvidia", "count": wanted, "capabilities": ["gpu"]}
    assert found == ([device] if wanted else [])


def test_what_is_mounted_is_in_the_project(folder: Path, compose: dict[str, Any]) -> None:
    sources = {
        volume["source"]
        for service in compose["services"].values()
        for volume in service.get("volumes", [])
        if volume["type"] == "bind"
    }
    assert "../../observability/dashboard.json" in sources
    assert "../../observability/alerts.yaml" in sources
    assert [source for source in sources if not (folder / source).is_file()] == []
    named = {
        volume["source"]
        for service in compose["services"].values()
        for volume in service.get("volumes", [])
        if volume["type"] == "volume"
    }
    assert named == compose["volumes"].keys()


def test_prometheus_scrapes_as_the_example_in_observability_does(
    folder: Path, compose: dict[str, Any]
) -> None:
    ours = yaml.safe_load((folder / "prometheus.yml").read_text())
    example = yaml.safe_load((folder / "../../observability/prometheus.yml").read_text())
    job = ours["scrape_configs"][0]
    assert job.pop("static_configs") == [{"targets": ["serving:3000"]}]
    assert job["authorization"].pop("credentials_file") == "/run/secrets/metrics.key"
    del example["scrape_configs"][0]["static_configs"]
    del example["scrape_configs"][0]["authorization"]["credentials_file"]
    assert ours == example
    prometheus = compose["services"]["prometheus"]
    assert prometheus["secrets"] == [{"source": "metrics_key", "target": "metrics.key"}]
    targets = {volume["target"] for volume in prometheus["volumes"]}
    assert {f"/etc/prometheus/{name}" for name in ours["rule_files"]} <= targets


def test_grafana_finds_its_prometheus_and_the_dashboard(
    folder: Path, compose: dict[str, Any]
) -> None:
    [source] = yaml.safe_load((folder / "grafana/datasources.yaml").read_text())["datasources"]
    host, port = source["url"].removeprefix("http://").split(":")
    assert compose["services"][host]["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert source["isDefault"] is True
    [provider] = yaml.safe_load((folder / "grafana/dashboards.yaml").read_text())["providers"]
    targets = {volume["target"] for volume in compose["services"]["grafana"]["volumes"]}
    assert f"{provider['options']['path']}/serving.json" in targets
