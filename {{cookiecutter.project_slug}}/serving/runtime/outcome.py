"""How one answer went, as its version's record, the ledger and the metrics show it."""

from __future__ import annotations

import time
from bisect import bisect_left
from dataclasses import dataclass, field

from serving.accounts.ledger import Entry
from serving.contract.events import EngineEvent, ReasoningTokens, Usage

#: The bounds, in seconds, by which the gaps between events are counted.
ITL_BUCKETS = (0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2.5, 10)


@dataclass(slots=True)
class Outcome:
    """One answer of a version: seconds until its first and its last event, what the engine counted
    and why it ended, and whether it failed by the engine's fault. A client that leaves or asks
    nonsense is no failure. `queued` are the seconds that its request waited for its turn, None
    where it had not to. `pieces` came so far, `thoughts` among them: mostly, each is a token;
    `gaps` counts the seconds between them, by `ITL_BUCKETS`. `counted` is what the engine had
    counted when its answer was left, if it told. `began` is when the request went to its engine,
    by `time.perf_counter`."""

    model: str
    number: int
    label: str
    engine: str = ""
    usage: Usage | None = None
    finish_reason: str | None = None
    counted: Usage | None = None
    pieces: int = 0
    thoughts: int = 0
    failed: bool = False
    queued: float | None = None
    ttft: float | None = None
    duration: float = 0.0
    gaps: list[int] = field(default_factory=lambda: [0] * (len(ITL_BUCKETS) + 1))
    gaps_sum: float = 0.0
    began: float = field(default_factory=time.perf_counter)
    _last: float = 0.0

    @property
    def tokens(self) -> int:
        """Those generated."""
        return self.usage.completion_tokens if self.usage is not None else 0

    def note(self, events: list[EngineEvent]) -> None:
        """What the engine said next."""
        said = False
        for event in events:
            if event.deltas:
                said = True
                self.pieces += len(event.deltas)
                for delta in event.deltas:
                    if delta.reasoning:
                        self.thoughts += 1
                    if delta.finish_reason is not None:
                        self.finish_reason = delta.finish_reason
            if event.usage is not None:
                self.usage = event.usage
        if not said:
            return
        now = time.perf_counter()
        if self.ttft is None:
            self.ttft = now - self.began
        else:
            gap = now - self._last
            self.gaps[bisect_left(ITL_BUCKETS, gap)] += 1
            self.gaps_sum += gap
        self._last = now

    def end(self, *, failed: bool) -> Outcome:
        self.duration = time.perf_counter() - self.began
        self.failed = failed
        return self

    def cut_short(self, prompt_tokens: int) -> None:
        """Counts an answer that did not come to its end: as its engine did so far, or else by the
        pieces that came after a prompt of about so many tokens."""
        if self.usage is not None:
            return
        if self.counted is not None:
            self.usage = self.counted
        elif self.pieces:
            self.usage = Usage(prompt_tokens, self.pieces, prompt_tokens + self.pieces)
            self.usage.completion_tokens_details = ReasoningTokens(self.thoughts)

    def enter(self, entry: Entry) -> None:
        """Adds what is known of the answer to the request's line in the ledger."""
        entry.version, entry.label, entry.engine = self.number, self.label or None, self.engine
        entry.ttft, entry.finish_reason = self.ttft, self.finish_reason
        if self.usage is not None:
            entry.prompt_tokens = self.usage.prompt_tokens
            entry.completion_tokens = self.usage.completion_tokens
            entry.cached_tokens = self.usage.prompt_tokens_details.cached_tokens
            entry.reasoning_tokens = self.usage.completion_tokens_details.reasoning_tokens
