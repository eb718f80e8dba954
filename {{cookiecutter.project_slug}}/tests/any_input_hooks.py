"""What schemathesis is told beyond the OpenAPI document; see `service/test_any_input.py`."""

from __future__ import annotations

import re
from typing import Any

import schemathesis

#: What no JSON schema can say of fields that must fit together.
BEYOND_A_SCHEMA = re.compile(
    r"names no function of tools|there are no tools to call|the same name|has its own form"
    r"|cannot set this variable|needs logprobs|it goes with no tools"
    r"|only a message of the role user|chat template refuses"
    r"|write a JSON object"  # in a string
    r"|at least 1 item after validation"  # of a response's input, which had thoughts only
)


@schemathesis.hook
def map_case(
    context: schemathesis.HookContext, case: schemathesis.Case[Any]
) -> schemathesis.Case[Any]:
    """Asks for a model that is served, most of the time, or everything would be a 404."""
    body = case.body
    if isinstance(body, dict) and isinstance(body.get("model"), str):
        name = str(body["model"])
        if 0 < len(name) <= 200 and len(name) % 8:
            embeds = context.operation is not None and "embeddings" in context.operation.path
            body["model"] = "embed" if embeds else "chat"
    return case


@schemathesis.check
def what_is_refused_could_not_be_said(
    context: schemathesis.CheckContext,
    response: schemathesis.Response,
    case: schemathesis.Case[Any],
) -> None:
    """A request as the document wants it is refused only for what no document can say: what this
    engine cannot do, how long its context is, fields that do not fit together."""
    meta = case.meta
    if response.status_code != 400 or meta is None or not meta.generation.mode.is_positive:
        return
    error: dict[str, Any] = response.json()["error"]
    if error["code"] == "invalid_request" and not BEYOND_A_SCHEMA.search(error["message"]):
        raise AssertionError(f"a request as the document wants it was refused: {error}")
