"""deploy/ray: sizes and times that fit serving.yaml. What Ray says to it is in tests/ray."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Deployed = Callable[[str, int], Path]
ReadSettings = Callable[..., dict[str, Any]]


@pytest.fixture
def project(deployed: Deployed, shape: int) -> Path:
    return deployed("ray", shape)


@pytest.fixture
def settings(project: Path, read_settings: ReadSettings) -> dict[str, Any]:
    return read_settings(project, project / "deploy/ray/serving.yaml")


@pytest.fixture
def config(project: Path) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((project / "deploy/ray/serve.yaml").read_text("utf-8"))
    return config


@pytest.fixture
def gateway(config: dict[str, Any]) -> dict[str, Any]:
    """The one deployment."""
    [application] = config["applications"]
    [gateway] = application["deployments"]
    assert isinstance(gateway, dict)
    return gateway


def test_the_settings_want_keys_and_name_the_engine_that_make_install_made(
    project: Path, settings: dict[str, Any]
) -> None:
    assert settings["auth"]["mode"] == "keys"
    assert settings["database"]["url_env"] == "DATABASE_URL"
    assert settings["limits"]["redis_env"] == "REDIS_URL"
    assert Path(settings["engine"]["home"]).resolve() == (project / ".engine").resolve()


def test_a_replica_gets_the_gpus_that_its_engine_takes(
    gateway: dict[str, Any], settings: dict[str, Any]
) -> None:
    gpus = settings["engine"]["gpus"]
    assert gateway["ray_actor_options"].get("num_gpus", 0) == gpus
    [bundle] = gateway["placement_group_bundles"]
    assert bundle.get("GPU", 0) == gpus
    assert bundle["CPU"] == gateway["ray_actor_options"]["num_cpus"]


def test_times_are_longer_than_those_of_serving_yaml(
    config: dict[str, Any], gateway: dict[str, Any], settings: dict[str, Any]
) -> None:
    times = settings["timeouts"]
    assert gateway["graceful_shutdown_timeout_s"] >= times["drain"] + times["stop"]
    scaling = gateway["autoscaling_config"]
    assert scaling["downscale_delay_s"] >= times["start"] + times["warmup"]
    assert config["http_options"]["keep_alive_timeout_s"] == times["idle"]


def test_the_queue_is_the_services_own(gateway: dict[str, Any], settings: dict[str, Any]) -> None:
    limits = settings["limits"]
    assert gateway["max_ongoing_requests"] == limits["in_flight"] + limits["queue"]


def test_one_replica_answers_while_another_is_replaced(gateway: dict[str, Any]) -> None:
    assert gateway["autoscaling_config"]["min_replicas"] == 2
    assert gateway["max_surge_percent"] > 0


def test_no_secret_and_no_address_of_one_stands_in_the_config(config: dict[str, Any]) -> None:
    [application] = config["applications"]
    assert list(application["runtime_env"]["env_vars"]) == ["PYTHONPATH"]
