"""deploy/kserve: an InferenceService that KServe's own models take, and that keeps our rules."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from deploy.conftest import SHAPES, Validators, documents
from deploy.policy import GRACE, PROBES, Document, broken_rules, budget, pod_of

Deployed = Callable[[str, int], Path]
ReadSettings = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def rendered_once(deployed: Deployed, shape: int, validators: Validators) -> list[Document]:
    """All that goes to the cluster, the import's job included."""
    folder = deployed("kserve", shape) / "deploy/kserve"
    job = documents((folder / "import-job.yaml").read_text())
    return documents(validators.kustomize(folder)) + job


@pytest.fixture
def rendered(rendered_once: list[Document]) -> list[Document]:
    """The same, for one test to change."""
    return copy.deepcopy(rendered_once)


def of_kind(found: list[Document], kind: str) -> list[Document]:
    return [document for document in found if document["kind"] == kind]


def predictor(found: list[Document]) -> Document:
    [service] = of_kind(found, "InferenceService")
    pod = pod_of(service)
    assert pod is not None
    return pod


def test_everything_fits_the_models_of_kserve_and_the_schemas_of_kubernetes(
    rendered: list[Document], validators: Validators, tmp_path: Path
) -> None:
    text = yaml.safe_dump_all(rendered)
    assert validators.faults("manifests", text, tmp_path / "all.yaml") == []


def test_a_field_that_kserve_does_not_know_is_found(
    deployed: Deployed, validators: Validators, tmp_path: Path
) -> None:
    rendered = documents(validators.kustomize(deployed("kserve", 0) / "deploy/kserve"))
    pod = predictor(rendered)
    pod["canaryTrafficPercents"] = pod.pop("canaryTrafficPercent")
    pod["minReplicas"] = "0"
    text = yaml.safe_dump_all(rendered)
    faults = "".join(validators.faults("manifests", text, tmp_path / "all.yaml"))
    assert ".spec.predictor.canaryTrafficPercents: no such field" in faults
    assert ".spec.predictor.minReplicas: must be int, not '0'" in faults


def test_every_pod_keeps_the_rules(rendered: list[Document]) -> None:
    assert [rule for document in rendered for rule in broken_rules(document)] == []
    [account] = of_kind(rendered, "ServiceAccount")
    assert account["automountServiceAccountToken"] is False
    assert predictor(rendered)["serviceAccountName"] == account["metadata"]["name"]


def test_nothing_is_asked_for_that_knative_refuses(rendered: list[Document]) -> None:
    pod = predictor(rendered)
    refused = {"terminationGracePeriodSeconds", "automountServiceAccountToken", "initContainers"}
    assert not refused & pod.keys()
    [container] = pod["containers"]
    assert "lifecycle" not in container
    assert container["name"] == "kserve-container"
    [port] = container["ports"]
    for probe in PROBES:
        assert container[probe]["httpGet"]["port"] == port["containerPort"]


def test_it_scales_to_zero_and_can_try_a_revision_on_a_part_of_the_traffic(
    rendered: list[Document],
) -> None:
    pod = predictor(rendered)
    assert pod["minReplicas"] == 0
    assert pod["maxReplicas"] > 1
    assert pod["canaryTrafficPercent"] == 100
    [service] = of_kind(rendered, "InferenceService")
    assert service["metadata"]["annotations"] == {"serving.kserve.io/deploymentMode": "Knative"}


def test_budgets_are_longer_than_the_times_of_serving_yaml(
    rendered: list[Document], deployed: Deployed, shape: int, read_settings: ReadSettings
) -> None:
    project = deployed("kserve", shape)
    folder = project / "deploy/kserve"
    times = read_settings(project, folder / "serving.yaml", folder / "routing.json")["timeouts"]
    pod = predictor(rendered)
    [container] = pod["containers"]
    assert budget(container["startupProbe"]) >= times["start"] + times["warmup"]
    deadline = pod["annotations"]["serving.knative.dev/progress-deadline"]
    assert int(deadline.removesuffix("s")) > budget(container["startupProbe"])
    assert pod["timeout"] >= times["answer"]
    assert pod["timeout"] > times["drain"] + GRACE + times["write"] + times["stop"]


def test_settings_make_a_revision_and_routing_does_not(rendered: list[Document]) -> None:
    maps = {document["metadata"]["name"]: document for document in of_kind(rendered, "ConfigMap")}
    volumes = {volume["name"]: volume for volume in predictor(rendered)["volumes"]}
    config, routing = (volumes[name]["configMap"]["name"] for name in ("config", "routing"))
    assert maps.keys() == {config, routing}
    assert config.count("-") > routing.count("-")  # the hash
    assert routing.endswith("-routing")
    for mount in predictor(rendered)["containers"][0]["volumeMounts"]:
        assert "subPath" not in mount or mount["name"] == "models"


def test_secrets_are_named_and_none_is_rendered(
    rendered: list[Document], deployed: Deployed, shape: int
) -> None:
    assert of_kind(rendered, "Secret") == []
    folder = deployed("kserve", shape) / "deploy/kserve"
    example = yaml.safe_load((folder / "secret.example.yaml").read_text())
    assert set(example["stringData"].values()) == {""}
    asked = [
        variable["valueFrom"]["secretKeyRef"]
        for variable in predictor(rendered)["containers"][0]["env"]
        if "valueFrom" in variable
    ]
    assert {reference["name"] for reference in asked} == {example["metadata"]["name"]}
    assert {reference["key"] for reference in asked} == {"DATABASE_URL", "REDIS_URL"}


def test_gpus_are_those_that_the_engine_takes(rendered: list[Document], shape: int) -> None:
    wanted = SHAPES[shape]["gpus_per_replica"]
    limits = predictor(rendered)["containers"][0]["resources"]["limits"]
    assert limits.get("nvidia.com/gpu", "0") == wanted


def test_the_import_fills_the_store_with_the_services_own_image(rendered: list[Document]) -> None:
    [job] = of_kind(rendered, "Job")
    pod = pod_of(job)
    assert pod is not None
    assert pod["containers"][0]["image"] == predictor(rendered)["containers"][0]["image"]
    [claim] = of_kind(rendered, "PersistentVolumeClaim")
    for volumes in (pod["volumes"], predictor(rendered)["volumes"]):
        [models] = [volume for volume in volumes if volume["name"] == "models"]
        assert models["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
