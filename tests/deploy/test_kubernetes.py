"""deploy/kubernetes: every overlay renders, fits Kubernetes' own schemas, and keeps our rules."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from baking import SLUG
from deploy.conftest import SHAPES, Validators, documents
from deploy.policy import GRACE, PROBES, Document, broken_rules, budget, pod_of

Deployed = Callable[[str, int], Path]
ReadSettings = Callable[..., dict[str, Any]]

OVERLAYS = ("cpu", "gpu", "gpu-mig", "gpu-shared", "replicas")
#: An overlay of a user's own, with all the components.
EVERYTHING = """\
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [../replicas]
components: [../../components/keda, ../../components/pull-models]
"""


@pytest.fixture(scope="session")
def rendered_once(
    deployed: Deployed,
    shape: int,
    validators: Validators,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, list[Document]]:
    """All that a project can send to a cluster, by the folder it comes from."""
    folder = tmp_path_factory.mktemp("rendered") / "kubernetes"
    shutil.copytree(deployed("kubernetes", shape) / "deploy/kubernetes", folder)
    (folder / "overlays/everything").mkdir()
    (folder / "overlays/everything/kustomization.yaml").write_text(EVERYTHING)
    names = ["import", *(f"overlays/{name}" for name in (*OVERLAYS, "everything"))]
    return {name: documents(validators.kustomize(folder / name)) for name in names}


@pytest.fixture
def rendered(rendered_once: dict[str, list[Document]]) -> dict[str, list[Document]]:
    """The same, for one test to change."""
    return copy.deepcopy(rendered_once)


def only(found: list[Document], kind: str) -> Document:
    [document] = [document for document in found if document["kind"] == kind]
    return document


def deployment(found: list[Document]) -> tuple[Document, Document, Document]:
    """The Deployment, its pod and the service's container."""
    document = only(found, "Deployment")
    pod = pod_of(document)
    assert pod is not None
    return document, pod, pod["containers"][0]


def test_the_folders_are_the_ones_that_are_tested(deployed: Deployed) -> None:
    folder = deployed("kubernetes", 0) / "deploy/kubernetes"
    assert {path.name for path in (folder / "overlays").iterdir()} == set(OVERLAYS)
    components = re.findall(r"components/([\w-]+)", EVERYTHING)
    assert {path.name for path in (folder / "components").iterdir()} == set(components)


def test_every_overlay_fits_the_schemas_of_kubernetes_and_keda(
    rendered: dict[str, list[Document]], validators: Validators, tmp_path: Path
) -> None:
    distinct = {yaml.safe_dump(document) for found in rendered.values() for document in found}
    everything = "---\n".join(sorted(distinct))
    assert validators.faults("manifests", everything, tmp_path / "all.yaml") == []


def test_a_field_that_kubernetes_does_not_know_is_found(
    deployed: Deployed, validators: Validators, tmp_path: Path
) -> None:
    folder = deployed("kubernetes", 0) / "deploy/kubernetes"
    found = documents(validators.kustomize(folder / "overlays/cpu"))
    scaled = yaml.safe_load((folder / "components/keda/scaledobject.yaml").read_text())
    deployment(found)[1]["containerz"] = []
    scaled["spec"]["pollingIntervall"] = 1
    found.append(scaled)
    faults = validators.faults("manifests", yaml.safe_dump_all(found), tmp_path / "all.yaml")
    assert len(faults) == 2
    assert "'containerz' was unexpected" in "".join(faults)
    assert ".spec.pollingIntervall: no such field" in "".join(faults)


def test_every_pod_keeps_the_rules(rendered: dict[str, list[Document]]) -> None:
    broken = {
        f"{name}: {document['kind']}: {rule}"
        for name, found in rendered.items()
        for document in found
        for rule in broken_rules(document)
    }
    assert broken == set()


def test_a_pod_that_breaks_the_rules_is_found(deployed: Deployed, validators: Validators) -> None:
    folder = deployed("kubernetes", 0) / "deploy/kubernetes/overlays/cpu"
    document, pod, container = deployment(documents(validators.kustomize(folder)))
    container["image"] = "registry.example.com/chat:latest"
    del pod["securityContext"], container["startupProbe"], container["resources"]["limits"]["cpu"]
    container["env"].append({"name": "DATABASE_URL", "value": "postgresql://u:p@h/n"})
    container["volumeMounts"].append({"name": "node", "mountPath": "/var/lib/serving/a/b"})
    pod["volumes"].append({"name": "node", "hostPath": {"path": "/"}})
    assert list(broken_rules(document)) == [
        "volume node is a folder of the node",
        "container serving: image registry.example.com/chat:latest has no fixed tag",
        "container serving: cpu has no request or no limit",
        "container serving: /var/lib/serving/a is made by root",
        "container serving: runAsNonRoot is not True",
        "container serving: runAsUser is not 1034",
        "container serving: seccompProfile is not {'type': 'RuntimeDefault'}",
        "container serving: DATABASE_URL is written here",
        "there is no startupProbe",
    ]


def test_no_secret_is_rendered_and_the_example_holds_no_value(
    rendered: dict[str, list[Document]], deployed: Deployed, shape: int
) -> None:
    kinds = {document["kind"] for found in rendered.values() for document in found}
    assert "Secret" not in kinds
    base = deployed("kubernetes", shape) / "deploy/kubernetes/base"
    example = yaml.safe_load((base / "secret.example.yaml").read_text())
    assert set(example["stringData"].values()) == {""}
    asked = {
        variable["valueFrom"]["secretKeyRef"]["key"]: variable["valueFrom"]["secretKeyRef"]["name"]
        for found in (rendered["overlays/cpu"], rendered["import"])
        for document in found
        for container in (pod_of(document) or {}).get("containers", [])
        for variable in container["env"]
        if "valueFrom" in variable
    }
    assert asked == dict.fromkeys(example["stringData"], example["metadata"]["name"])


def test_budgets_are_longer_than_the_times_of_serving_yaml(
    rendered: dict[str, list[Document]], deployed: Deployed, shape: int, read_settings: ReadSettings
) -> None:
    project = deployed("kubernetes", shape)
    base = project / "deploy/kubernetes/base"
    times = read_settings(project, base / "serving.yaml", base / "routing.json")["timeouts"]
    for name in OVERLAYS:
        document, pod, container = deployment(rendered[f"overlays/{name}"])
        startup, readiness, liveness = (container[probe] for probe in PROBES)
        assert budget(startup) >= times["start"] + times["warmup"]
        assert startup["httpGet"]["path"] == readiness["httpGet"]["path"] == "/readyz"
        assert budget(readiness) < budget(liveness)
        assert liveness["httpGet"]["path"] == "/livez"
        assert document["spec"]["progressDeadlineSeconds"] > budget(startup)
        leaving = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        longest = leaving + times["drain"] + GRACE + times["write"] + times["stop"]
        assert pod["terminationGracePeriodSeconds"] > longest
        assert leaving >= budget(readiness)


def test_the_service_reads_its_settings_by_the_names_that_the_pod_gives(
    rendered: dict[str, list[Document]], deployed: Deployed, shape: int, read_settings: ReadSettings
) -> None:
    project = deployed("kubernetes", shape)
    base = project / "deploy/kubernetes/base"
    settings = read_settings(project, base / "serving.yaml", base / "routing.json")
    _, pod, container = deployment(rendered["overlays/replicas"])
    variables = {variable["name"]: variable for variable in container["env"]}
    assert settings["database"]["url_env"] in variables
    assert settings["limits"]["redis_env"] in variables
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    maps = {
        document["metadata"]["name"]: document["data"]
        for document in rendered["overlays/replicas"]
        if document["kind"] == "ConfigMap"
    }
    for variable in ("SERVING_CONFIG", "SERVING_ROUTING"):
        folder, _, file = variables[variable]["value"].rpartition("/")
        assert "subPath" not in mounts[folder]  # it would not follow the ConfigMap
        assert file in maps[volumes[mounts[folder]["name"]]["configMap"]["name"]]
    for variable in ("SERVING_STATE", "BENTOML_HOME"):
        assert variables[variable]["value"].startswith("/var/lib/serving/")
    assert "emptyDir" in volumes[mounts["/var/lib/serving"]["name"]]


def test_settings_roll_the_pods_and_routing_does_not(
    rendered: dict[str, list[Document]],
) -> None:
    names = [
        document["metadata"]["name"]
        for document in rendered["overlays/cpu"]
        if document["kind"] == "ConfigMap"
    ]
    assert re.fullmatch(rf"{SLUG}-config-\w{{10}}", names[0])
    assert names[1:] == [f"{SLUG}-routing"]


def test_what_selects_pods_selects_those_of_the_deployment(
    rendered: dict[str, list[Document]],
) -> None:
    for name in OVERLAYS:
        found = rendered[f"overlays/{name}"]
        document, _, container = deployment(found)
        labels = document["spec"]["template"]["metadata"]["labels"]
        service = only(found, "Service")["spec"]
        assert service["selector"].items() <= labels.items()
        assert service["ports"][0]["targetPort"] == container["ports"][0]["name"]
        assert only(found, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
        policies = {
            policy["metadata"]["name"]: policy["spec"]["podSelector"]["matchLabels"]
            for policy in found
            if policy["kind"] == "NetworkPolicy"
        }
        assert policies[SLUG].items() <= labels.items()
        assert not policies[f"{SLUG}-fetch"].items() <= labels.items()
    [job] = [document for document in rendered["import"] if document["kind"] == "Job"]
    importing = job["spec"]["template"]["metadata"]["labels"]
    assert policies[f"{SLUG}-fetch"].items() <= importing.items()
    assert not service["selector"].items() <= importing.items()


def test_the_import_fills_the_store_that_the_service_reads(
    rendered: dict[str, list[Document]],
) -> None:
    claim = only(rendered["import"], "PersistentVolumeClaim")
    assert claim == only(rendered["overlays/cpu"], "PersistentVolumeClaim")
    _, pod, container = deployment(rendered["overlays/cpu"])
    store = {"claimName": claim["metadata"]["name"]}
    assert [v["persistentVolumeClaim"] for v in pod["volumes"] if v["name"] == "models"] == [store]
    job = pod_of(only(rendered["import"], "Job"))
    assert job is not None
    [filled] = [m for m in job["containers"][0]["volumeMounts"] if m["name"] == "models"]
    [read] = [m for m in container["volumeMounts"] if m["name"] == "models"]
    assert read["mountPath"] == f"{filled['mountPath']}/{read['subPath']}"
    assert read["readOnly"] is True
    assert job["containers"][0]["image"] == container["image"]


def test_gpus_are_those_that_the_engine_takes(
    rendered: dict[str, list[Document]], shape: int
) -> None:
    wanted = int(SHAPES[shape]["gpus_per_replica"])

    def devices(overlay: str) -> dict[str, Any]:
        limits = deployment(rendered[f"overlays/{overlay}"])[2]["resources"]["limits"]
        return {name: count for name, count in limits.items() if name.startswith("nvidia.com/")}

    assert devices("cpu") == {}
    assert devices("gpu") == {"nvidia.com/gpu": str(wanted or 1)}
    assert devices("gpu-mig") == {"nvidia.com/mig-2g.20gb": "1"}
    assert devices("gpu-shared") == {"nvidia.com/gpu.shared": "1"}
    assert devices("replicas") == (devices("gpu") if wanted else {})


def test_one_autoscaler_scales_on_the_queue(rendered: dict[str, list[Document]]) -> None:
    found = rendered["overlays/replicas"]
    scaler = only(found, "HorizontalPodAutoscaler")["spec"]
    document = only(found, "Deployment")
    assert scaler["scaleTargetRef"]["name"] == document["metadata"]["name"]
    assert "replicas" not in document["spec"]
    assert scaler["metrics"][0]["pods"]["metric"]["name"] == "serving_queue_length"
    found = rendered["overlays/everything"]
    assert "HorizontalPodAutoscaler" not in {document["kind"] for document in found}
    keda = only(found, "ScaledObject")["spec"]
    assert keda["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == scaler["behavior"]
    assert (keda["minReplicaCount"], keda["maxReplicaCount"]) == (2, 8)
    trigger = keda["triggers"][0]["metadata"]
    assert trigger["threshold"] == scaler["metrics"][0]["pods"]["target"]["averageValue"]


def test_a_pod_with_its_own_models_needs_no_shared_volume(
    rendered: dict[str, list[Document]],
) -> None:
    found = rendered["overlays/everything"]
    assert "PersistentVolumeClaim" not in {document["kind"] for document in found}
    document, pod, container = deployment(found)
    assert "persistentVolumeClaim" not in json.dumps(pod["volumes"])
    [pull] = pod["initContainers"]
    assert pull["image"] == container["image"]
    assert pull["command"][:3] == ["serving", "models", "pull"]
    labels = document["spec"]["template"]["metadata"]["labels"]
    assert labels["fetches-models"] == "true"
