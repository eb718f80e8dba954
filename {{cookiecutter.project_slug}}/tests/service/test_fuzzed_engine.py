"""An engine that answers anything at all: the service goes on, and no client takes a broken answer
for a whole one.

The engine's bytes are read once more here, by a reader that is slow, plain and forgiving: what it
does not find whole must not end as if it were, and what ends well must say the same text.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from gateway_client import Gateway, gateway
from raw_server import LAST_CHUNK, STREAM, Request, answer, chunk, event

CASES = 2000
AT_ONCE = 250  # some end only when their engine was silent for too long
PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
DONE = b"data: [DONE]\n\n"
WRONG: list[Any] = [None, True, -1, 2**70, 1.5, "x", "", [], {}, [{}], {"a": 1}, [None], "\ud800"]

# What the engine sends.


@dataclass
class Fuzz:
    """One answer: its bytes in the writes they are sent by. `closes` when all are sent; else the
    connection stays open, as with an engine that fell silent. `harmless` is what was done to it."""

    writes: list[bytes]
    closes: bool = True
    harmless: bool = False

    @property
    def bytes(self) -> bytes:
        return b"".join(self.writes)


def good_events(chance: random.Random, chat: bool) -> list[bytes]:
    texts = [chance.choice(["a", " b", "é😀", "\n", "data: x", "", "[DONE]"]) for _ in range(4)]
    events = []
    for count, text in enumerate(texts, 1):
        usage = {"prompt_tokens": 1, "completion_tokens": count, "total_tokens": 1 + count}
        said = {"delta": {"content": text}} if chat else {"text": text}
        events.append(event({"choices": [{"index": 0, **said}], "usage": usage}))
    ending: dict[str, Any] = {"delta": {}} if chat else {"text": ""}
    reason = chance.choice(["stop", "length"])
    events.append(event({"choices": [{"index": 0, **ending, "finish_reason": reason}]}))
    usage = {"prompt_tokens": 1, "completion_tokens": 4, "total_tokens": 5}
    return [*events, event({"choices": [], "usage": usage}), DONE]


def places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in a JSON value, with each of its keys."""
    keys = node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    for key in keys:
        yield node, key
        yield from places(node[key])


def change_a_value(events: list[bytes], chance: random.Random) -> None:
    """A wrong type, or a key that is missing."""
    at = chance.randrange(len(events))
    try:
        document = json.loads(events[at][6:])
        node, key = chance.choice(list(places(document)))
    except (ValueError, IndexError, RecursionError):  # the end mark, or spoilt already
        return
    if isinstance(node, dict) and chance.random() < 0.3:
        del node[key]
    else:
        node[key] = chance.choice(WRONG)
    events[at] = event(document)


def spoil_an_event(events: list[bytes], chance: random.Random) -> None:
    at = chance.randrange(len(events))
    junk = [b"data: {\n\n", b"data: 7\n\n", b"data: []\n\n", b"data: null\n\n", b"data:\n\n"]
    junk += [b'data: {"error": {"message": "no", "code": 400}}\n\n', b'data: {"error": "no"}\n\n']
    junk += [b"data: \xff\xfe\n\n", b"data: " + b"[" * 5000 + b"\n\n"]
    junk += [b'data: {"error": ' + b"[" * 5000 + b"\n\n", b"\x00" * 50 + b"\n\n"]
    events.insert(at, chance.choice(junk))


def shuffle(events: list[bytes], chance: random.Random) -> None:
    one, other = (chance.randrange(len(events)) for _ in range(2))
    events[one], events[other] = events[other], events[one]


def drop(events: list[bytes], chance: random.Random) -> None:
    del events[chance.randrange(len(events))]


def repeat(events: list[bytes], chance: random.Random) -> None:
    events.insert(chance.randrange(len(events)), chance.choice(events))


def flip_a_byte(events: list[bytes], chance: random.Random) -> None:
    at = chance.randrange(len(events))
    spoilt = bytearray(events[at])
    spoilt[chance.randrange(len(spoilt))] = chance.randrange(256)
    events[at] = bytes(spoilt)


def cut_off(events: list[bytes], chance: random.Random) -> None:
    """In the midst of an event, whose frame is whole."""
    at = chance.randrange(len(events))
    events[at] = events[at][: chance.randrange(len(events[at]))]
    del events[at + 1 :]


SPOILERS: list[Callable[[list[bytes], random.Random], None]] = [
    *(change_a_value, change_a_value, spoil_an_event, shuffle, drop, repeat, flip_a_byte, cut_off)
]
OTHER_HEADS = [
    *(b"HTTP/1.1 %d X\r\ncontent-length: 2\r\n\r\n{}" % code for code in (204, 301, 400, 404)),
    *(b"HTTP/1.1 %d X\r\ncontent-length: 2\r\n\r\n{}" % code for code in (413, 429, 500, 503)),
    b"HTTP/1.1 999 X\r\n\r\n",
    b"HTTP/1.1 400 X\r\ncontent-length: 500\r\n\r\nmaximum context length /opt/model",
    b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
    b"HTTP/9.9 200 OK\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"\x16\x03\x01\x02\x00",
    b"",
]


def make(seed: int, chat: bool) -> Fuzz:
    chance = random.Random(seed)
    events = good_events(chance, chat)
    kind = chance.random()
    if kind < 0.1:
        # More than the head promises comes at once, or it would be the next reply's.
        more = b"".join(map(chunk, events)) if chance.random() < 0.5 else b""
        return Fuzz([chance.choice(OTHER_HEADS) + more])
    if kind < 0.11:
        events.insert(2, b"data: " + b"x" * 5_000_000)  # over what is held for one event
    elif kind < 0.75:
        for _ in range(chance.randint(1, 2)):
            if len(events) > 1:
                chance.choice(SPOILERS)(events, chance)
    elif kind < 0.85:
        events = [e.replace(b"\n", b"\r\n") for e in events]
    harmless = kind >= 0.75
    frames = [STREAM, *map(chunk, events), LAST_CHUNK]
    if not harmless and chance.random() < 0.2:
        at = chance.randrange(1, len(frames))
        frames[at] = chance.choice(
            [b"zz\r\n", b"-5\r\n", b"ffffffffffffffffff\r\n", b"5\r\nab\r\n"]
        )
    data = b"".join(frames)
    closes = True
    if not harmless and chance.random() < 0.3:
        data = data[: chance.randrange(len(data))]
        closes = chance.random() < 0.7
    cuts = sorted(chance.randrange(len(data) + 1) for _ in range(chance.choice([0, 1, 3, 20])))
    pairs = itertools.pairwise([0, *cuts, len(data)])
    return Fuzz([data[a:b] for a, b in pairs if a < b], closes, harmless)


# The other reader.


def body_of(data: bytes) -> bytes:
    """As much of a chunked body as is framed well; b"" for another reply."""
    if not data.startswith(STREAM):
        return b""
    rest, body = data[len(STREAM) :], b""
    while frame := re.match(rb"([0-9a-fA-F]{1,8})\r\n", rest):
        size, rest = int(frame[1], 16), rest[frame.end() :]
        body, after = body + rest[:size], rest[size : size + 2]
        if size == 0 or (len(after) == 2 and after != b"\r\n"):
            break
        rest = rest[size + 2 :]
    return body


def text_of(data: bytes) -> str | None:
    """The text of the engine's answer; None when it is not whole."""
    body = body_of(data).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    text, finished, counted = "", False, False
    for block in body.split(b"\n\n")[:-1]:
        lines = [line for line in block.split(b"\n") if line.startswith(b"data:")]
        payload = b"\n".join(line[5:].removeprefix(b" ") for line in lines)
        if payload == b"[DONE]":
            return text if finished and counted else None
        if not lines:
            continue
        try:
            document = json.loads(payload.decode("utf-8", "replace"), strict=False)
        except (ValueError, RecursionError):
            return None
        if not isinstance(document, dict) or document.get("error") is not None:
            return None
        choices = document.get("choices", [])
        for choice in choices if isinstance(choices, list) else []:
            if not isinstance(choice, dict) or finished or choice.get("index", 0) != 0:
                continue
            said = choice.get("text") if choice.get("delta") is None else choice["delta"]
            said = said.get("content") if isinstance(said, dict) else said
            text += said if isinstance(said, str) else ""
            finished = finished or choice.get("finish_reason") in ("stop", "length")
        counted = counted or (not choices and isinstance(document.get("usage"), dict))
    return None


# What clients see.


def told(path: str, reply: httpx.Response) -> tuple[bool, str]:
    """Whether the reply is a whole answer, and its text. A stream says so by how it ends."""
    if reply.headers["content-type"] == "application/json":
        if reply.status_code != 200:
            error = reply.json()["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert "/opt" not in error["message"]
            return False, ""
        return True, _text(path, reply.json(), streamed=False)
    assert reply.status_code == 200
    *blocks, rest = reply.text.split("\n\n")
    assert rest == ""
    blocks = [block for block in blocks if not block.startswith(":")]
    errors = [block for block in blocks if block.startswith("event: error\n")]
    if errors:
        assert errors == blocks[-1:]
        assert "data: [DONE]" not in blocks
        assert not any("response.completed" in block[:30] for block in blocks)
        return False, ""
    if path == "/v1/responses":
        last = json.loads(blocks[-1].partition("data: ")[2])
        assert last["type"] in ("response.completed", "response.incomplete")
        return True, _text(path, last["response"], streamed=False)
    assert blocks.pop() == "data: [DONE]"
    chunks = [json.loads(block.removeprefix("data: ")) for block in blocks]
    return True, "".join(_text(path, chunk, streamed=True) for chunk in chunks)


def _text(path: str, document: Any, *, streamed: bool) -> str:
    if path == "/v1/responses":
        parts = [part for item in document["output"] for part in item["content"]]
        return "".join(part["text"] for part in parts)
    if path == "/v1/completions":
        return "".join(choice["text"] for choice in document["choices"])
    part = "delta" if streamed else "message"
    return "".join(choice[part].get("content") or "" for choice in document["choices"])


def asked(path: str, number: int | str, *, stream: bool) -> dict[str, Any]:
    field = {"/v1/completions": "prompt", "/v1/responses": "input"}.get(path)
    prompt = {field: f"case {number}"} if field else {}
    messages = {} if field else {"messages": [{"role": "user", "content": f"case {number}"}]}
    return {"model": "chat", "stream": stream, **prompt, **messages}


def path_of(seed: int) -> str:
    return PATHS[seed % 3]


async def play(request: Request) -> None:
    """The engine: the prompt says which case it is, and nothing else is asked but good ones."""
    found = re.search(rb"case (\d+)", request.body)
    if found is None:
        await request.send(answer("well"))
        return
    seed = int(found[1])
    fuzz = make(seed, chat=path_of(seed) != "/v1/completions")
    with contextlib.suppress(ConnectionError):
        for data in fuzz.writes:
            await request.send(data)
            await asyncio.sleep(0)
        if not fuzz.closes:
            await request.client_left()
    request.close()


async def try_out(served: Gateway, client: httpx.AsyncClient, seed: int) -> str:
    """How the case ended. Raises AssertionError for one that should have ended in another way."""
    path = path_of(seed)
    fuzz = make(seed, chat=path != "/v1/completions")
    body = asked(path, seed, stream=seed % 2 == 0)
    whole, text = told(path, await client.post(path, json=body))
    meant = text_of(fuzz.bytes)
    if whole:
        assert meant is not None, fuzz.bytes
        assert text == meant, fuzz.bytes
    elif fuzz.harmless:
        raise AssertionError(f"a good answer was taken for a bad one: {fuzz.bytes!r}")
    return "whole" if whole else "broken"


async def test_no_engine_breaks_the_service_or_passes_a_broken_answer_for_a_whole_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    ended: Counter[str] = Counter()
    async with gateway(play, first_token=3, stall=3) as served, served.client() as client:
        for first in range(0, CASES, AT_ONCE):
            async with asyncio.timeout(60):
                results = await asyncio.gather(
                    *(try_out(served, client, seed) for seed in range(first, first + AT_ONCE)),
                    return_exceptions=True,
                )
            for seed, result in enumerate(results, first):
                if isinstance(result, BaseException):
                    raise AssertionError(f"case {seed}: {result}") from result
                ended[result] += 1
            for path in ("/v1/chat/completions",):
                reply = await client.post(path, json=asked(path, "none", stream=False))
                assert told(path, reply) == (True, "well"), "the next request was not answered"
            assert served.replica.in_flight == 0
    assert [record.getMessage() for record in caplog.records if record.exc_info] == []
    assert min(ended["whole"], ended["broken"]) > CASES // 4, ended
