"""How one answer went, as its version's record shows it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from serving.contract.events import EngineEvent


@dataclass(slots=True)
class Outcome:
    """One answer of a version: seconds until its first and its last event, tokens generated, and
    whether it failed by the engine's fault. A client that leaves or asks nonsense is no failure."""

    model: str
    number: int
    label: str
    tokens: int = 0
    failed: bool = False
    ttft: float | None = None
    duration: float = 0.0
    _began: float = field(default_factory=time.perf_counter)

    def note(self, events: list[EngineEvent]) -> None:
        """What the engine said next."""
        for event in events:
            if self.ttft is None and event.deltas:
                self.ttft = time.perf_counter() - self._began
            if event.usage is not None:
                self.tokens = event.usage.completion_tokens

    def end(self, *, failed: bool) -> Outcome:
        self.duration = time.perf_counter() - self._began
        self.failed = failed
        return self
