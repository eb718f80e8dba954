"""What was seen of each engine, and the table of it that README shows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import openai

BEGIN = "<!-- written by make test-engines: begin -->"
END = "<!-- written by make test-engines: end -->"


class Features:
    """feature -> engine -> whether it was seen to work (True) or refused as not offered (False)."""

    def __init__(self) -> None:
        self.seen: dict[str, dict[str, bool]] = {}

    @property
    def engines(self) -> set[str]:
        """Those of which every feature was seen."""
        return set.intersection(*map(set, self.seen.values())) if self.seen else set()

    @contextlib.contextmanager
    def offered(self, feature: str, engine: str) -> Iterator[None]:
        """Records that the block ran to its end, or that it was refused with the one error that
        says so. Any other outcome is a failure."""
        engines = self.seen.setdefault(feature, {})
        try:
            yield
        except openai.BadRequestError as error:
            if error.code != "unsupported_by_engine":
                raise
            engines[engine] = False
        else:
            engines.setdefault(engine, True)

    def table(self, engines: list[str]) -> str:
        lines = [f"| | {' | '.join(engines)} |", f"|---|{'---|' * len(engines)}"]
        for feature, seen in self.seen.items():
            marks = ["yes" if seen.get(engine) else "refused" for engine in engines]
            lines.append(f"| {feature} | {' | '.join(marks)} |")
        return "\n".join(lines)


def write_table(readme: Path, features: Features, engines: list[str]) -> bool:
    """Puts the table between its marks; returns whether it was another one before."""
    before, _, rest = readme.read_text("utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    text = f"{before}{BEGIN}\n{features.table(engines)}\n{END}{after}"
    changed = text != readme.read_text("utf-8")
    if changed:
        readme.write_text(text, "utf-8")
    return changed
