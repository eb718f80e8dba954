"""What `engine_args` passes on to an engine, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from serving.settings.engine_args import SGLANG, TRANSFORMERS, VLLM, Flags, command_line


def refusal(flags: Flags, args: dict[str, Any]) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - its message is the result
        flags.checked(args)
    return str(caught.value)


def test_flags_are_written_in_the_engines_spelling_without_dashes() -> None:
    args = {"max_num_queued_reqs": 9, "stream-interval": 2, "compilation-config.pass_config": 1}
    assert VLLM.checked(args) == {
        "max-num-queued-reqs": 9,
        "stream-interval": 2,
        "compilation-config.pass_config": 1,
    }


def test_null_is_the_engines_own_default() -> None:
    assert SGLANG.checked({"page-size": None}) == {}


@pytest.mark.parametrize("name", ["--page-size", "-tp", "-O3", "page size", "host=1", "", "é"])
def test_only_whole_names_are_taken(name: str) -> None:
    assert "full name without the leading dashes" in refusal(SGLANG, {name: 1})


@pytest.mark.parametrize(
    ("flags", "name", "setting"),
    [
        (VLLM, "tensor-parallel-size", "tensor_parallel"),
        (VLLM, "max_model_len", "max_model_len"),
        (VLLM, "device-memory-utilization", "memory_fraction"),
        (VLLM, "spec-method", "speculative"),
        (SGLANG, "tp-size", "tensor_parallel"),
        (SGLANG, "mem-fraction-static", "memory_fraction"),
        (SGLANG, "random-seed", "seed"),
        (TRANSFORMERS, "device", "gpus"),
        (TRANSFORMERS, "default_seed", "seed"),
    ],
)
def test_a_flag_with_a_setting_is_answered_with_the_setting(
    flags: Flags, name: str, setting: str
) -> None:
    message = refusal(flags, {name: None})
    assert message.endswith(f"has a setting of its own: write engine.{setting} instead")


@pytest.mark.parametrize("flags", [VLLM, SGLANG, TRANSFORMERS])
@pytest.mark.parametrize("name", ["host", "port"])
def test_what_the_service_sets_itself_is_refused_with_the_reason(flags: Flags, name: str) -> None:
    assert f"{name} cannot be given: the service binds" in refusal(flags, {name: "0.0.0.0"})


@pytest.mark.parametrize("flags", [VLLM, SGLANG])
@pytest.mark.parametrize("name", ["api-key", "config", "ssl-keyfile", "served_model_name"])
def test_what_would_break_the_gateways_way_in_is_refused(flags: Flags, name: str) -> None:
    assert "cannot be given: " in refusal(flags, {name: "x"})


@pytest.mark.parametrize(
    ("flags", "name", "whole"),
    [
        (VLLM, "hos", "host"),
        (VLLM, "api_k", "api-key"),
        (VLLM, "gpu-mem", "gpu-memory-utilization"),
        (VLLM, "q", "quantization"),
        (SGLANG, "tp", "tp-size"),
        (SGLANG, "model-p", "model-path"),
        (SGLANG, "speculative-draft-model", "speculative-draft-model-path"),
    ],
)
def test_an_abbreviation_of_such_a_flag_is_refused_too(flags: Flags, name: str, whole: str) -> None:
    assert f" is short for {whole}, which " in refusal(flags, {name: 1})


def test_a_flag_that_only_begins_like_one_of_ours_is_the_engines() -> None:
    args = {"model-impl": "auto", "chat-template-content-format": "string", "max-loras": 2}
    assert VLLM.checked(args) == args


def test_a_field_of_a_refused_json_flag_is_refused() -> None:
    assert "short for config" in refusal(VLLM, {"confi.x": 1})
    assert VLLM.checked({"speculative-config.prompt_lookup_max": 4})


def test_a_flag_is_written_once() -> None:
    assert "is written twice" in refusal(SGLANG, {"page-size": 1, "page_size": 2})


def test_false_switches_off_what_can_be_switched_off() -> None:
    assert VLLM.checked({"async-scheduling": False}) == {"async-scheduling": False}
    assert SGLANG.checked({"lora-strict-loading": False}) == {"lora-strict-loading": False}
    for flags, name in ((VLLM, "aggregate-engine-logging"), (SGLANG, "enable-torch-compile")):
        assert "cannot be switched off: leave it out" in refusal(flags, {name: False})
        assert flags.checked({name: True}) == {name: True}


def test_a_negation_is_written_as_false() -> None:
    told = "write `async-scheduling: false` instead of"
    assert told in refusal(VLLM, {"no_async_scheduling": True})


@pytest.mark.parametrize("value", [[], [True], [None], [[1]], ["--host=0.0.0.0"], [-1], object()])
def test_a_value_the_command_line_cannot_carry_is_refused(value: object) -> None:
    assert "page-size must be" in refusal(SGLANG, {"page-size": value})
    assert "JSON cannot say" in refusal(SGLANG, {"mm-process-config": {"a": object()}})


@pytest.mark.parametrize(
    ("value", "line"),
    [
        (None, []),
        (True, ["--x-y"]),
        (False, ["--no-x-y"]),
        (64, ["--x-y", "64"]),
        (0.5, ["--x-y", "0.5"]),
        ("a b", ["--x-y", "a b"]),
        (-1, ["--x-y=-1"]),
        ("--host=0.0.0.0", ["--x-y=--host=0.0.0.0"]),
        (["a", 1], ["--x-y", "a", "1"]),
        ({"a": [1, True]}, ["--x-y", '{"a": [1, true]}']),
    ],
)
def test_values_become_arguments(value: object, line: list[str]) -> None:
    assert command_line({"x-y": value}) == line


def test_a_field_of_a_json_flag_carries_json() -> None:
    assert command_line({"a.b": True, "a.c": "x"}) == ["--a.b=true", '--a.c="x"']
