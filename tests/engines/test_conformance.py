"""The contract on every real engine: OpenAI's client, each field, each event, each refusal."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import math
import struct
from typing import Any

import httpx
import openai
import psutil
import pytest
from engines.harness import Engine
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from served import eventually

FRANCE = "What is the capital of France?"
COUNT = "Count to 20."
NUMBERS = " ".join(map(str, range(1, 21))) + "."
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
# The order of keys and the spaces of the answer it was trained to give.
JSON_SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "ok": {"type": "boolean"}},
    "required": ["name", "ok"],
    "additionalProperties": False,
}


def ask(client: openai.OpenAI, question: str, **fields: Any) -> ChatCompletion:
    """One chat turn; fields that OpenAI does not have go in as `extra_body`."""
    messages = fields.pop("messages", [{"role": "user", "content": question}])
    reply: ChatCompletion = client.chat.completions.create(
        model=fields.pop("model", "chat"), messages=messages, **fields
    )
    return reply


def said(client: openai.OpenAI, question: str, **fields: Any) -> str:
    return ask(client, question, **fields).choices[0].message.content or ""


def stream(client: openai.OpenAI, question: str, **fields: Any) -> list[ChatCompletionChunk]:
    messages = fields.pop("messages", [{"role": "user", "content": question}])
    return list(
        client.chat.completions.create(model="chat", messages=messages, stream=True, **fields)
    )


def text_of(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


# Chat, whole and streamed.


def test_a_whole_reply_names_who_answered_and_counts_its_tokens(client: openai.OpenAI) -> None:
    reply = ask(client, FRANCE)
    choice = reply.choices[0]
    assert choice.message.content == "The capital of France is Paris."
    assert (choice.finish_reason, reply.model, reply.system_fingerprint) == (
        "stop",
        "chat",
        "chat:1",
    )
    assert reply.usage
    assert reply.usage.prompt_tokens > 0
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_a_stream_is_role_content_one_finish_usage_done(engine: Engine) -> None:
    body = {
        "model": "chat",
        "messages": [{"role": "user", "content": COUNT}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    reply = httpx.post(f"{engine.url}/v1/chat/completions", json=body, timeout=120)
    events = [line.removeprefix("data: ") for line in reply.text.split("\n") if line]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    first, *middle, finish, usage = chunks
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert all(list(c["choices"][0]["delta"]) == ["content"] for c in middle)
    assert "".join(c["choices"][0]["delta"]["content"] for c in middle) == NUMBERS
    assert len(middle) > 20
    assert (finish["choices"][0]["delta"], finish["choices"][0]["finish_reason"]) == ({}, "stop")
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] > 20
    assert all(chunk["usage"] is None for chunk in chunks[:-1])


def test_max_tokens_ends_with_length(client: openai.OpenAI) -> None:
    for limit in ({"max_tokens": 5}, {"max_completion_tokens": 5}):
        reply = ask(client, COUNT, **limit)
        assert reply.choices[0].finish_reason == "length"
        assert reply.usage
        assert reply.usage.completion_tokens == 5


def test_several_choices(engine: Engine, client: openai.OpenAI) -> None:
    with engine.offers("`n`: several choices"):
        reply = ask(client, FRANCE, n=2)
        assert [choice.index for choice in reply.choices] == [0, 1]
        assert len({choice.message.content for choice in reply.choices}) == 1  # greedy
        chunks = stream(client, FRANCE, n=3, temperature=1.5)
        ends = [c.choices[0].index for c in chunks if c.choices and c.choices[0].finish_reason]
        assert sorted(ends) == [0, 1, 2]


def test_a_seed_makes_sampling_repeat_itself(engine: Engine, client: openai.OpenAI) -> None:
    with engine.offers("`temperature`"):
        texts = {said(client, "Tell me a joke.", temperature=2, max_tokens=20) for _ in range(6)}
        assert len(texts) > 1
    with engine.offers("`seed`"):
        twice = [
            said(client, "Tell me a joke.", temperature=2, seed=11, max_tokens=20) for _ in range(2)
        ]
        assert twice[0] == twice[1]


@pytest.mark.parametrize(
    ("field", "value"),
    [("top_p", 0.01), ("top_k", 1), ("min_p", 1.0)],
)
def test_sampling_can_be_narrowed_to_the_likeliest_token(
    engine: Engine, client: openai.OpenAI, field: str, value: float
) -> None:
    with engine.offers(f"`{field}`"):
        for _ in range(3):
            answer = said(client, FRANCE, temperature=2, extra_body={field: value})
            assert answer == "The capital of France is Paris."


@pytest.mark.parametrize("stop", ["7", ["99", " 7"]])
def test_a_stop_text_ends_the_answer_and_is_not_part_of_it(
    engine: Engine, client: openai.OpenAI, stop: Any
) -> None:
    with engine.offers("`stop`"):
        reply = ask(client, COUNT, stop=stop)
        assert (reply.choices[0].message.content or "").rstrip() == "1 2 3 4 5 6"
        assert reply.choices[0].finish_reason == "stop"
        assert text_of(stream(client, COUNT, stop=stop)).rstrip() == "1 2 3 4 5 6"


@pytest.mark.parametrize("field", ["presence_penalty", "frequency_penalty"])
def test_a_penalty_makes_way_for_other_tokens(
    engine: Engine, client: openai.OpenAI, vocabulary: dict[str, int], field: str
) -> None:
    # Held to letters, the model is unsure enough for a penalty to decide.
    letters = {str(vocabulary[letter]): 100 for letter in "abcdefghijklmnopqrstuvwxyz"}

    def continued(**weight: float) -> str:
        reply = client.completions.create(
            model="chat",
            prompt="hello",
            max_tokens=20,
            temperature=0,
            logit_bias=letters,
            extra_body=weight,
        )
        return reply.choices[0].text

    with engine.offers(f"`{field}`"):
        assert len(set(continued(**{field: 2.0}))) > len(set(continued()))


def test_a_repetition_penalty_makes_way_for_other_tokens(
    engine: Engine, client: openai.OpenAI
) -> None:
    def continued(prompt: str, **weight: float) -> str:
        reply = client.completions.create(
            model="chat", prompt=prompt, max_tokens=20, temperature=0, extra_body=weight
        )
        return reply.choices[0].text

    prompts = ("0 0 0 0 0 0 0 0", "a b a b a b a b", "Hello! Hello! Hello! Hello!")
    with engine.offers("`repetition_penalty`"):
        assert [continued(p) for p in prompts] != [
            continued(p, repetition_penalty=2.0) for p in prompts
        ]


def test_a_token_can_be_forbidden_and_unknown_ones_are_refused(
    engine: Engine, client: openai.OpenAI, vocabulary: dict[str, int]
) -> None:
    with engine.offers("`logit_bias`"):
        banned = {str(vocabulary["The"]): -100}
        assert said(client, FRANCE)[:3] == "The"
        assert said(client, FRANCE, logit_bias=banned, max_tokens=3)[:3] != "The"
        with pytest.raises(openai.BadRequestError) as refused:
            ask(client, FRANCE, logit_bias={"999999": -100})
        assert refused.value.param == "logit_bias"


def test_priority_is_taken(engine: Engine, client: openai.OpenAI) -> None:
    with engine.offers("`priority`"):
        assert said(client, FRANCE, extra_body={"priority": 5}).endswith("Paris.")


def test_an_answer_that_no_token_ends_is_as_long_as_was_asked(
    engine: Engine, client: openai.OpenAI
) -> None:
    endless = {"ignore_eos": True}
    with engine.offers("`ignore_eos`"):
        for limit in (4, 60):  # before and long after the token that would have ended it
            whole = ask(client, FRANCE, max_tokens=limit, extra_body=endless)
            assert whole.usage
            assert whole.usage.completion_tokens == limit
            assert whole.choices[0].finish_reason == "length"
        text = whole.choices[0].message.content or ""
        assert text.startswith("The capital of France is Paris.")
        usage = {"include_usage": True}
        last = stream(client, FRANCE, max_tokens=60, extra_body=endless, stream_options=usage)[-1]
        assert last.usage
        assert last.usage.completion_tokens == 60
        continued = client.completions.create(
            model="chat", prompt="The capital of France is", max_tokens=60, extra_body=endless
        )
        assert continued.usage
        assert continued.usage.completion_tokens == 60
        plain = ask(client, FRANCE, max_tokens=60, extra_body={"ignore_eos": False})
        assert plain.choices[0].finish_reason == "stop"


def test_hints_change_nothing(client: openai.OpenAI) -> None:
    assert said(client, FRANCE, user="u-1", metadata={"team": "a"}, store=False).endswith("Paris.")


# Logprobs.


def test_chat_logprobs_spell_the_answer(engine: Engine, client: openai.OpenAI) -> None:
    with engine.offers("`logprobs`"):
        for question in (FRANCE, "Say hello in Japanese."):
            reply = ask(client, question, logprobs=True, top_logprobs=3)
            logprobs = reply.choices[0].logprobs
            assert logprobs
            assert logprobs.content
            spelt = b"".join(bytes(token.bytes or []) for token in logprobs.content)
            assert spelt.decode() == reply.choices[0].message.content
            assert all(token.logprob <= 0 for token in logprobs.content)
            assert all(len(token.top_logprobs) == 3 for token in logprobs.content)
            chunks = stream(client, question, logprobs=True, top_logprobs=3)
            parts = [c.choices[0].logprobs for c in chunks if c.choices and c.choices[0].logprobs]
            streamed = [token for part in parts for token in part.content or []]
            assert b"".join(bytes(token.bytes or []) for token in streamed) == spelt


def test_completion_logprobs_have_the_older_shape(engine: Engine, client: openai.OpenAI) -> None:
    with engine.offers("`logprobs`"):
        reply = client.completions.create(
            model="chat", prompt="The capital of France is", max_tokens=4, logprobs=2
        )
        logprobs = reply.choices[0].logprobs
        assert logprobs
        assert logprobs.tokens
        assert logprobs.token_logprobs
        assert logprobs.top_logprobs
        assert "".join(logprobs.tokens) == reply.choices[0].text
        assert logprobs.text_offset == _offsets(logprobs.tokens)
        assert all(p is not None and p <= 0 for p in logprobs.token_logprobs)
        assert all(len(top) >= 2 for top in logprobs.top_logprobs)


def test_an_echoed_prompt_can_have_logprobs(engine: Engine, client: openai.OpenAI) -> None:
    prompt = "The capital of France is"
    with engine.offers("`echo` with `logprobs`"):
        reply = client.completions.create(
            model="chat", prompt=prompt, max_tokens=3, logprobs=1, echo=True
        )
        logprobs = reply.choices[0].logprobs
        assert logprobs
        assert logprobs.tokens
        assert logprobs.token_logprobs
        assert reply.choices[0].text.startswith(prompt)
        assert "".join(logprobs.tokens) == reply.choices[0].text
        assert logprobs.token_logprobs[0] is None
        assert all(p is not None for p in logprobs.token_logprobs[1:])


def _offsets(tokens: list[str]) -> list[int]:
    return list(itertools.accumulate(map(len, tokens[:-1]), initial=0))


# The form of an answer.


def test_a_json_object(engine: Engine, client: openai.OpenAI) -> None:
    with engine.offers("`response_format`: JSON object"):
        form = {"type": "json_object"}
        assert isinstance(
            json.loads(said(client, "Give me a JSON object.", response_format=form)), dict
        )


def test_a_json_schema(engine: Engine, client: openai.OpenAI) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "demo", "schema": JSON_SCHEMA}}
    with engine.offers("`response_format`: JSON schema"):
        for question in ("Give me a JSON object.", "Hello!"):
            answer = said(client, question, response_format=form, temperature=0, max_tokens=60)
            if question == "Give me a JSON object.":
                assert json.loads(answer) == {"name": "demo", "ok": True}
            else:  # it never saw JSON here, and may fill it with blanks up to the limit
                assert answer.lstrip().startswith("{")
        chunks = stream(client, "Give me a JSON object.", response_format=form)
        assert json.loads(text_of(chunks)) == {"name": "demo", "ok": True}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "banana"},
        {"$ref": "#/$defs/nothing"},
        {"$ref": "https://example.com/schema.json"},
        {"enum": []},
        {"type": "object", "properties": 5},
    ],
)
def test_a_bad_schema_is_refused_by_name_and_disturbs_nobody(
    engine: Engine, client: openai.OpenAI, schema: dict[str, Any]
) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    for streamed in (False, True):
        with pytest.raises(openai.BadRequestError) as refused:
            ask(client, FRANCE, response_format=form, stream=streamed)
        assert refused.value.param == "response_format.json_schema.schema"
    assert said(client, FRANCE).endswith("Paris.")


def test_a_schema_beyond_the_engine_is_refused_before_the_first_byte(
    engine: Engine, client: openai.OpenAI
) -> None:
    schema = {"type": "string", "pattern": "(["}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    for streamed in (False, True):
        with pytest.raises(openai.BadRequestError) as refused:
            ask(client, FRANCE, response_format=form, stream=streamed)
        assert refused.value.param in ("response_format", "response_format.json_schema.schema")
    assert said(client, FRANCE).endswith("Paris.")


# Tools.

IN_PARIS = "What is the weather in Paris?"


def test_a_tool_is_called_when_the_model_wants_to(engine: Engine, client: openai.OpenAI) -> None:
    with engine.offers("`tools`"):
        reply = ask(client, IN_PARIS, tools=[WEATHER])
        choice = reply.choices[0]
        assert choice.finish_reason == "tool_calls"
        assert choice.message.tool_calls
        (call,) = choice.message.tool_calls
        assert call.type == "function"
        assert call.function.name == "get_weather"
        assert json.loads(call.function.arguments) == {"city": "Paris"}
        assert not (choice.message.content or "").strip()
        # Its result goes back, and the model says it.
        history = [
            {"role": "user", "content": IN_PARIS},
            choice.message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
        ]
        answer = said(client, "", messages=history, tools=[WEATHER])
        assert "sunny" in answer
        assert "Paris" in answer
        # An ordinary question gets an ordinary answer.
        assert said(client, FRANCE, tools=[WEATHER]) == "The capital of France is Paris."


def test_tool_calls_are_streamed_as_deltas(engine: Engine, client: openai.OpenAI) -> None:
    with engine.offers("`tools`"):
        chunks = stream(client, IN_PARIS, tools=[WEATHER])
        pieces = [
            piece for c in chunks if c.choices for piece in c.choices[0].delta.tool_calls or []
        ]
        first, *rest = pieces
        assert first.id
        assert first.type == "function"
        assert first.function
        assert first.function.name == "get_weather"
        assert all(piece.id is None and piece.function for piece in rest)
        arguments = "".join(piece.function.arguments or "" for piece in pieces if piece.function)
        assert json.loads(arguments) == {"city": "Paris"}
        assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "tool_calls"


def test_two_calls_at_once_unless_one_is_asked_for(engine: Engine, client: openai.OpenAI) -> None:
    both = "What is the weather in Paris and in Rome?"
    with engine.offers("parallel tool calls"):
        calls = ask(client, both, tools=[WEATHER]).choices[0].message.tool_calls or []
        cities = [json.loads(c.function.arguments)["city"] for c in calls if c.type == "function"]
        assert cities == ["Paris", "Rome"]
        assert len({call.id for call in calls}) == 2
        one = ask(client, both, tools=[WEATHER], parallel_tool_calls=False)
        assert len(one.choices[0].message.tool_calls or []) == 1


def test_a_call_can_be_forced_and_keeps_to_its_schema(
    engine: Engine, client: openai.OpenAI
) -> None:
    named = {"type": "function", "function": {"name": "get_weather"}}
    with engine.offers("`tool_choice`: required, or a named function"):
        for choice in ("required", named):
            reply = ask(client, "Hello!", tools=[WEATHER], tool_choice=choice).choices[0]
            assert reply.finish_reason == "tool_calls"
            assert reply.message.tool_calls
            call = reply.message.tool_calls[0]
            assert call.type == "function"
            assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")


def test_tool_choice_none_calls_nothing(client: openai.OpenAI) -> None:
    reply = ask(client, FRANCE, tools=[WEATHER], tool_choice="none")
    assert reply.choices[0].message.content == "The capital of France is Paris."
    assert reply.choices[0].message.tool_calls is None


# Reasoning.

SUM = "What is 7 plus 5?"
# Engines differ in how they find thoughts that nobody asked for; all find those that were.
THINKING: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": True}}


def test_reasoning_comes_apart_from_the_answer(engine: Engine, client: openai.OpenAI) -> None:
    with engine.offers("reasoning apart from the answer"):
        message = ask(client, SUM, extra_body=THINKING).choices[0].message
        assert (message.model_extra or {})["reasoning_content"] == "I add 7 and 5. That makes 12."
        assert message.content == "7 plus 5 is 12."
        deltas = [c.choices[0].delta for c in stream(client, SUM, extra_body=THINKING) if c.choices]
        thoughts = [(delta.model_extra or {}).get("reasoning_content") for delta in deltas]
        assert "".join(filter(None, thoughts)) == "I add 7 and 5. That makes 12."
        kinds = [
            "reasoning" if thought else "text"
            for delta, thought in zip(deltas, thoughts, strict=True)
            if thought or delta.content
        ]
        assert [kind for kind, _ in itertools.groupby(kinds)] == ["reasoning", "text"]
        assert "".join(delta.content or "" for delta in deltas) == "7 plus 5 is 12."


def test_the_chat_template_takes_variables(engine: Engine, client: openai.OpenAI) -> None:
    with engine.offers("`chat_template_kwargs`"):
        off = {"chat_template_kwargs": {"enable_thinking": False}}
        assert said(client, FRANCE, extra_body=off) == "The capital of France is Paris."


def test_reasoning_effort_is_taken(engine: Engine, client: openai.OpenAI) -> None:
    with engine.offers("`reasoning_effort`"):
        assert said(client, FRANCE, reasoning_effort="low").endswith("Paris.")


# Text completions.


def test_a_completion_continues_its_prompt_and_can_echo_it(client: openai.OpenAI) -> None:
    prompt = "The capital of France is"
    fields: dict[str, Any] = {"model": "chat", "prompt": prompt, "max_tokens": 8}
    plain = client.completions.create(**fields)
    assert plain.choices[0].text.startswith(" Paris")
    echoed = client.completions.create(**fields, echo=True)
    assert echoed.choices[0].text == prompt + plain.choices[0].text
    assert echoed.usage == plain.usage or echoed.usage
    chunks = list(client.completions.create(**fields, echo=True, stream=True))
    assert "".join(c.choices[0].text for c in chunks) == echoed.choices[0].text


# Images.

PIXEL = "data:image/png;base64,iVBORw0KGgo="


@pytest.mark.parametrize(
    ("url", "code"),
    [(PIXEL, "unsupported_by_engine"), ("http://127.0.0.1:9/x.png", "invalid_request")],
)
def test_a_model_that_does_not_see_refuses_images(
    client: openai.OpenAI, url: str, code: str
) -> None:
    content = [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": {"url": url}}]
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, "", messages=[{"role": "user", "content": content}])
    assert refused.value.code == code


# Refusals.


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"content": "word " * 700}, "messages", "context_length_exceeded"),
        ({"max_tokens": 510}, "messages", "context_length_exceeded"),
        ({"max_tokens": 100_000}, "messages", "context_length_exceeded"),
        ({"stop": ""}, "stop", "invalid_request"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "invalid_request"),
        ({"temperature": 3}, "temperature", "invalid_request"),
        ({"n": 100_000}, "n", "invalid_request"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_request"),
        ({"wat": 1}, "wat", "unknown_field"),
    ],
)
def test_the_same_words_are_refused_in_the_same_way_on_all_engines(
    engine: Engine, fields: dict[str, Any], param: str, code: str, streamed: bool
) -> None:
    content = fields.get("content", FRANCE)
    rest = {name: value for name, value in fields.items() if name != "content"}
    body = {"model": "chat", "messages": [{"role": "user", "content": content}], **rest}
    reply = httpx.post(
        f"{engine.url}/v1/chat/completions", json={**body, "stream": streamed}, timeout=60
    )
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["code"]) == (400, param, code)
    assert "/" not in error["message"].replace("/v1/", "")


def test_an_unknown_model_is_404(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        ask(client, FRANCE, model="nobody")
    assert refused.value.code == "model_not_found"


# Streams under way.


def test_a_client_that_leaves_stops_the_engines_work(engine: Engine) -> None:
    body = {
        "model": "chat",
        "messages": [{"role": "user", "content": "Count to 100."}],
        "stream": True,
    }
    path = f"{engine.url}/v1/chat/completions"
    for _ in range(3):
        with httpx.stream("POST", path, json=body, timeout=60) as reply:
            next(line for line in reply.iter_lines() if '"content":"' in line)
    eventually(lambda: _figure(engine, "serving_replica_in_flight") == 0, "none in flight", 5)
    if engine.name == "transformers":  # it counts nothing: its processor time tells
        process = engine.engine()
        eventually(lambda: _share(process) < 0.3, "idle", 20)
    else:
        running = "serving_engine_requests_running"
        eventually(lambda: _figure(engine, running) == 0, "none running", 20)


def _figure(engine: Engine, name: str) -> float:
    lines = httpx.get(f"{engine.url}/metrics", timeout=10).text.splitlines()
    label = f'{name}{{engine="{engine.name}",model="chat",'
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(label))


def _share(process: psutil.Process) -> float:
    return process.cpu_percent(interval=1.0) / 100


def test_the_engines_own_figures_have_one_set_of_names(engine: Engine) -> None:
    names = {"requests_running", "requests_waiting", "kv_cache_usage_ratio", "prompt_tokens_total"}
    names |= {"generated_tokens_total", "cached_tokens_total"}
    wanted = {f"serving_engine_{name}" for name in names}
    if engine.name == "transformers":
        return  # has none: what the gateway itself counts is there for every engine

    def seen() -> bool:
        lines = httpx.get(f"{engine.url}/metrics", timeout=10).text.splitlines()
        ours = f'engine="{engine.name}",model="chat"'
        have = {line.split("{")[0] for line in lines if ours in line}
        return wanted <= have and _figure(engine, "serving_engine_generated_tokens_total") > 0

    eventually(seen, "all figures", 30)


def test_32_streams_at_once_cross_nothing(engine: Engine) -> None:
    sums = [(m, n) for m in range(3, 11) for n in (2, 5, 9, 14)]

    async def all_of_them() -> list[str]:
        async with openai.AsyncOpenAI(
            base_url=f"{engine.url}/v1", api_key="none", max_retries=0, timeout=300
        ) as client:

            async def one(m: int, n: int) -> str:
                chunks = await client.chat.completions.create(
                    model="chat",
                    messages=[{"role": "user", "content": f"What is {m} plus {n}?"}],
                    stream=True,
                )
                return "".join([c.choices[0].delta.content or "" async for c in chunks])

            return await asyncio.gather(*(one(m, n) for m, n in sums))

    assert asyncio.run(all_of_them()) == [f"{m} plus {n} is {m + n}." for m, n in sums]


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Say hello in Japanese.", "こんにちは!"),
        ("Send me an emoji.", "😊🚀👍🐱"),
        ("Say hello in Hindi.", "नमस्ते!"),
    ],
)
def test_characters_of_several_tokens_are_never_cut(
    client: openai.OpenAI, question: str, answer: str
) -> None:
    chunks = stream(client, question)
    assert text_of(chunks) == answer
    assert not any("\ufffd" in (c.choices[0].delta.content or "") for c in chunks if c.choices)
    for limit in range(1, 8):  # also not by the token limit
        assert answer.startswith(said(client, question, max_tokens=limit))


def test_an_answer_of_nothing_is_an_answer(engine: Engine, client: openai.OpenAI) -> None:
    with engine.offers("`stop`"):
        reply = ask(client, FRANCE, stop="The")
        assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == ("", "stop")
        chunks = stream(client, FRANCE, stop="The")
        assert text_of(chunks) == ""
        assert chunks[-1].choices[0].finish_reason == "stop"


# Embeddings.


def test_embeddings(engine: Engine, client: openai.OpenAI) -> None:
    if not engine.embeds:
        with engine.offers("`/v1/embeddings`"):
            client.embeddings.create(model="chat", input="Hello!")
        return
    with engine.offers("`/v1/embeddings`"):
        texts = ["Hello!", "What is the capital of France?", "Hello!"]
        reply = client.embeddings.create(model="vectors", input=texts, encoding_format="float")
        vectors = [item.embedding for item in reply.data]
        assert [item.index for item in reply.data] == [0, 1, 2]
        assert len({len(vector) for vector in vectors}) == 1
        assert all(math.isclose(math.hypot(*vector), 1, rel_tol=1e-3) for vector in vectors)
        assert _cosine(vectors[0], vectors[2]) > 0.999 > _cosine(vectors[0], vectors[1])
        assert reply.usage.prompt_tokens == reply.usage.total_tokens > 0
        packed = httpx.post(
            f"{engine.url}/v1/embeddings",
            json={"model": "vectors", "input": "Hello!", "encoding_format": "base64"},
            timeout=60,
        ).json()["data"][0]["embedding"]
        data = base64.b64decode(packed)
        assert _cosine(list(struct.unpack(f"<{len(data) // 4}f", data)), vectors[0]) > 0.999
        ids = client.embeddings.create(model="vectors", input=[[5, 6, 7], [8, 9]])
        assert len(ids.data) == 2


def test_an_embedding_models_limits_are_told(engine: Engine, client: openai.OpenAI) -> None:
    if not engine.embeds:
        return
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"dimensions": 8}, "dimensions"),
        ({"input": "word " * 700}, "input"),
    ]
    for fields, param in wrong:
        body = {"model": "vectors", "input": "Hello!", **fields}
        reply = httpx.post(f"{engine.url}/v1/embeddings", json=body, timeout=60)
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, FRANCE, model="vectors")
    assert refused.value.code == "unsupported_by_engine"


def _cosine(one: list[float], other: list[float]) -> float:
    product = sum(a * b for a, b in zip(one, other, strict=True))
    return product / (math.hypot(*one) * math.hypot(*other))


# Responses.


def test_responses_answer_and_stream(client: openai.OpenAI) -> None:
    reply = client.responses.create(model="chat", input=FRANCE, instructions="Be brief.")
    assert reply.output_text == "The capital of France is Paris."
    assert (reply.status, reply.model) == ("completed", "chat")
    assert reply.usage
    assert reply.usage.output_tokens > 5
    with client.responses.stream(model="chat", input=COUNT) as events:
        kinds = [event.type for event in events]
        final = events.get_final_response()
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-1] == "response.completed"
    assert kinds.count("response.output_text.delta") > 20
    assert final.output_text == NUMBERS
    cut = client.responses.create(model="chat", input=COUNT, max_output_tokens=4)
    assert cut.status == "incomplete"
    assert cut.incomplete_details
    assert cut.incomplete_details.reason == "max_output_tokens"


def test_responses_call_tools(engine: Engine, client: openai.OpenAI) -> None:
    tool = {"type": "function", **WEATHER["function"], "strict": False}  # type: ignore[dict-item]
    with engine.offers("`tools`"):
        reply = client.responses.create(model="chat", input=IN_PARIS, tools=[tool])  # type: ignore[list-item]
        (call,) = [item for item in reply.output if item.type == "function_call"]
        assert (call.name, json.loads(call.arguments)) == ("get_weather", {"city": "Paris"})
        history: Any = [
            {"role": "user", "content": IN_PARIS},
            *[item.model_dump(exclude_none=True) for item in reply.output],
            {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"},
        ]
        answer = client.responses.create(model="chat", input=history, tools=[tool])  # type: ignore[list-item]
        assert "sunny" in answer.output_text


# LoRA.


def test_an_adapter_is_addressed_beside_its_model(engine: Engine, client: openai.OpenAI) -> None:
    if engine.name != "vllm":
        return
    assert {model.id for model in client.models.list()} >= {"chat", "chat/shouting"}
    assert said(client, FRANCE, model="chat/shouting", max_tokens=8) != said(
        client, FRANCE, max_tokens=8
    )
    reply = ask(client, FRANCE, model="chat/shouting:1", max_tokens=8)
    assert (reply.model, reply.system_fingerprint) == ("chat/shouting:1", "chat:1")
    with pytest.raises(openai.NotFoundError):
        ask(client, FRANCE, model="chat/nobody")
