"""How SGLang is started."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from serving.contract.chat import ChatRequest
from serving.engines.base import Launch
from serving.engines.sglang import Sglang
from serving.settings import SglangEngine


def engine(**fields: object) -> Sglang:
    settings = SglangEngine.model_validate(
        {"name": "sglang", "max_model_len": 4096, "home": "/opt/engine", **fields}
    )
    return Sglang(settings, Path("/models/chat/3"))


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    return Launch("127.0.0.1", 1234, "the-secret-key", tmp_path)


def test_the_command_serves_the_version_on_the_given_address(launch: Launch) -> None:
    assert engine(gpus=1).command(launch) == [
        "/opt/engine/bin/python",
        "-m",
        "sglang.launch_server",
        "--model-path",
        "/models/chat/3",
        "--host",
        "127.0.0.1",
        "--port",
        "1234",
        "--served-model-name",
        "model",
        "--config",
        str(launch.folder / "sglang.yaml"),
        "--enable-metrics",
        "--enable-cache-report",
        "--context-length",
        "4096",
    ]


def test_one_that_sleeps_keeps_its_weights_in_the_machines_memory(tmp_path: Path) -> None:
    asked = Launch("127.0.0.1", 1234, "the-secret-key", tmp_path, sleeps=True)
    told = {"--enable-memory-saver", "--enable-weights-cpu-backup"}
    assert told <= set(engine(gpus=1).command(asked))


def flags(launch: Launch, **fields: object) -> list[str]:
    """What the settings add to the command line of a GPU."""
    bare = engine(gpus=1).command(launch)
    return engine(**{"gpus": 1, **fields}).command(launch)[len(bare) :]


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"gpus": 4}, "--tp-size 4"),
        (
            {"gpus": 8, "pipeline_parallel": 2, "data_parallel": 2},
            "--tp-size 2 --pp-size 2 --dp-size 2",
        ),
        (
            {"gpus": 8, "data_parallel": 4, "engine_args": {"enable-dp-attention": True}},
            "--tp-size 8 --dp-size 4 --enable-dp-attention",
        ),
        ({"memory_fraction": 0.8}, "--mem-fraction-static 0.8"),
        ({"dtype": "bfloat16"}, "--dtype bfloat16"),
        ({"quantization": "fp8"}, "--quantization fp8"),
        ({"kv_cache_dtype": "fp8_e5m2"}, "--kv-cache-dtype fp8_e5m2"),
        ({"prefix_caching": True}, ""),
        ({"prefix_caching": False}, "--disable-radix-cache"),
        ({"chunked_prefill": 2048}, "--chunked-prefill-size 2048"),
        ({"chunked_prefill": False}, "--chunked-prefill-size=-1"),
        ({"max_running": 64}, "--max-running-requests 64"),
        ({"tool_parser": "qwen25"}, "--tool-call-parser qwen25"),
        ({"reasoning_parser": "qwen3"}, "--reasoning-parser qwen3"),
        ({"chat_template": "/t.jinja"}, "--chat-template /t.jinja"),
        ({"seed": 0}, "--random-seed 0"),
        (
            {"priority_scheduling": True},
            "--enable-priority-scheduling --schedule-low-priority-values-first "
            "--default-priority-value 0",
        ),
        ({"speculative": {"method": "mtp"}}, "--speculative-algorithm NEXTN"),
        (
            {"speculative": {"method": "ngram", "tokens": 4}},
            "--speculative-algorithm NGRAM --speculative-num-draft-tokens 5",
        ),
        (
            {"speculative": {"method": "draft_model", "model": "/draft", "tokens": 2}},
            "--speculative-algorithm STANDALONE --speculative-draft-model-path /draft "
            "--speculative-num-draft-tokens 3 --speculative-num-steps 2 --speculative-eagle-topk 1",
        ),
        ({"engine_args": {"page_size": 16}}, "--page-size 16"),
    ],
    ids=str,
)
def test_each_setting_becomes_its_flag(
    launch: Launch, fields: dict[str, object], line: str
) -> None:
    assert flags(launch, **fields) == line.split()


def test_adapters_are_loaded_by_name(launch: Launch) -> None:
    line = flags(launch, lora={"law": "/ad/la w", "tax": "/ad/tax"})
    assert line[:2] == ["--enable-lora", "--lora-paths"]
    assert [json.loads(path) for path in line[2:]] == [
        {"lora_name": "law", "lora_path": "/ad/la w"},
        {"lora_name": "tax", "lora_path": "/ad/tax"},
    ]


CPU = ["--device", "cpu"]
EVERY_CPU = ["--attention-backend", "torch_native", "--disable-cuda-graph"]


def test_without_a_gpu_it_runs_on_the_cpu_in_the_way_that_every_cpu_can(launch: Launch) -> None:
    sglang = engine()
    line = sglang.command(launch)
    assert line[line.index("--device") :] == [*CPU, *EVERY_CPU, "--sleep-on-idle"]
    assert sglang.environment(launch)["SGLANG_USE_CPU_ENGINE"] == "1"
    assert "SGLANG_USE_CPU_ENGINE" not in engine(gpus=1).environment(launch)


def test_a_build_for_one_kind_of_cpu_names_its_own_attention(launch: Launch) -> None:
    line = engine(engine_args={"attention-backend": "intel_amx"}).command(launch)
    own = ["--attention-backend", "intel_amx", "--sleep-on-idle"]
    assert line[line.index("--device") :] == [*CPU, *own]


def test_another_device_than_a_gpu_or_cpu_can_be_named(launch: Launch) -> None:
    sglang = engine(engine_args={"device": "xpu", "attention-backend": "intel_xpu"})
    assert sglang.command(launch)[-4:] == ["--device", "xpu", "--attention-backend", "intel_xpu"]
    assert "SGLANG_USE_CPU_ENGINE" not in sglang.environment(launch)


def test_the_key_lies_in_a_file_that_only_this_user_can_read(launch: Launch) -> None:
    before = os.umask(0)
    try:
        engine().prepare(launch)
    finally:
        os.umask(before)
    file = launch.folder / "sglang.yaml"
    assert yaml.safe_load(file.read_text("utf-8")) == {"api-key": "the-secret-key"}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize("key", ["123456", "-abc", "null", "1e5", "_-0", "yes"])
def test_a_key_that_looks_like_something_else_in_yaml_is_still_that_text(
    tmp_path: Path, key: str
) -> None:
    engine().prepare(Launch("127.0.0.1", 1, key, tmp_path))
    assert yaml.safe_load((tmp_path / "sglang.yaml").read_text("utf-8"))["api-key"] == key


def test_the_key_stands_neither_in_the_command_nor_in_the_environment(launch: Launch) -> None:
    sglang = engine()
    assert sglang.takes_key
    told = [*sglang.command(launch), *sglang.environment(launch).values()]
    assert not any("the-secret-key" in part for part in told)


def request(**fields: Any) -> ChatRequest:
    body = {"model": "chat", "messages": [{"role": "user", "content": "Hi"}], **fields}
    return ChatRequest.model_validate(body)


def test_an_adapter_is_named_behind_the_model() -> None:
    assert json.loads(engine().call(request(), "law").body)["model"] == "model:law"
    assert json.loads(engine().call(request()).body)["model"] == "model"


def text_of(pieces: list[str], reason: str) -> str:
    """What a client gets of these pieces; the last comes with the finish reason."""
    decoder = engine().decoder(request())
    said = []
    for at, piece in enumerate(pieces):
        last = at == len(pieces) - 1
        choice = {"delta": {"content": piece}, "finish_reason": reason if last else None}
        deltas = decoder.decode(json.dumps({"choices": [choice]}).encode()).deltas
        said += [delta.text for delta in deltas]
    return "".join(said)


@pytest.mark.parametrize(
    ("pieces", "reason", "text"),
    [
        (["Hi ", "\ufffd", ""], "length", "Hi "),
        (["Hi ", "\ufffd"], "length", "Hi "),
        (["Hi \ufffd\ufffd", "\ufffd", ""], "length", "Hi "),
        (["Hi ", "\ufffd", "!", ""], "length", "Hi \ufffd!"),
        (["Hi ", "\ufffd", ""], "stop", "Hi \ufffd"),
        (["Hi ", "\ufffd", "\ufffd!"], "stop", "Hi \ufffd\ufffd!"),
    ],
)
def test_a_character_the_token_limit_cut_in_two_is_not_shown(
    pieces: list[str], reason: str, text: str
) -> None:
    assert text_of(pieces, reason) == text


@given(st.lists(st.text("a\ufffd", max_size=3), min_size=1, max_size=6))
def test_what_the_model_said_itself_is_whole_however_it_was_cut(pieces: list[str]) -> None:
    assert text_of(pieces, "stop") == "".join(pieces)
    assert text_of(pieces, "length") == "".join(pieces).rstrip("\ufffd")


def test_each_choice_waits_for_its_own_characters() -> None:
    decoder = engine().decoder(request(n=2))

    def said(index: int, text: str) -> str:
        choice = {"index": index, "delta": {"content": text}}
        deltas = decoder.decode(json.dumps({"choices": [choice]}).encode()).deltas
        return "".join(delta.text for delta in deltas)

    assert (said(0, "\ufffd"), said(1, "b"), said(0, "a")) == ("", "b", "\ufffda")


def test_a_seed_is_heard_only_where_all_is_deterministic() -> None:
    assert "seed" not in engine().capabilities
    deterministic = engine(engine_args={"enable-deterministic-inference": True})
    assert "seed" in deterministic.capabilities


def entry(token: str, *data: int) -> dict[str, Any]:
    return {"token": token, "bytes": list(data), "logprob": -0.5, "top_logprobs": []}


def told(*choices: dict[str, Any]) -> list[tuple[str, list[list[int] | None], str | None]]:
    """(text, bytes of each entry, finish reason) of every delta."""
    decoder = engine().decoder(request(logprobs=True))
    data = [json.dumps({"choices": [choice]}).encode() for choice in choices]
    deltas = [delta for event in data for delta in decoder.decode(event).deltas]
    return [(d.text, [one.bytes for one in d.logprobs], d.finish_reason) for d in deltas]


def said(text: str | None, *entries: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    logprobs = {"content": list(entries)} if entries else None
    return {"delta": {"content": text}, "logprobs": logprobs, "finish_reason": reason}


def test_the_entries_of_a_character_come_with_it_and_the_end_token_has_none() -> None:
    parts = [said(None, entry("\ufffd", 227)), said(None, entry("\ufffd", 129))]
    whole = said("こ", entry("\ufffd", 147))
    end = [said(None, entry("<|end|>", 60)), said(None, reason="stop")]
    assert told(*parts, whole, *end) == [("こ", [[227], [129], [147]], None), ("", [], "stop")]


def test_the_entries_of_a_character_that_was_cut_in_two_still_come() -> None:
    parts = [said("Hi", entry("Hi", 72, 105)), said(None, entry("\ufffd", 227))]
    assert told(*parts, said("\ufffd"), said(None, reason="length")) == [
        ("Hi", [[72, 105]], None),
        ("", [[227]], "length"),
    ]


END = entry("<|end|>", *b"<|end|>")


def test_an_end_token_in_one_event_with_the_last_text_has_no_entry() -> None:
    # SGLang makes one event of those that its server was too busy to send apart.
    both = said("Hi!", entry("Hi", 72, 105), entry("!", 33), END)
    assert told(both, said(None, reason="stop")) == [
        ("Hi!", [[72, 105], [33]], None),
        ("", [], "stop"),
    ]
    split = said("こ", *(entry("\ufffd", byte) for byte in "こ".encode()), END)
    assert told(split, said(None, reason="stop")) == [
        ("こ", [[227], [129], [147]], None),
        ("", [], "stop"),
    ]


@pytest.mark.parametrize(
    "events",
    [
        [said("a", entry("a", 97)), said(None, END), said("b", entry("b", 98)), said(None, END)],
        [said("a", entry("a", 97), END), said("b", entry("b", 98), END, END)],
        [said("ab", entry("a", 97), END, entry("b", 98), END)],
    ],
)
def test_end_tokens_within_an_answer_have_no_entries(events: list[dict[str, Any]]) -> None:
    parts = told(*events, said(None, reason="length"))
    assert "".join(text for text, _, _ in parts) == "ab"
    assert [data for _, entries, _ in parts for data in entries] == [[97], [98]]


def test_a_character_behind_an_event_of_several_tokens_waits_for_its_rest() -> None:
    parts = [said("ん", entry("ん", *"ん".encode()), entry("\ufffd", 227))]
    parts += [said("こ", entry("\ufffd", 129), entry("\ufffd", 147), END)]
    assert told(*parts) == [
        ("ん", [[227, 130, 147]], None),
        ("こ", [[227], [129], [147]], None),
    ]


def test_entries_that_do_not_spell_the_text_all_come() -> None:
    assert told(said(" to be", entry("to", 116, 111), entry("be", 98, 101))) == [
        (" to be", [[116, 111], [98, 101]], None)
    ]


@given(st.data())
def test_entries_spell_the_text_however_the_tokens_are_put_into_events(data: st.DataObject) -> None:
    text = data.draw(st.text("ab んこ😀", min_size=1, max_size=6))
    said_so_far, tokens = b"", []
    for byte in text.encode():  # a token of each byte, and end tokens between characters
        said_so_far += bytes([byte])
        whole = said_so_far.decode(errors="ignore")
        tokens.append((whole, entry("\ufffd", byte)))
        if whole.encode() == said_so_far and data.draw(st.booleans()):
            tokens.append((whole, END))
    events, shown, entries = [], "", []
    for at, (whole, one) in enumerate(tokens):
        entries.append(one)
        if at == len(tokens) - 1 or data.draw(st.booleans()):
            events.append(said(whole.removeprefix(shown) or None, *entries))
            shown, entries = whole, []
    parts = told(*events, said(None, reason=data.draw(st.sampled_from(["stop", "length"]))))
    spelt = [one for _, part, _ in parts for one in part]
    assert b"".join(bytes(one or []) for one in spelt).decode() == text
    assert "".join(said for said, _, _ in parts) == text
