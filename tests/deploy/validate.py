"""Checks deployment files by the schemas of those who will read them. Runs in the environment of
`make validators`.

    python tests/deploy/validate.py {manifests,compose} FILE

Prints one fault a line, and ends with 1 when there is any. An unknown field is a fault everywhere.
"""

from __future__ import annotations

import importlib.util
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

#: How the generated Python clients write a list's or a dictionary's type.
_LIST, _DICT = re.compile(r"list\[(.+)\]"), re.compile(r"dict\(str, (.+)\)")
_PLAIN: dict[str, Any] = {"str": str, "int": int, "bool": bool, "float": (int, float)}


def manifests(text: str) -> Iterator[str]:
    """The faults of Kubernetes objects, each by its API's own schema."""
    for document in filter(None, yaml.safe_load_all(text)):
        api = document.get("apiVersion", "")
        place = f"{document.get('kind')} {document.get('metadata', {}).get('name')}"
        check = kserve if "serving.kserve.io" in api else keda if "keda.sh" in api else kubernetes
        for fault in check(document):
            yield f"{place}: {fault}"


def kubernetes(document: dict[str, Any]) -> Iterator[str]:
    import kubernetes_validate

    try:
        kubernetes_validate.validate(document, "1.37.0", strict=True)
    except kubernetes_validate.ValidationError as error:
        yield f"{'.'.join(map(str, error.path))}: {error.message}"
    except kubernetes_validate.SchemaNotFoundError as error:
        yield error.message


def keda(document: dict[str, Any]) -> Iterator[str]:
    """The models take unknown fields in silence, so what they hold is compared with what came."""
    from cloudcoil.models.keda import v1alpha1

    try:
        model = getattr(v1alpha1, document["kind"]).model_validate(document)
    except ValueError as error:
        yield " ".join(str(error).split())
        return
    yield from _lost(document, model.model_dump(mode="json", by_alias=True), "")


def _lost(given: Any, kept: Any, place: str) -> Iterator[str]:
    if isinstance(given, dict) and isinstance(kept, dict):
        for key, value in given.items():
            if key not in kept:
                yield f"{place}.{key}: no such field"
            else:
                yield from _lost(value, kept[key], f"{place}.{key}")
    elif isinstance(given, list) and isinstance(kept, list):
        for number, (old, new) in enumerate(zip(given, kept, strict=True)):
            yield from _lost(old, new, f"{place}[{number}]")


def kserve(document: dict[str, Any]) -> Iterator[str]:
    """KServe's SDK would import its whole server; its models are enough."""
    spec = importlib.util.find_spec("kserve")
    assert spec is not None
    package = types.ModuleType("kserve")
    package.__path__ = list(spec.submodule_search_locations or [])
    sys.modules["kserve"] = package
    import kserve.models as own
    from kubernetes.client import models as common

    def model(name: str) -> Any:
        return getattr(own, name, None) or getattr(common, name, None)

    def check(value: Any, kind: str, place: str) -> Iterator[str]:
        if found := _LIST.fullmatch(kind):
            if not isinstance(value, list):
                yield f"{place}: must be a list"
                return
            for number, item in enumerate(value):
                yield from check(item, found[1], f"{place}[{number}]")
        elif found := _DICT.fullmatch(kind):
            for key, item in value.items():
                yield from check(item, found[1], f"{place}.{key}")
        elif kind in _PLAIN:
            if not isinstance(value, _PLAIN[kind]) or isinstance(value, bool) != (kind == "bool"):
                yield f"{place}: must be {kind}, not {value!r}"
        elif (described := model(kind)) is not None:
            names = {spelled: name for name, spelled in described.attribute_map.items()}
            arguments = {}
            for key, item in value.items():
                if key not in names:
                    yield f"{place}.{key}: no such field"
                    continue
                arguments[names[key]] = item
                yield from check(item, described.openapi_types[names[key]], f"{place}.{key}")
            try:
                described(**arguments)  # which refuses a required field that is missing
            except ValueError as error:
                yield f"{place}: {' '.join(str(error).split())}"
        # else: a quantity, a port or free form, which both are written as they are

    yield from check(document, f"V1beta1{document['kind']}", "")


def compose(text: str) -> Iterator[str]:
    from compose_spec import PyCompose

    try:
        PyCompose.from_yaml(yaml.safe_dump(yaml.safe_load(text)))  # it knows no `<<: *anchor`
    except ValueError as error:
        yield str(error)


def main() -> int:
    kind, file = sys.argv[1:]
    faults = list({"manifests": manifests, "compose": compose}[kind](Path(file).read_text("utf-8")))
    print(*faults, sep="\n", end="")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
