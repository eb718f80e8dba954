"""What a streamed answer of the scripted engine must be when it arrives, whoever relayed it."""

from __future__ import annotations

import json


def fault(body: bytes, tokens: int) -> str:
    """What is wrong with the answer to a request for so many `tokens`; empty when it is whole: one
    event for each token, their text in order, why it ended, and `[DONE]` last."""
    payloads = [line[5:].strip() for line in body.split(b"\n") if line.startswith(b"data:")]
    if not payloads or payloads[-1] != b"[DONE]":
        return f"it does not end with [DONE] but with {body[-80:]!r}"
    pieces: list[str] = []
    reason = None
    for payload in payloads[:-1]:
        for choice in json.loads(payload).get("choices") or ():
            if text := choice["delta"].get("content"):
                pieces.append(text)
            reason = choice.get("finish_reason") or reason
    if len(pieces) != tokens:
        return f"{tokens} tokens came in {len(pieces)} events"
    if "".join(pieces) != " ".join(f"w{i}" for i in range(tokens)):
        return "the text is another one"
    return "" if reason else "it has no finish reason"
