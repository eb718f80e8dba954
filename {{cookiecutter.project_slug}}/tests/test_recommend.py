"""Which rule fires when, what its settings are, and what a person or a script sees of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner, Result

from serving.cli_engine import engine
from serving.recommend import Recommendation, recommend
from serving.recommend.figures import FIGURES
from serving.recommend.reasons import demand, first_token, shortfalls, would_fit
from serving.recommend.rules import RULES
from serving.recommend.sizing import (
    GIB,
    PLANNED,
    ModelType,
    Needs,
    Quantization,
    estimate_shape,
    plan,
    shape_of,
)
from serving.settings import Settings

TEXT = ("--model-type", "text", "--parameters-b", "8", "--context", "8192")
GPU = ("--gpus", "1", "--gpu-memory-gib", "80", "--concurrency", "32")


def asked(billions: float = 8, **given: Any) -> Recommendation:
    width = given.get("quantization", Quantization.NONE).bytes_per_weight
    shape = estimate_shape(billions * 1e9, billions * 1e9 * width)
    gpu = {"gpus": 1, "gpu_memory_gib": 80, "concurrency": 32}
    return recommend(
        Needs(**{"model_type": ModelType.TEXT, "shape": shape, "context": 8192, **gpu, **given})
    )


CPU: dict[str, Any] = {"gpus": 0, "gpu_memory_gib": 0}
CASES: list[tuple[str, str | None, dict[str, Any]]] = [
    ("tabular model", None, {"model_type": ModelType.TABULAR, "shape": None}),
    ("classic vision model", None, {"model_type": ModelType.VISION, "shape": None}),
    ("pipeline of models", None, {"model_type": ModelType.PIPELINE, "shape": None}),
    ("embedding model on a CPU", "openai_compatible", {"model_type": ModelType.EMBEDDING, **CPU}),
    ("embedding model on a GPU", "vllm", {"model_type": ModelType.EMBEDDING}),
    ("GGUF weights", "openai_compatible", {"quantization": Quantization.GGUF}),
    ("hundreds of streams on a CPU", None, {**CPU, "concurrency": 100}),
    ("streams on a CPU", "openai_compatible", {**CPU, "concurrency": 99}),
    ("streams on a CPU", "openai_compatible", {**CPU, "concurrency": 2}),
    (
        "streams on a CPU",
        "openai_compatible",
        {**CPU, "concurrency": 1, "model_type": ModelType.VISION_LANGUAGE},
    ),
    ("one stream on a CPU", "transformers", {**CPU, "concurrency": 1}),
    ("more memory than there is", None, {"billions": 70}),
    ("long shared prefixes", "sglang", {"shared_prefix": 0.5}),
    ("long shared prefixes", "sglang", {"shared_prefix": 1.0, "concurrency": 1}),
    ("streams on GPUs", "vllm", {"shared_prefix": 0.49}),
    ("streams on GPUs", "vllm", {"model_type": ModelType.VISION_LANGUAGE, "concurrency": 1}),
    ("one stream on one GPU", "transformers", {"concurrency": 1}),
    ("streams on GPUs", "vllm", {"concurrency": 2}),
    ("streams on GPUs", "vllm", {"concurrency": 1, "ttft_ms": 200}),
    ("streams on GPUs", "vllm", {"concurrency": 1, "quantization": Quantization.FP8}),
    ("streams on GPUs", "vllm", {"concurrency": 1, "billions": 70, "gpus": 2}),
    (
        "long shared prefixes",
        "sglang",
        {
            "billions": 70,
            "gpus": 8,
            "concurrency": 30,
            "shared_prefix": 0.9,
            "ttft_ms": 500,
            "quantization": Quantization.FP8,
            "fp8_kv_cache": True,
        },
    ),
    ("streams on GPUs", "vllm", {"gpus": 6, "concurrency": 300, "fp8_kv_cache": True}),
]


@pytest.mark.parametrize(("rule", "chosen", "given"), CASES)
def test_each_rule_fires_where_it_should(
    rule: str, chosen: str | None, given: dict[str, Any]
) -> None:
    answer = asked(**given)
    assert (answer.rule, answer.engine) == (rule, chosen)
    assert answer.reasons
    assert answer.engine or answer.instead


def test_every_rule_has_a_case() -> None:
    assert {rule for rule, _, _ in CASES} == {rule.name for rule in RULES}


@pytest.mark.parametrize("given", [given for _, chosen, given in CASES if chosen])
def test_the_section_is_one_that_serving_yaml_takes(given: dict[str, Any]) -> None:
    pasted = yaml.safe_load(yaml.safe_dump({"engine": asked(**given).section}))
    Settings.model_validate({"service": {"name": "x"}, "models": {"chat": {}}, **pasted})


@pytest.mark.parametrize("given", [given for _, _, given in CASES])
def test_what_is_cited_is_in_the_table_with_its_source(given: dict[str, Any]) -> None:
    assert all(figure.claim and figure.source for figure in asked(**given).figures.values())


def test_the_table_holds_nothing_that_no_answer_cites() -> None:
    more: list[dict[str, Any]] = [
        {"ttft_ms": 1},
        {"quantization": Quantization.AWQ},
        {"concurrency": 400},
    ]
    cited = {name for given in [*(c[2] for c in CASES), *more] for name in asked(**given).figures}
    assert cited == set(FIGURES)


def test_every_source_is_an_address_or_says_how_this_project_measured() -> None:
    for figure in FIGURES.values():
        assert (
            "https://" in figure.source
            or "huggingface.co" in figure.source
            or (figure.source.startswith("measured by this project"))
        )


def test_vllm_on_one_gpu_gets_what_was_asked_and_no_more() -> None:
    assert asked().section == {
        "name": "vllm",
        "max_model_len": 8192,
        "gpus": 1,
        "memory_fraction": 0.92,
        "max_running": 32,
    }


def test_sglang_on_eight_gpus_gets_every_setting_that_follows() -> None:
    answer = asked(
        70, gpus=8, shared_prefix=0.7, ttft_ms=300, fp8_kv_cache=True, quantization=Quantization.FP8
    )
    assert answer.section == {
        "name": "sglang",
        "max_model_len": 8192,
        "gpus": 8,
        "tensor_parallel": 2,
        "data_parallel": 4,
        "memory_fraction": 0.85,
        "max_running": 8,
        "quantization": "fp8",
        "kv_cache_dtype": "fp8_e4m3",
        "prefix_caching": True,
        "chunked_prefill": 8192,
    }


def test_embedding_models_get_no_settings_of_generation() -> None:
    section = asked(model_type=ModelType.EMBEDDING, ttft_ms=100, shared_prefix=0.9).section
    assert section is not None
    assert not section.keys() & {"prefix_caching", "chunked_prefill"}


@pytest.mark.parametrize(("memory", "chunk"), [(39, None), (40, 8192)])
def test_large_prefill_chunks_are_for_large_gpus(memory: int, chunk: int | None) -> None:
    section = asked(ttft_ms=300, gpu_memory_gib=memory).section
    assert section is not None
    assert section.get("chunked_prefill") == chunk


def test_awq_is_read_from_the_model_and_not_named() -> None:
    answer = asked(quantization=Quantization.AWQ)
    assert answer.section is not None
    assert "quantization" not in answer.section
    assert "awq" in answer.figures


def test_a_target_that_no_h100_can_meet_is_called_unlikely_with_what_helps() -> None:
    answer = asked(ttft_ms=132)
    assert any("132 ms is unlikely" in line.text for line in answer.warnings)
    assert any("TensorRT-LLM" in line.text for line in answer.instead)
    assert not any("unlikely" in line.text for line in asked(ttft_ms=133).warnings)


def test_a_cpu_gets_no_invented_time_to_first_token() -> None:
    answer = asked(**CPU, concurrency=1, ttft_ms=500)
    assert any("run the load test" in line.text for line in answer.reasons)


def test_a_transformer_without_its_shape_is_an_error() -> None:
    with pytest.raises(ValueError, match="say the shape"):
        recommend(Needs(ModelType.TEXT, gpus=1, gpu_memory_gib=80))


# The memory arithmetic, against calculations by hand.

LLAMA_8B: dict[str, Any] = {
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 4096,
    "max_position_embeddings": 8192,
    "torch_dtype": "bfloat16",
}


def sized(parameters: float = 8e9, **given: Any) -> Needs:
    shape = shape_of({**LLAMA_8B, **given.pop("config", {})}, parameters, 0, 2)
    return Needs(
        **{
            "model_type": ModelType.TEXT,
            "shape": shape,
            "context": 8192,
            "gpus": 1,
            "gpu_memory_gib": 80,
            **given,
        }
    )


def test_a_token_of_an_8_b_llama_takes_128_kib_of_kv_cache_in_bf16_and_half_in_fp8() -> None:
    # 2 (key, value) x 32 layers x 8 heads x 128 elements x 2 bytes
    assert sized().kv_bytes == 131_072 == 128 * 1024
    assert sized(fp8_kv_cache=True).kv_bytes == 64 * 1024


def test_a_token_of_opt_13b_takes_what_the_paged_attention_paper_says() -> None:
    opt = {"num_hidden_layers": 40, "num_attention_heads": 40, "hidden_size": 5120}
    assert shape_of(opt, 13e9, 0, 2).kv_bytes(2) == 819_200  # "800 KB"


def test_weights_are_parameters_times_bytes() -> None:
    assert sized(8e9).model.weight_bytes == 16e9
    assert estimate_shape(70e9, 70e9 * Quantization.AWQ.bytes_per_weight).weight_bytes == 35e9


def test_room_for_streams_is_what_weights_leave_of_the_planned_share() -> None:
    found = plan(sized(concurrency=1))
    assert found is not None
    by_hand = (PLANNED * 80 * GIB - 16e9) / (128 * 1024)
    assert found.kv_tokens == int(by_hand) == 434_985
    assert found.streams == 53  # of 1 GiB each in 53.1 GiB


def test_the_smallest_group_of_gpus_that_holds_all_streams_is_taken() -> None:
    # Two copies on a GPU each have room for 106; both GPUs together for 121, their weights shared.
    layouts = {streams: plan(sized(concurrency=streams, gpus=2)) for streams in (106, 107, 121)}
    found = [layout and (layout.tensor_parallel, layout.copies) for layout in layouts.values()]
    assert found == [(1, 2), (2, 1), (2, 1)]


def test_when_no_layout_holds_all_streams_the_one_with_most_room_is_taken() -> None:
    found = plan(sized(concurrency=1000, gpus=2))
    assert found is not None
    assert (found.tensor_parallel, found.streams) == (2, 121)


def test_copies_come_before_larger_groups_of_gpus() -> None:
    found = plan(sized(concurrency=200, gpus=4))
    assert found is not None
    assert (found.tensor_parallel, found.copies, found.streams) == (1, 4, 212)


def test_there_are_no_more_copies_than_streams() -> None:
    found = plan(sized(concurrency=2, gpus=8))
    assert found is not None
    assert (found.tensor_parallel, found.copies) == (1, 2)
    assert any(
        "6 GPUs left over" in line.text for line in shortfalls(sized(gpus=8, concurrency=2), found)
    )


def test_a_70_b_model_in_bf16_needs_two_gpus_of_80_gib_and_gets_four_for_more_streams() -> None:
    seventy = sized(
        70e9, config={"num_hidden_layers": 80, "num_attention_heads": 64, "head_dim": 128}
    )
    assert plan(replace(seventy, gpus=1)) is None
    two = plan(replace(seventy, gpus=2))
    assert two is not None and (two.tensor_parallel, two.streams) == (2, 2)
    four = plan(replace(seventy, gpus=4, concurrency=40))
    assert four is not None and (four.tensor_parallel, four.copies) == (4, 1)


def test_gpus_that_do_not_divide_the_attention_heads_are_not_taken() -> None:
    odd = {"num_attention_heads": 6, "num_key_value_heads": 2, "hidden_size": 768}
    found = plan(sized(60e9, config=odd, gpus=4))
    assert found is not None and found.tensor_parallel == 2
    assert plan(sized(140e9, config=odd, gpus=8)) is None


def test_kv_heads_fewer_than_gpus_are_copied_not_cut() -> None:
    two_heads = sized(config={"num_key_value_heads": 2}).model
    assert [two_heads.kv_parts(gpus) for gpus in (1, 2, 4)] == [1, 2, 2]


def test_latent_attention_caches_its_own_elements_and_is_not_divided() -> None:
    deepseek = sized(config={"kv_lora_rank": 512, "qk_rope_head_dim": 64, "num_hidden_layers": 61})
    assert deepseek.kv_bytes == 61 * 576 * 2
    assert deepseek.model.kv_parts(8) == 1


def test_layers_of_linear_attention_keep_no_cache() -> None:
    kinds = ["linear_attention", "linear_attention", "linear_attention", "full_attention"]
    assert sized(config={"layer_types": kinds * 8}).model.layers == 8


def test_a_vision_language_model_is_read_from_its_text_config() -> None:
    assert shape_of({"text_config": LLAMA_8B, "vision_config": {}}, 8e9, 0, 2).layers == 32


@pytest.mark.parametrize(
    ("config", "bytes_per_weight", "parameters", "weights"),
    [
        ({}, 2, 8e9, 16e9),
        ({"torch_dtype": "float32"}, 2, 4e9, 8e9),  # engines load it in 16 bits
        ({}, 1, 8e9, 8e9),  # to be made fp8
        ({"quantization_config": {"quant_method": "awq"}}, 2, 32e9, 16e9),
        ({"quantization_config": {"quant_method": "fp8"}}, 2, 16e9, 16e9),
    ],
)
def test_the_weight_files_tell_the_parameters(
    config: dict[str, Any], bytes_per_weight: float, parameters: float, weights: float
) -> None:
    shape = shape_of({**LLAMA_8B, **config}, None, 16_000_000_000, bytes_per_weight)
    assert (shape.parameters, shape.weight_bytes) == (parameters, weights)


@pytest.mark.parametrize(
    ("billions", "kib"), [(1, 32), (2, 32), (2.1, 128), (8, 128), (70, 320), (405, 504)]
)
def test_an_unnamed_model_is_estimated_by_its_size_and_said_to_be(
    billions: float, kib: int
) -> None:
    shape = estimate_shape(billions * 1e9, billions * 2e9)
    assert shape.kv_bytes(2) == kib * 1024
    line = demand(Needs(ModelType.TEXT, shape))
    assert "estimated from the size" in line.text
    assert "shapes" in line.figures
    assert "from config.json" in demand(sized()).text


def test_what_does_not_fit_is_told_with_what_would() -> None:
    seventy = sized(
        70e9, config={"num_hidden_layers": 80, "num_attention_heads": 64, "head_dim": 128}
    )
    told = [line.text for line in would_fit(replace(seventy, gpus=1))]
    assert told == [
        "--quantization fp8, weights of 65.2 GiB: 1 full stream",
        "2 such GPUs: 2 full streams",
    ]
    assert [line.text for line in would_fit(sized(context=1_000_000))] == [
        "--context 434688: one stream",
        "4 such GPUs: 2 full streams",
    ]


def test_more_streams_than_fit_are_told_with_the_length_that_does() -> None:
    busy = sized(concurrency=100)
    found = plan(busy)
    assert found is not None
    told = " ".join(line.text for line in shortfalls(busy, found))
    assert "100 streams fit while prompt and answer are 4,349 tokens" in told
    assert "--fp8-kv-cache gives room for all of them" in told


def test_a_context_longer_than_the_model_was_made_for_is_told() -> None:
    long = sized(context=16384)
    found = plan(long)
    assert found is not None
    assert "config.json says 8,192 tokens" in " ".join(
        line.text for line in shortfalls(long, found)
    )


def test_time_to_first_token_is_bound_by_two_operations_per_parameter_and_token() -> None:
    found = plan(sized())
    assert found is not None
    # 2 x 8e9 x 8192 / 989e12 = 132.5 ms
    likely, line = first_token(sized(ttft_ms=133), found)
    assert likely and "8,192 new prompt tokens take about 133 ms at the peak of 1 H100" in line.text
    assert line.figures == ("flops", "h100")
    unlikely, line = first_token(sized(ttft_ms=132), found)
    assert not unlikely and "TTFT of 132 ms is unlikely" in line.text


def test_repeated_prefixes_more_gpus_and_a_known_gpu_change_that_bound() -> None:
    one = plan(sized())
    assert one is not None
    assert "1,638 new prompt tokens" in first_token(sized(shared_prefix=0.8), one)[1].text
    assert "66 ms" in first_token(sized(), replace(one, tensor_parallel=2))[1].text
    own = first_token(sized(gpu_tflops=98.9), one)[1]
    assert "1,325 ms at the peak of 1 GPU," in own.text
    assert own.figures == ("flops",)


def test_no_bound_is_told_when_only_some_experts_compute_a_token() -> None:
    mixed = sized(config={"num_local_experts": 8}, ttft_ms=1)
    found = plan(mixed)
    assert found is not None
    assert first_token(mixed, found)[0]
    assert "load test" in first_token(mixed, found)[1].text


# The command line.


def told(*args: str, typed: str | None = None) -> Result:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.add_typer(engine, name="engine")
    return CliRunner().invoke(app, ["engine", "recommend", *args], input=typed)


def test_a_person_sees_the_engine_a_section_to_paste_the_reasons_and_their_sources() -> None:
    done = told(*TEXT, *GPU, "--ttft-ms", "300")
    assert done.exit_code == 0, done.output
    shown = done.stdout
    assert shown.startswith("vllm (rule: streams on GPUs)")
    section = yaml.safe_load(shown[shown.index("engine:") : shown.index("why")])
    assert section["engine"]["max_running"] == 32
    assert "128 KiB a token" in shown
    assert "https://arxiv.org/abs/2309.06180" in shown


def test_json_says_the_same_to_a_script() -> None:
    done = told(*TEXT, *GPU, "--json")
    answer = json.loads(done.stdout)
    assert answer["engine"] == "vllm"
    assert answer["section"]["max_model_len"] == 8192
    named = {name for line in answer["reasons"] for name in line["figures"]}
    assert named <= answer["figures"].keys()
    assert answer["figures"]["kv"]["source"].startswith("https://")


def test_no_more_is_asked_about_what_is_not_one_transformer() -> None:
    done = told("--model-type", "tabular", "--json")
    assert json.loads(done.stdout)["engine"] is None


@pytest.mark.parametrize(
    ("flag", "args"),
    [
        ("--model-type", ()),
        ("--parameters-b", ("--model-type", "text")),
        ("--gpus", TEXT),
        ("--gpu-memory-gib", (*TEXT, "--gpus", "1")),
        ("--concurrency", (*TEXT, "--gpus", "0")),
        ("--context", (*TEXT[:-2], "--gpus", "0", "--concurrency", "1")),
    ],
)
def test_a_flag_that_is_missing_without_a_terminal_is_one_sentence_that_names_it(
    flag: str, args: tuple[str, ...]
) -> None:
    done = told(*args)
    assert done.exit_code == 1
    assert done.output == f"serving: {flag} is missing, and there is no terminal to ask on.\n"


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--shared-prefix", "3"),
        ("--shared-prefix", "-0.1"),
        ("--gpus", "-1"),
        ("--concurrency", "0"),
        ("--context", "0"),
        ("--ttft-ms", "-5"),
        ("--parameters-b", "0"),
        ("--model-type", "poem"),
        ("--quantization", "1bit"),
        ("--model", "/nowhere"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_its_flag(flag: str, value: str) -> None:
    done = told(flag, value)
    assert done.exit_code == 2
    assert f"Invalid value for '{flag}'" in " ".join(done.output.split())


def test_a_terminal_is_asked_for_what_no_flag_says_and_again_for_what_makes_no_sense(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("serving.cli_engine._has_terminal", lambda: True)
    answers = ["poem", "text", "8", "-1", "1", "80", "32", "8192", "3", "", "0"]
    done = told("--json", typed="\n".join(answers) + "\n")
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout[done.stdout.index("{") :])  # what was typed stands before it
    assert answer["section"]["max_running"] == 32
    assert "Model type (text, " in done.stderr
    assert "write a number of 0 or more" in done.stderr
    assert "write a number from 0 to 1" in done.stderr


def write_model(folder: Path, files: int = 0, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    shape = {"num_hidden_layers": 4, "num_attention_heads": 4, "hidden_size": 256}
    (folder / "config.json").write_text(json.dumps({**shape, **config}), "utf-8")
    if files:
        (folder / "model.safetensors").write_bytes(b"\0" * files)
    return folder


@pytest.mark.parametrize("name", ["", "config.json"])
def test_a_models_own_numbers_replace_the_estimate(tmp_path: Path, name: str) -> None:
    model = write_model(tmp_path / "model", files=2048)
    done = told(
        "--model-type", "text", "--model", str(model / name), "--context", "512", *GPU, "--json"
    )
    reasons = " ".join(line["text"] for line in json.loads(done.stdout)["reasons"])
    assert "KV cache 4 KiB a token (from config.json)" in reasons


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"num_attention_heads": None}, "is not the config.json of a transformer"),
        ({"num_attention_heads": 0}, "is not the config.json of a transformer"),
        ({"quantization_config": 4}, "is not the config.json of a transformer"),
        ({}, "has no .safetensors file; name --parameters-b too"),
    ],
)
def test_a_model_that_cannot_be_read_is_one_sentence(
    tmp_path: Path, config: dict[str, Any], sentence: str
) -> None:
    model = write_model(tmp_path / "model", files=2048 if config else 0, **config)
    done = told("--model-type", "text", "--model", str(model))
    assert done.exit_code == 1
    assert done.output.startswith("serving: ") and done.output.count("\n") == 1
    assert sentence in done.output


def test_a_config_that_lacks_a_key_is_told_by_the_key(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", files=2048)
    (model / "config.json").write_text('{"n_layer": 12}', "utf-8")
    assert (
        "does not say 'num_attention_heads'"
        in told("--model-type", "text", "--model", str(model)).output
    )
