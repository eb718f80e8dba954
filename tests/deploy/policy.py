"""What every pod of ours must be, whoever's schema it also fits."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

Document = dict[str, Any]

#: A registry, a name, and a tag that says which; no digest is known before an image is built.
_IMAGE = re.compile(r"[\w.-]+(/[\w.-]+)+:(?!latest$)[\w.-]+")
UID = 1034
#: Seconds for BentoML's own stop, in the image's command.
GRACE = 5
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


def pod_of(document: Document) -> Document | None:
    """The pod that an object makes, or None."""
    spec = document.get("spec", {})
    pod: Document | None = spec.get("predictor") or spec.get("template", {}).get("spec")
    return pod


def broken_rules(document: Document) -> Iterator[str]:
    """The rules that the pods of a Kubernetes or KServe object break; nothing for others."""
    pod = pod_of(document)
    if pod is None:
        return
    if pod.get("automountServiceAccountToken") is not False and document["kind"] in (
        "Deployment",
        "Job",
    ):
        yield "the pod gets a token of the cluster's API"
    for forbidden in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(forbidden):
            yield f"{forbidden} is on"
    for volume in pod.get("volumes", []):
        if "hostPath" in volume:
            yield f"volume {volume['name']} is a folder of the node"
        if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
            yield f"volume {volume['name']} may fill the node"
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        for fault in _container(container, pod.get("securityContext", {})):
            yield f"container {container['name']}: {fault}"
    if document["kind"] != "Job":
        for probe in PROBES:
            if probe not in pod["containers"][0]:
                yield f"there is no {probe}"


def _made_by_root(mounts: list[str]) -> Iterator[str]:
    """A mount below another one is made by the container's runtime, with the folders on the way to
    it: these belong to root, and our user cannot write to them."""
    for path in mounts:
        parent = path.rpartition("/")[0]
        if parent not in mounts and any(parent.startswith(f"{other}/") for other in mounts):
            yield f"{parent} is made by root"


def _container(container: Document, of_pod: Document) -> Iterator[str]:
    if not _IMAGE.fullmatch(container["image"]):
        yield f"image {container['image']} has no fixed tag"
    limits, requests = (container.get("resources", {}).get(k, {}) for k in ("limits", "requests"))
    for name in ("cpu", "memory", "ephemeral-storage"):
        if name not in limits or name not in requests:
            yield f"{name} has no request or no limit"
    yield from _made_by_root([mount["mountPath"] for mount in container["volumeMounts"]])
    security = {**of_pod, **container.get("securityContext", {})}
    wanted = {
        "runAsNonRoot": True,
        "runAsUser": UID,
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    for name, value in wanted.items():
        if security.get(name) != value:
            yield f"{name} is not {value}"
    for variable in container.get("env", []):
        if re.search(r"URL$|TOKEN|PASSWORD|SECRET", variable["name"]) and re.search(
            r"//[^/]*@", variable.get("value", "")
        ):
            yield f"{variable['name']} is written here"


def budget(probe: Document) -> int:
    """Seconds from a container's start until the probe gives up."""
    return int(
        probe.get("initialDelaySeconds", 0) + probe["periodSeconds"] * probe["failureThreshold"]
    )
