"""The shadow hears everything, answers nobody, and disturbs nobody."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from live_service import Service, eventually, text_of
from prometheus_client.parser import text_string_to_metric_families
from scripted_engine import script
from versions import engine_of, import_versions, in_production, stats_of, version_states

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("deadline")]


@pytest.fixture(scope="module")
def running(serve: Callable[..., Service], model_template: Path) -> Service:
    settings = {"models": {"chat": {"shadow_concurrency": 2}}, "timeouts": {"answer": 5}}
    service = serve(settings=settings)
    import_versions(service, model_template, 2)
    in_production(service, 1, labels={"shadow": 2}, shadow=100)
    service.start().wait_ready()
    eventually(lambda: version_states(service) == {1: "ready", 2: "ready"}, "both are ready")
    return service


@pytest.fixture
def service(running: Service) -> Service:
    """With no copy under way."""
    eventually(lambda: stats_of(running, 2)["in_flight"] == 0, "the shadow has done all")
    return running


def figure(service: Service, name: str, **labels: str) -> float:
    """The sum of a metric's samples with those labels."""
    text = service.http.get("/metrics").text
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def copies(service: Service, outcome: str) -> float:
    labels = {"model": "chat", "version": "2", "outcome": outcome}
    return figure(service, "serving_shadow_requests_total", **labels)


def grows(count: Callable[[], float], by: int, act: Callable[[], Any]) -> Any:
    before = count()
    result = act()
    eventually(lambda: count() >= before + by, f"{by} more")
    return result


@pytest.mark.parametrize("stream", [False, True])
def test_the_shadow_gets_the_same_request_and_the_client_the_other_answer(
    service: Service, stream: bool
) -> None:
    prompt = script(text="something to repeat")
    reply = grows(
        lambda: copies(service, "answered"), 1, lambda: service.chat(prompt, stream=stream)
    )
    assert reply.headers["x-served-version"] == "chat:1"
    assert reply.headers["x-served-label"] == "production"
    seen, shadowed = (stats_of(service, number)["bodies"][-1] for number in (1, 2))
    assert seen == shadowed


def test_both_sides_of_a_shadowed_request_are_measured(service: Service) -> None:
    def tokens(version: str, side: str) -> tuple[float, float]:
        labels = {"model": "chat", "version": version, "side": side}
        names = ("serving_shadow_completion_tokens_sum", "serving_shadow_ttft_seconds_count")
        first, second = (figure(service, name, **labels) for name in names)
        return first, second

    before = tokens("1", "primary"), tokens("2", "shadow")
    grows(
        lambda: copies(service, "answered"), 1, lambda: service.chat(script(tokens=5), stream=True)
    )
    after = tokens("1", "primary"), tokens("2", "shadow")
    for (had, seen), (has, sees) in zip(before, after, strict=True):
        assert (has - had, sees - seen) == (5, 1)


def test_who_asks_for_a_version_or_a_label_is_not_copied(service: Service) -> None:
    before = stats_of(service, 2)["requests"]
    for address in ("chat:1", "chat@production"):
        assert service.chat("Hello", model=address).status_code == 200
    assert stats_of(service, 2)["requests"] == before


def test_a_shadow_that_is_busy_holds_up_nobody_and_gets_no_more_than_its_cap(
    service: Service,
) -> None:
    held = script(tokens=200, delay_ms=20)
    before = copies(service, "busy")
    with service.stream(held, max_tokens=200) as one, service.stream(held, max_tokens=200) as two:
        one.until_text("w2")
        two.until_text("w2")
        assert stats_of(service, 2)["in_flight"] == 2
        for _ in range(3):
            assert service.chat("Hello").status_code == 200
        assert stats_of(service, 2)["in_flight"] == 2
        assert copies(service, "busy") == before + 3


def test_a_client_that_leaves_does_not_stop_the_copy(service: Service) -> None:
    def leave() -> None:
        with service.stream(script(tokens=40, delay_ms=20)) as stream:
            stream.until_text("w2")

    grows(lambda: copies(service, "answered"), 1, leave)


def test_a_shadow_that_dies_is_nobodys_trouble(service: Service) -> None:
    before = copies(service, "failed")
    with service.stream(script(tokens=60, delay_ms=20), max_tokens=60) as stream:
        stream.until_text("w2")
        eventually(lambda: stats_of(service, 2)["in_flight"] == 1, "the copy runs")
        engine_of(service, 2).kill()
        events = stream.rest()
    assert events[-1].data == "[DONE]"
    assert text_of(events).endswith("w59")
    eventually(lambda: copies(service, "failed") == before + 1, "the copy failed")
    assert service.ready
    assert service.chat("Hello").status_code == 200
    eventually(lambda: version_states(service) == {1: "ready", 2: "ready"}, "it is back")
