"""What a load test leaves: one typed document, of which JSON, CSV and the page are views.

All times are seconds. `at`, `due`, `sent`, `began` and `ended` count from the beginning of the run,
on the wall clock, so that samples of several machines lie on one line.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

#: How a request ended. `whole`: `[DONE]` came, or a JSON reply. `refused`: 429, 503 or 529, said
#: before anything was sent. `failed`: any other error, told. `truncated`: the stream ended and said
#: neither `[DONE]` nor an error.
Outcome = Literal["whole", "refused", "failed", "truncated"]
Operation = Literal["chat", "completions", "embeddings"]
Arrivals = Literal["poisson", "gamma", "constant", "users"]


class Sample(msgspec.Struct, omit_defaults=True):
    """One request as its client saw it. Raw: no buckets, nothing rounded.

    `due`: when the schedule wanted it sent; with fixed users, when it was. `ttft`: from `sent` to
    the first content that is not empty, reasoning included. `gaps`: between events with content.
    `latency`: from `sent` to the end. Tokens are the server's own count, in `usage`. `target`:
    which of several servers was asked, where a scenario asks several.
    """

    stage: int
    operation: Operation
    due: float
    sent: float
    latency: float
    outcome: Outcome
    status: int = 0
    ttft: float | None = None
    gaps: list[float] = []
    tokens_in: int | None = None
    tokens_out: int | None = None
    version: str = ""
    label: str = ""
    finish: str = ""
    error: str = ""
    target: str = ""

    @property
    def end(self) -> float:
        return self.sent + self.latency

    @property
    def tpot(self) -> float | None:
        """Time per output token after the first; tokens as the server counted them, not events."""
        if self.ttft is None or self.tokens_out is None or self.tokens_out < 2:
            return None
        return (self.latency - self.ttft) / (self.tokens_out - 1)


class Slo(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a request must hold to be good, and the share of them that must."""

    ttft: float | None = None
    tpot: float | None = None
    e2e: float | None = None
    share: float = 0.99

    def met_by(self, sample: Sample) -> bool:
        """A request without a first token, as an embedding is, has no TTFT to miss."""
        return (
            sample.outcome == "whole"
            and (self.ttft is None or sample.ttft is None or sample.ttft <= self.ttft)
            and (self.tpot is None or sample.tpot is None or sample.tpot <= self.tpot)
            and (self.e2e is None or sample.latency <= self.e2e)
        )


class Stage(msgspec.Struct, frozen=True, omit_defaults=True):
    """A time of even or evenly growing load.

    Open loop: `rate` requests a second, sent when they are due whatever the server does, and with
    `ramp_from` growing from that rate. Closed loop (`arrivals` is `users`): `users` who each ask
    again `think` seconds after their answer. What is not `measured` warms up. `burstiness` is the
    shape of gamma's gaps, as in `vllm bench serve`: 1 is Poisson, less comes in bursts, more is
    more even.
    """

    name: str
    seconds: float
    arrivals: Arrivals = "poisson"
    rate: float = 0.0
    ramp_from: float | None = None
    burstiness: float = 1.0
    users: int = 0
    think: float = 0.0
    measured: bool = True
    target: str = ""


class Spread(msgspec.Struct):
    """Exact percentiles of raw values, in seconds."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


class Summary(msgspec.Struct, omit_defaults=True):
    """Figures of a stage, or of any other set of samples.

    Rates are a second, from the stage's beginning to its last answer. `good`: the share of the
    requests that met the SLO, refused and failed ones among those that did not; `goodput`: those
    that did, a second. `late_p99`: how far the generator was behind its own schedule.
    """

    requests: int
    whole: int
    refused: int
    failed: int
    truncated: int
    offered_rate: float
    achieved_rate: float
    tokens_in_rate: float
    tokens_out_rate: float
    good: float
    goodput: float
    late_p99: float
    ttft: Spread | None = None
    itl: Spread | None = None
    tpot: Spread | None = None
    e2e: Spread | None = None
    errors: dict[str, int] = {}


class StageResult(msgspec.Struct):
    """`ended`: when the stage stopped asking; `finished`: when its last answer was over."""

    stage: Stage
    began: float
    ended: float
    finished: float
    summary: Summary


class Event(msgspec.Struct):
    """Something that happened to the service: `swap`, `killed`, `ready`, …"""

    at: float
    kind: str
    text: str


class Gauge(msgspec.Struct):
    """A figure over time, as `gateway memory` in `MiB`; one value for each `at`."""

    name: str
    unit: str
    at: list[float] = []
    values: list[float] = []


class Table(msgspec.Struct):
    """A scenario's own table; cells are written as they are to be read."""

    title: str
    columns: list[str]
    rows: list[list[str]]


class Verdict(msgspec.Struct):
    """One thing that had to hold. One that does not hold ends the run with exit code 1."""

    name: str
    passed: bool
    text: str


class Knee(msgspec.Struct):
    """The highest rate that met the SLO, and the lowest above it that did not (0: none tried)."""

    rate: float
    missed_at: float


class Report(msgspec.Struct):
    """A run. `machine` and `plan` are for the reader: what ran where, and what was asked for."""

    scenario: str
    began: str
    seconds: float
    target: str
    model: str
    slo: Slo
    machine: dict[str, str]
    plan: dict[str, str]
    stages: list[StageResult] = []
    events: list[Event] = []
    gauges: list[Gauge] = []
    tables: list[Table] = []
    verdicts: list[Verdict] = []
    warnings: list[str] = []
    knee: Knee | None = None
    samples: list[Sample] = []
    format: Literal[1] = 1

    @property
    def passed(self) -> bool:
        """A run in which nothing was judged has proved nothing."""
        return bool(self.verdicts) and all(verdict.passed for verdict in self.verdicts)


class UnreadableReport(Exception):
    """The message says which file, and why."""


def read(path: Path) -> Report:
    """The report in the JSON file `path`. Raises `UnreadableReport`."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Report)
    except OSError as error:
        raise UnreadableReport(f"{path} cannot be read ({error.strerror}).") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UnreadableReport(f"{path} is no report of these load tests: {error}.") from None
