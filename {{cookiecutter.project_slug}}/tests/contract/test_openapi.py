"""The committed OpenAPI document is the one the types say, and clients' tools can read it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openapi_spec_validator

from serving.contract.openapi import document

COMMITTED = Path(__file__).parents[2] / "openapi.json"


def references(node: Any) -> set[str]:
    if isinstance(node, dict):
        own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
        return own.union(*map(references, node.values()))
    if isinstance(node, list):
        return set().union(*map(references, node))
    return set()


def test_a_change_of_the_contract_shows_in_the_committed_document() -> None:
    assert json.loads(COMMITTED.read_text("utf-8")) == document(), (
        "the contract changed; if that is meant: python -m serving.contract.openapi > openapi.json"
    )


def test_every_reference_leads_somewhere() -> None:
    described = document()
    schemas = {f"#/components/schemas/{name}" for name in described["components"]["schemas"]}
    assert references(described) <= schemas


def test_the_document_is_valid_openapi() -> None:
    openapi_spec_validator.validate(document())


def test_every_documented_failure_has_the_one_envelope() -> None:
    for path in document()["paths"].values():
        for operation in path.values():
            for status, response in operation["responses"].items():
                if status != "200":
                    schema = response["content"]["application/json"]["schema"]
                    assert schema == {"$ref": "#/components/schemas/ErrorReply"}


def test_no_engine_is_named_in_the_contract() -> None:
    text = json.dumps(document()).lower()
    assert not any(engine in text for engine in ("vllm", "sglang", "transformers"))
