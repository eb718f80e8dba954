"""JSON schemas that clients send: for a tool's parameters, or for the form of an answer.

Engines differ in what they do with a broken one (an error, a failed stream, a guess), so it is
refused here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any
from urllib.parse import unquote

import jsonschema_rs
from pydantic import AfterValidator

#: Values in one schema. A grammar made of more takes an engine seconds to compile.
MAX_SIZE = 5000
#: Values in all the tools of a request. Reading more would hold up other requests for long.
MAX_TOOLS_SIZE = 20_000


def _checked(schema: dict[str, Any]) -> dict[str, Any]:
    """Raises ValueError for what is no JSON schema (draft 2020-12) or refers to another one."""
    for size, (key, value) in enumerate(_walk(schema)):
        if size >= MAX_SIZE:
            raise ValueError(f"the JSON schema has over {MAX_SIZE} values; make it smaller")
        if key in ("$ref", "$dynamicRef") and isinstance(value, str):
            _resolve(schema, value)
        if key == "enum" and value == []:  # one engine refuses it, another says nothing for ever
            raise ValueError("an empty enum allows no value")
    # A `$schema` would be fetched from wherever it points.
    bare = {name: value for name, value in schema.items() if name != "$schema"}
    try:
        jsonschema_rs.meta.validate(bare)
    except jsonschema_rs.ValidationError as error:
        where = "/".join(map(str, error.instance_path))
        place = f" at {where!r}" if where else ""
        raise ValueError(f"not a JSON schema{place}: {error.message:.200}") from None
    except (jsonschema_rs.ReferencingError, ValueError) as error:
        raise ValueError(f"not a JSON schema: {error!s:.200}") from None
    return schema


def _walk(schema: Any) -> Iterator[tuple[str, Any]]:
    """Every value with its key, without recursion: a hostile schema may be deep."""
    pending = [("", schema)]
    while pending:
        key, value = pending.pop()
        yield key, value
        if isinstance(value, dict):
            pending += value.items()
        elif isinstance(value, list):
            pending += [("", item) for item in value]


def _resolve(schema: dict[str, Any], reference: str) -> None:
    if not reference.startswith("#"):
        raise ValueError(f"the reference {reference!r:.200} leaves the schema; put all into one")
    if not reference.startswith("#/"):  # the schema itself, or a named anchor
        return
    place: Any = schema
    for part in reference[2:].split("/"):
        name = unquote(part).replace("~1", "/").replace("~0", "~")
        if isinstance(place, list) and name.isdecimal() and int(name) < len(place):
            place = place[int(name)]
        elif isinstance(place, dict) and name in place:
            place = place[name]
        else:
            raise ValueError(f"the reference {reference!r:.200} points at nothing in the schema")


def few_enough(tools: Any) -> Any:
    """Raises ValueError for tools that are larger together than their number allows for."""
    if any(size >= MAX_TOOLS_SIZE for size, _ in enumerate(_walk(tools))):
        raise ValueError(f"the tools have over {MAX_TOOLS_SIZE} values together; send fewer")
    return tools


JsonSchema = Annotated[dict[str, Any], AfterValidator(_checked)]
