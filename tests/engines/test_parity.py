"""The same words from every engine: the demo model, greedy, the same prompts."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from engines.harness import Engine

PROMPTS = (
    "Hello!",
    "What is the capital of France?",
    "What is 7 plus 5?",
    "Count to 100.",
    "Tell me a story.",
    "Say hello in Japanese.",
    "Send me an emoji.",
    "Give me a JSON object.",
    "What is a KV cache?",
    "Who invented the bridge?",
    "Write a haiku.",
)
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        f"chat: {prompt}": ("chat/completions", {"messages": [{"role": "user", "content": prompt}]})
        for prompt in PROMPTS
    },
    "chat: system": (
        "chat/completions",
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "What is the opposite of hot?"},
                {"role": "assistant", "content": "The opposite of hot is cold."},
                {"role": "user", "content": "What is the capital of Italy?"},
            ]
        },
    ),
    "chat: cut": (
        "chat/completions",
        {"messages": [{"role": "user", "content": "Count to 20."}], "max_tokens": 7},
    ),
    "completion": ("completions", {"prompt": "The capital of Spain is", "max_tokens": 5}),
    "response": ("responses", {"input": "What is the capital of Spain?"}),
}
#: request -> what the first engine said
REFERENCE: dict[str, Any] = {}


@pytest.mark.parametrize("request_name", REQUESTS)
def test_text_counts_finish_reason_and_shape_are_the_same(
    engine: Engine, request_name: str
) -> None:
    path, fields = REQUESTS[request_name]
    url = f"{engine.url}/v1/{path}"
    body = {"model": "chat", "temperature": 0, **fields}
    reply = httpx.post(url, json=body, timeout=120)
    streamed = httpx.post(url, json={**body, "stream": True}, timeout=120)
    assert reply.status_code == streamed.status_code == 200, reply.text
    whole = reply.json()
    events = [line[6:] for line in streamed.text.split("\n") if line.startswith("data: ")]
    seen = {
        "meaning": _meaning(whole),
        "keys": _shape(whole),
        "events": sorted({repr(_shape_of_event(event)) for event in events}),
    }
    assert seen == REFERENCE.setdefault(request_name, seen)


def _meaning(reply: dict[str, Any]) -> Any:
    usage = {name: value for name, value in reply["usage"].items() if isinstance(value, int)}
    said = reply.get("choices") or [
        [part["text"] for part in item["content"]] for item in reply["output"]
    ]
    return said, usage


def _shape(value: Any) -> Any:
    """Keys in their order, and the kinds of values, without the values."""
    if isinstance(value, dict):
        return {key: _shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_shape(item) for item in value[:1]]
    return type(value).__name__


def _shape_of_event(event: str) -> Any:
    return event if event == "[DONE]" else _shape(json.loads(event))
