"""What engines tell of themselves, read into names that no engine owns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

from prometheus_client.parser import text_string_to_metric_families


@dataclass(frozen=True)
class Gauges:
    """An engine's own name for each figure, or None where it has none.

    `running` and `waiting` count requests; `kv_cache_usage` is a share from 0 to 1; the others,
    since the engine started: prompt tokens, generated tokens, prompt tokens found in the cache.
    """

    running: str | None = None
    waiting: str | None = None
    kv_cache_usage: str | None = None
    prompt_tokens: str | None = None
    generated_tokens: str | None = None
    cached_tokens: str | None = None

    def read(self, text: str) -> dict[str, float]:
        """The figures found in an engine's `/metrics`, summed over its parallel parts; the share is
        the largest of them."""
        wanted = {getattr(self, field.name): field.name for field in fields(self)}
        wanted.pop(None, None)
        found: dict[str, float] = {}
        for name, value in _samples(text, tuple(wanted)):
            figure = wanted[name]
            if figure == "kv_cache_usage":
                found[figure] = max(found.get(figure, 0.0), value)
            else:
                found[figure] = found.get(figure, 0.0) + value
        return found


def _samples(text: str, names: tuple[str, ...]) -> Iterator[tuple[str, float]]:
    # The parser takes 20 ms for all that vLLM says, which is 700 lines: it gets ours only.
    lines = "\n".join(line for line in text.splitlines() if line.startswith(names))
    for family in text_string_to_metric_families(lines + "\n"):
        for sample in family.samples:
            if sample.name in names:
                yield sample.name, sample.value
