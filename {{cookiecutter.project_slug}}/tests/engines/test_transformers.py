"""`transformers serve`: what the adapter must do because the engine does not."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.contract.chat import ChatRequest
from serving.contract.completions import CompletionRequest
from serving.contract.errors import ApiError
from serving.contract.events import ToolDelta
from serving.engines.base import Launch
from serving.engines.transformers import Transformers
from serving.settings import TransformersEngine


def engine(model_dir: Path, **fields: object) -> Transformers:
    settings = TransformersEngine.model_validate(
        {"name": "transformers", "max_model_len": 20, "home": "/opt/engine", **fields}
    )
    return Transformers(settings, model_dir)


def chat(**fields: Any) -> ChatRequest:
    # Five tokens: <|user|> Hello world </s> <|assistant|>
    body = {"model": "chat", "messages": [{"role": "user", "content": "Hello world"}], **fields}
    return ChatRequest.model_validate(body)


def config_of(model_dir: Path, **fields: Any) -> dict[str, Any]:
    body = json.loads(engine(model_dir).call(chat(**fields)).body)
    config: dict[str, Any] = json.loads(body["generation_config"])
    return config


def test_generation_starts_from_the_models_own_settings(model_folder: Path) -> None:
    assert config_of(model_folder) == {
        "eos_token_id": 1,
        "pad_token_id": 1,
        "do_sample": True,
        "temperature": 0.7,
        "max_new_tokens": 15,
    }


def test_without_a_generation_config_it_samples_and_the_token_ids_come_from_the_models_config(
    model_folder: Path,
) -> None:
    (model_folder / "generation_config.json").unlink()
    assert config_of(model_folder) == {
        "eos_token_id": 1,
        "pad_token_id": 1,
        "do_sample": True,
        "temperature": 1.0,
        "max_new_tokens": 15,
    }


def test_a_model_that_wants_to_be_greedy_is(model_folder: Path) -> None:
    written = '{"do_sample": false, "temperature": 0.6}'
    (model_folder / "generation_config.json").write_text(written, "utf-8")
    assert config_of(model_folder)["do_sample"] is False


def test_temperature_zero_is_greedy_although_the_model_samples(model_folder: Path) -> None:
    assert config_of(model_folder, temperature=0)["do_sample"] is False


def test_a_temperature_samples_although_the_model_is_greedy(model_folder: Path) -> None:
    (model_folder / "generation_config.json").write_text('{"do_sample": false}', "utf-8")
    config = config_of(model_folder, temperature=0.9, top_p=0.5, top_k=0, min_p=0.1)
    assert config["do_sample"] is True
    assert (config["temperature"], config["top_p"], config["top_k"]) == (0.9, 0.5, 0)
    assert config["min_p"] == 0.1


def test_stop_texts_and_repetition_penalty_and_seed_are_passed_on(model_folder: Path) -> None:
    config = config_of(model_folder, stop="Paris", repetition_penalty=1.3)
    assert config["stop_strings"] == ["Paris"]
    assert config["repetition_penalty"] == 1.3
    body = json.loads(engine(model_folder).call(chat(seed=0)).body)
    assert body["seed"] == 0


@pytest.mark.parametrize("batching", [False, True])
def test_an_answer_that_no_token_ends_has_an_end_token_that_there_is_not(
    model_folder: Path, batching: bool
) -> None:
    serving = engine(model_folder, continuous_batching=batching)

    def end_of(**fields: Any) -> int:
        body = json.loads(serving.call(chat(max_tokens=3, **fields)).body)
        assert "ignore_eos" not in body  # it refuses fields it does not know
        config = json.loads(body["generation_config"])
        assert config["max_new_tokens"] == 3
        return int(config["eos_token_id"])

    assert (end_of(ignore_eos=True), end_of(ignore_eos=False), end_of()) == (-1, 1, 1)


def test_a_models_own_total_length_does_not_compete_with_the_answers(model_folder: Path) -> None:
    (model_folder / "generation_config.json").write_text('{"max_length": 20}', "utf-8")
    config = config_of(model_folder, max_tokens=3)
    assert config["max_new_tokens"] == 3
    assert "max_length" not in config


@pytest.mark.parametrize(("asked", "given"), [(None, 15), (15, 15), (1, 1)])
def test_an_answer_may_fill_the_context_and_no_more(
    model_folder: Path, asked: int | None, given: int
) -> None:
    assert config_of(model_folder, max_tokens=asked)["max_new_tokens"] == given


def test_a_prompt_and_answer_over_the_context_are_refused_with_the_counts(
    model_folder: Path,
) -> None:
    with pytest.raises(ApiError) as caught:
        engine(model_folder).call(chat(max_tokens=16))
    error = caught.value
    assert (error.status, error.code, error.param) == (400, "context_length_exceeded", "messages")
    assert "20 tokens and the prompt has 5" in error.message


def test_a_prompt_that_leaves_no_room_for_one_token_is_refused(model_folder: Path) -> None:
    full = CompletionRequest(model="chat", prompt="Hello " * 20, max_tokens=None)
    with pytest.raises(ApiError) as caught:
        engine(model_folder).call(full)
    assert caught.value.param == "prompt"
    almost = CompletionRequest(model="chat", prompt="Hello " * 19, max_tokens=None)
    body = json.loads(engine(model_folder).call(almost).body)
    assert json.loads(body["generation_config"])["max_new_tokens"] == 1


PLAIN = {"chat", "completions", "chat_template_kwargs", "ignore_eos"}
SAMPLING = {"temperature", "top_p", "top_k", "min_p", "seed", "stop", "repetition_penalty"}


def test_it_offers_sampling_and_what_the_adapter_does_itself(model_folder: Path) -> None:
    assert engine(model_folder).capabilities == PLAIN | SAMPLING


@pytest.mark.parametrize(
    ("file", "document"),
    [
        ("config.json", {"model_type": "qwen3"}),
        ("tokenizer_config.json", {"response_template": {"tool_calls": "x"}}),
    ],
)
def test_it_offers_tools_for_models_whose_calls_it_can_read(
    model_folder: Path, file: str, document: dict[str, Any]
) -> None:
    (model_folder / file).write_text(json.dumps(document), "utf-8")
    assert engine(model_folder).capabilities == PLAIN | SAMPLING | {"tools"}


TOOL = {"type": "function", "function": {"name": "Paris", "description": "is the capital"}}
SHOWING = "{% for tool in tools or [] %}{{ tool.function.description }}{% endfor %} {{ place }}"


def test_tools_and_template_variables_are_counted_with_the_prompt_and_sent(
    model_folder: Path,
) -> None:
    (model_folder / "chat_template.jinja").write_text(SHOWING, "utf-8")
    asked = chat(tools=[TOOL], chat_template_kwargs={"place": "of France"})
    body = json.loads(engine(model_folder).call(asked).body)
    assert body["tools"] == [TOOL]
    assert body["chat_template_kwargs"] == {"place": "of France"}
    assert json.loads(body["generation_config"])["max_new_tokens"] == 20 - 5
    bare = json.loads(engine(model_folder).call(chat(tools=[TOOL], tool_choice="none")).body)
    assert not {"tools", "tool_choice", "chat_template_kwargs"} & set(bare)
    assert json.loads(bare["generation_config"])["max_new_tokens"] == 20


def test_continuous_batching_is_greedy_and_offers_nothing_else(model_folder: Path) -> None:
    (model_folder / "generation_config.json").write_text('{"do_sample": true}', "utf-8")
    batching = engine(model_folder, continuous_batching=True)
    assert batching.capabilities == PLAIN
    body = json.loads(batching.call(chat()).body)
    assert json.loads(body["generation_config"])["do_sample"] is False
    assert "seed" in engine(model_folder).capabilities


def test_greedy_decoding_may_be_asked_for_in_words_under_continuous_batching(
    model_folder: Path,
) -> None:
    request = chat(temperature=0)
    assert set(request.needs) <= engine(model_folder, continuous_batching=True).capabilities


def test_it_is_started_on_loopback_and_never_asks_the_hub(model_folder: Path) -> None:
    launch = Launch("127.0.0.1", 1234, "unused", model_folder)
    plain = engine(model_folder, env={"OMP_NUM_THREADS": "2"})
    assert plain.command(launch) == [
        "/opt/engine/bin/transformers",
        "serve",
        str(model_folder),
        "--host",
        "127.0.0.1",
        "--port",
        "1234",
        "--device",
        "cpu",
    ]
    assert plain.environment(launch) == {"OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1"}


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"gpus": 1}, "--device cuda"),
        (
            {"continuous_batching": True},
            "--device cpu --continuous-batching --cb-max-memory-percent 0.1",
        ),
        (
            {"continuous_batching": True, "engine_args": {"cb-num-blocks": 256}},
            "--device cpu --continuous-batching --cb-num-blocks 256",
        ),
        ({"continuous_batching": True, "gpus": 1}, "--device cuda --continuous-batching"),
        ({"dtype": "bfloat16"}, "--device cpu --dtype bfloat16"),
        ({"quantization": "bnb-4bit"}, "--device cpu --quantization bnb-4bit"),
        ({"attn_implementation": "sdpa"}, "--device cpu --attn-implementation sdpa"),
        ({"compile": True}, "--device cpu --compile"),
        ({"seed": 0}, "--device cpu --default-seed 0"),
        (
            {"engine_args": {"cb_block_size": 32, "cb-use-cuda-graph": False}},
            "--device cpu --cb-block-size 32 --no-cb-use-cuda-graph",
        ),
    ],
    ids=str,
)
def test_each_setting_becomes_its_flag(
    model_folder: Path, fields: dict[str, object], line: str
) -> None:
    launch = Launch("127.0.0.1", 1234, "unused", model_folder)
    command = engine(model_folder, **fields).command(launch)
    assert command[command.index("--device") :] == line.split()


def event(text: str, reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": reason}
    return json.dumps({"choices": [choice]}).encode()


def answer(pieces: list[str], stops: list[str], reason: str = "length") -> tuple[str, str | None]:
    """What a client gets of an answer that comes in these pieces."""
    decoder = engine(Path("/nowhere")).decoder(chat(stop=stops))
    deltas = [
        delta
        for data in [*map(event, pieces), event("", reason)]
        for delta in decoder.decode(data).deltas
    ]
    return "".join(delta.text for delta in deltas), deltas[-1].finish_reason


@pytest.mark.parametrize(
    ("pieces", "stops", "text", "reason"),
    [
        (["Hello STOP"], ["STOP"], "Hello ", "stop"),
        (["Hello S", "T", "OP"], ["STOP"], "Hello ", "stop"),
        (["Hello S", "TO", "NE"], ["STOP"], "Hello STONE", "length"),
        (["Hello ST"], ["STOP"], "Hello ST", "length"),
        (["aa", "ab"], ["aab"], "a", "stop"),
        (["STOP"], ["STOP"], "", "stop"),
        (["a", "STOP", "more"], ["STOP"], "a", "stop"),
        (["abcd"], ["abcd", "c"], "ab", "stop"),
        (["a\n", "\nb"], ["\n\n"], "a", "stop"),
        (["Grüße", "💡", "!"], ["💡!"], "Grüße", "stop"),
        (["anything"], [], "anything", "length"),
    ],
)
def test_a_stop_text_is_cut_off_wherever_the_events_cut_it(
    pieces: list[str], stops: list[str], text: str, reason: str
) -> None:
    assert answer(pieces, stops) == (text, reason)


def test_text_that_cannot_become_a_stop_is_not_held_back() -> None:
    decoder = engine(Path("/nowhere")).decoder(chat(stop="STOP"))
    assert decoder.decode(event("Hello S")).deltas[0].text == "Hello "
    assert decoder.decode(event("un")).deltas[0].text == "Sun"


def tool_event(arguments: str, **delta: Any) -> bytes:
    calls = [{"index": 0, "id": "x", "function": {"name": "f", "arguments": arguments}}]
    choice = {"index": 0, "delta": {**delta, "tool_calls": calls}}
    return json.dumps({"choices": [choice]}).encode()


def test_stop_texts_cut_words_and_not_the_arguments_of_a_call() -> None:
    decoder = engine(Path("/nowhere")).decoder(chat(stop="STOP"))
    (call,) = decoder.decode(tool_event('{"a": "STOP"}')).deltas
    assert call.tools == [ToolDelta(0, '{"a": "STOP"}', "f", "x")]
    (end,) = decoder.decode(event("", "tool_calls")).deltas
    assert end.finish_reason == "tool_calls"


def test_words_held_back_before_a_call_are_said_in_the_end() -> None:
    decoder = engine(Path("/nowhere")).decoder(chat(stop="STOP"))
    data = [event("Hello S"), tool_event("{}"), event("", "tool_calls")]
    deltas = [delta for piece in data for delta in decoder.decode(piece).deltas]
    assert "".join(delta.text for delta in deltas) == "Hello S"


def test_nothing_follows_a_stop_text() -> None:
    decoder = engine(Path("/nowhere")).decoder(chat(stop="STOP"))
    data = [event("Hello STOP"), tool_event("{}", reasoning_content="hm"), event("", "tool_calls")]
    deltas = [delta for piece in data for delta in decoder.decode(piece).deltas]
    assert [(delta.text, delta.tools, delta.reasoning) for delta in deltas] == [
        ("Hello ", [], ""),
        ("", [], ""),
        ("", [], ""),
    ]
    assert deltas[-1].finish_reason == "stop"


def test_without_stops_nothing_is_held_back() -> None:
    decoder = engine(Path("/nowhere")).decoder(chat())
    assert decoder.decode(event("Hello S")).deltas[0].text == "Hello S"


# Few letters, so that stops overlap with the text, with each other and with themselves.
LETTERS = st.text("ab", max_size=12)
STOPS = st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3)


@given(LETTERS, STOPS, st.lists(st.integers(0, 12), max_size=6))
def test_the_cut_is_the_same_however_the_answer_is_split(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    marks = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in pairwise(marks)]
    whole = answer([text], stops)
    assert answer(pieces, stops) == whole
    assert not any(stop in whole[0] for stop in stops)
    assert (whole[1] == "stop") == any(stop in text for stop in stops)
    assert text.startswith(whole[0])
