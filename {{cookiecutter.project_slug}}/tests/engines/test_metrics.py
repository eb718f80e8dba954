"""An engine's own metrics, read into names that no engine owns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.engines.metrics import Gauges

VLLM = Gauges(
    running="vllm:num_requests_running",
    waiting="vllm:num_requests_waiting",
    kv_cache_usage="vllm:kv_cache_usage_perc",
    prompt_tokens="vllm:prompt_tokens_total",
    generated_tokens="vllm:generation_tokens_total",
    cached_tokens="vllm:prompt_tokens_cached_total",
)
#: From vLLM 0.32's own `/metrics`, with other numbers.
PAGE = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="model"} 3.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="model"} 2.0
# TYPE vllm:num_requests_waiting_by_reason gauge
vllm:num_requests_waiting_by_reason{engine="0",model_name="model",reason="capacity"} 1.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="model",reason="deferred"} 1.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="model"} 0.25
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0",model_name="model"} 2684.0
# TYPE vllm:prompt_tokens_created gauge
vllm:prompt_tokens_created{engine="0",model_name="model"} 1.7954680627771423e+09
# TYPE vllm:prompt_tokens_cached_total counter
vllm:prompt_tokens_cached_total{engine="0",model_name="model"} 384.0
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="model"} 4646.0
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.001",model_name="model"} 0.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="model"} 9.0
"""


def test_each_figure_is_found_under_the_engines_name_for_it() -> None:
    assert VLLM.read(PAGE) == {
        "running": 3,
        "waiting": 2,
        "kv_cache_usage": 0.25,
        "prompt_tokens": 2684,
        "generated_tokens": 4646,
        "cached_tokens": 384,
    }


def test_counts_of_parallel_engines_are_summed_and_the_share_is_the_fullest_ones() -> None:
    assert VLLM.read(PAGE + PAGE.replace('engine="0"', 'engine="1"').replace("0.25", "0.75")) == {
        "running": 6,
        "waiting": 4,
        "kv_cache_usage": 0.75,
        "prompt_tokens": 5368,
        "generated_tokens": 9292,
        "cached_tokens": 768,
    }


@given(st.lists(st.tuples(st.integers(0, 10**6), st.floats(0, 1)), min_size=1, max_size=8))
def test_the_order_of_the_engines_does_not_matter(parts: list[tuple[int, float]]) -> None:
    def page(told: list[tuple[int, float]]) -> str:
        return "".join(
            f'vllm:num_requests_running{{engine="{at}"}} {count}\n'
            f'vllm:kv_cache_usage_perc{{engine="{at}"}} {share!r}\n'
            for at, (count, share) in enumerate(told)
        )

    found = VLLM.read(page(parts))
    assert found == VLLM.read(page(parts[::-1]))
    assert found["running"] == sum(count for count, _ in parts)
    assert found["kv_cache_usage"] == max(share for _, share in parts)


@pytest.mark.parametrize(
    "page",
    [
        "",
        "# TYPE vllm:num_requests_running gauge\n",
        "vllm:num_requests_waiting_by_reason 5\nvllm:num_requests_running_created 5\n",
        "other:num_requests_running 5\n",
        "what is this\n{}\n\x00\n<html>\n",
    ],
)
def test_lines_that_are_none_of_ours_are_no_figures(page: str) -> None:
    assert VLLM.read(page) == {}
    assert VLLM.read(page + PAGE) == VLLM.read(PAGE)


def test_a_figure_the_engine_has_no_name_for_is_left_out() -> None:
    assert Gauges(waiting="vllm:num_requests_waiting").read(PAGE) == {"waiting": 2}
    assert Gauges().read(PAGE) == {}
