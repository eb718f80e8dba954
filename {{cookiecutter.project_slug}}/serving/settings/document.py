"""serving.yaml as typed settings: what a person wrote, checked before anything starts.

Durations are seconds, sizes bytes, lengths tokens.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import ConfigDict, Field, ValidationError, model_validator

from serving.settings.engines import EngineSettings, GpuEngine, ProcessEngine
from serving.settings.faults import sentence
from serving.settings.places import STATE
from serving.settings.sections import Count, Name, Placed, RedisVariable, Section, Variable

Seconds = Annotated[float, Field(gt=0)]


class SettingsError(Exception):
    """serving.yaml cannot be used. The message names the file, the key and what to write."""


class ServiceSection(Section):
    """`state` is the folder for what the service itself writes, engine logs first of all."""

    name: Name
    state: Placed = Path("state")


class Versions(Section):
    """Which imported versions are loaded: the `count` newest, until somebody sets the label
    `production`; the ones named in `numbers`; or all of them. Those that labels point to are loaded
    besides."""

    policy: Literal["latest", "specific", "all"] = "latest"
    count: Count = 1
    numbers: Annotated[list[Count], Field(max_length=100)] = []

    @model_validator(mode="after")
    def _numbers_belong_to_specific(self) -> Versions:
        if (self.policy == "specific") != bool(self.numbers):
            raise ValueError("write `policy: specific` together with `numbers: [N]`")
        if self.count != 1 and self.policy != "latest":
            raise ValueError("`count` belongs to `policy: latest`")
        return self


class Warmup(Section):
    """The requests a replica answers before it gets its first client.

    Every round sends each prompt, `concurrency` at a time, for up to `max_tokens` tokens.
    `prefixes` are system prompts to place in the engine's prefix cache. `logprobs`: then one answer
    with log probabilities, because vLLM compiles code at the first of them, and meanwhile no stream
    moves (28 s on two CPU cores).
    """

    prompts: list[Annotated[str, Field(min_length=1)]] = ["Hello!"]
    max_tokens: Count = 16
    concurrency: Count = 1
    rounds: Count = 1
    prefixes: list[Annotated[str, Field(min_length=1)]] = []
    logprobs: bool = True


class Quota(Section):
    """What a key may take, or a model of all its callers; null: as much as there is. Minutes and
    days are those of the clock, in UTC. Tokens are those of prompts and answers."""

    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    tokens_per_day: Count | None = None
    concurrent: Count | None = None


class ModelSection(Section):
    """One model name. Each version runs as `replicas` engines; requests are balanced by what each
    has to do, or by `prefix`: the same opening to the same one, whose KV cache has it. The version
    labelled `shadow` gets up to `shadow_concurrency` copies of requests at once. With `swap:
    in_place` there is one version in memory: the old one ends before the new one starts, requests
    wait meanwhile, and the old one comes back when the new one does not start. With `swap: sleep`
    the old one only gives its device up and keeps its weights in the machine's memory, so that it
    comes back in seconds. `engine` replaces
    the common engine section for this model only, and an entry of `engines` does so for the version
    of that number.
    """

    versions: Versions = Versions()
    replicas: Annotated[int, Field(ge=1, le=64)] = 1
    balance: Literal["least_in_flight", "prefix"] = "least_in_flight"
    swap: Literal["side_by_side", "in_place", "sleep"] = "side_by_side"
    shadow_concurrency: Count = 4
    load: Literal["prewarm", "eager", "lazy"] = "prewarm"
    required: bool = True
    priority: int = 0
    warmup: Warmup = Warmup()
    limits: Quota = Quota()
    engine: EngineSettings | None = None
    engines: dict[Count, EngineSettings] = {}

    @model_validator(mode="after")
    def _in_place_is_one_at_a_time(self) -> ModelSection:
        if self.swap != "side_by_side" and self.versions != Versions():
            raise ValueError(f"swap: {self.swap} has one version at a time; leave `versions` out")
        return self


class Timeouts(Section):
    """Seconds.

    `start`: from an engine's process start to its first healthy answer. `warmup`: all of it.
    `first_token` and `stall`: the longest silence before and within an answer. `answer`: the
    longest that a reply which is not streamed may take. `keepalive`: an SSE comment after so much
    silence. `health`: the longest wait for the engine's health answer.
    `lazy`: how long a request waits for a lazy model, or one that is swapped in place. `queue`: how
    long it waits for a place on a replica. `drain`: how
    long running answers may go on after a stop was asked, or their version was taken out of
    service. `stop`: from an engine's SIGTERM to its SIGKILL.

    Of clients: `head` is for a request's line and headers to come, `body` for the rest of it.
    `idle`: how long a connection stays open between two requests. `write`: how long a client may
    take no byte of its answer.
    """

    start: Seconds = 600
    warmup: Seconds = 300
    first_token: Seconds = 120
    stall: Seconds = 60
    answer: Seconds = 600
    keepalive: Seconds = 15
    health: Seconds = 10
    lazy: Seconds = 60
    queue: Seconds = 60
    drain: Seconds = 30
    stop: Seconds = 10
    head: Seconds = 10
    body: Seconds = 60
    idle: Seconds = 75
    write: Seconds = 60

    @property
    def longest_wait(self) -> float:
        """For any reply's first byte: an answer of a lazy model, or an operator's load."""
        return max(self.lazy + self.queue + self.answer, self.start + self.warmup)


class Restarts(Section):
    """A replica that dies is started again after `backoff` seconds, doubled each time up to
    `backoff_max`. After `attempts` deaths, none of them after `healthy_after` seconds of good
    service, it counts as a crash loop and stays `failed`. A server that somebody else runs is
    looked for without end."""

    attempts: Count = 5
    backoff: Seconds = 1
    backoff_max: Seconds = 30
    healthy_after: Seconds = 60


class Limits(Section):
    """`in_flight`: the requests that one replica gets at once, and `queue`: those that may wait for
    it, its callers in turn; more get a 503 at once. `waiting`: the requests that may wait for
    versions to load; more get a 503 as well.
    `per_key`: what a key may take that has no limits of its own. `assumed_answer`: the tokens that
    are reserved for an answer whose length the request does not limit. `redis_env`: the environment
    variable with the URL of a Redis where all replicas of the service count together, as in
    redis://USER:PASSWORD@HOST/0, or rediss:// for TLS. `on_failure`: while that Redis is away, each
    replica counts by itself (`open`), or answers requests that have limits with a 503
    (`closed`)."""

    in_flight: Count = 1024
    queue: Annotated[int, Field(ge=0)] = 1024
    waiting: Count = 1000
    per_key: Quota = Quota()
    assumed_answer: Count = 512
    max_body_bytes: Annotated[int, Field(ge=1024)] = 8 * 1024 * 1024
    redis_env: RedisVariable | None = None
    on_failure: Literal["open", "closed"] = "open"


class Auth(Section):
    """Who may ask. `auto`: who has a key, unless the service listens on loopback only. `keys`: who
    has a key. `open_to_everybody`: whoever reaches the service, on any address."""

    mode: Literal["auto", "keys", "open_to_everybody"] = "auto"


class Cors(Section):
    """`origins` are those whose web pages may ask from a browser, as in https://chat.example.com;
    `*` is every page."""

    origins: list[Annotated[str, Field(pattern=r"^(\*|https?://[^/\s]+)$")]] = []


class Logs(Section):
    """`requests`: one line of JSON on stdout for each request. `prompts`: with the beginning of
    what the client wrote in it."""

    requests: bool = True
    prompts: bool = False


class Tracing(Section):
    """One OpenTelemetry span for each request, sent to the collector at `otlp_endpoint` over
    OTLP/HTTP, as in http://127.0.0.1:4318; null: none, unless the environment variable
    OTEL_EXPORTER_OTLP_ENDPOINT names a collector. `sample_rate` is the part of the requests whose
    callers have not decided that already."""

    otlp_endpoint: Annotated[str, Field(pattern=r"^https?://[^\s/]+\S*$")] | None = None
    sample_rate: Annotated[float, Field(ge=0, le=1)] = 1.0


class LedgerSection(Section):
    """One row for each request. With `durability: batched` they are written every `flush` seconds:
    a hard kill loses those of that time. With `strict` each is on the disk before its answer's last
    byte is sent. While the database is away, up to `spool_bytes` of them wait in a file."""

    durability: Literal["batched", "strict"] = "batched"
    flush: Seconds = 1
    spool_bytes: Annotated[int, Field(ge=0)] = 256 * 1024 * 1024


class DatabaseSection(Section):
    """Where keys and the ledger are kept: the SQLite file `serving.db` in `service.state`, or the
    database whose URL is in the environment variable `url_env`, as in
    postgresql://USER:PASSWORD@HOST/NAME."""

    url_env: Variable | None = None


class Settings(Section):
    """The whole document. Everybody holds the same one: its sections are frozen, and replaced whole
    when serving.yaml changes while the service runs."""

    model_config = ConfigDict(frozen=False)

    service: ServiceSection
    engine: EngineSettings
    models: Annotated[dict[Name, ModelSection], Field(min_length=1)]
    timeouts: Timeouts = Timeouts()
    restarts: Restarts = Restarts()
    limits: Limits = Limits()
    auth: Auth = Auth()
    database: DatabaseSection = DatabaseSection()
    ledger: LedgerSection = LedgerSection()
    cors: Cors = Cors()
    logs: Logs = Logs()
    tracing: Tracing = Tracing()

    def engine_of(self, model: str, number: int) -> EngineSettings:
        """The engine section for one version of a model."""
        section = self.models[model]
        return section.engines.get(number) or section.engine or self.engine

    @property
    def engine_sections(self) -> dict[str, EngineSettings]:
        """All engine sections by their keys, used or not."""
        sections: dict[str, EngineSettings] = {"engine": self.engine}
        for name, model in self.models.items():
            if model.engine is not None:
                sections[f"models.{name}.engine"] = model.engine
            for number, engine in model.engines.items():
                sections[f"models.{name}.engines.{number}"] = engine
        return sections

    @model_validator(mode="after")
    def _only_engines_on_gpus_sleep(self) -> Settings:
        for name, model in self.models.items():
            engines = [model.engine or self.engine, *model.engines.values()]
            for engine in engines:
                if model.swap == "sleep" and not (isinstance(engine, GpuEngine) and engine.gpus):
                    raise ValueError(
                        f"models.{name}.swap: sleep is for vllm and sglang on GPUs; "
                        f"{engine.name} has no device here to give up: write in_place"
                    )
        return self

    @model_validator(mode="after")
    def _one_engine_a_home(self) -> Settings:
        homes: dict[Path, tuple[str, str]] = {}
        for key, engine in self.engine_sections.items():
            if isinstance(engine, ProcessEngine):
                first, name = homes.setdefault(engine.home, (key, engine.name))
                if name != engine.name:
                    raise ValueError(
                        f"{first} and {key} are different engines with the same home, "
                        f"{engine.home}; give each engine its own home"
                    )
        return self


def load_settings(path: Path, *, surroundings: bool = True) -> Settings:
    """Read and check serving.yaml. Relative paths in it are taken from its own folder.

    The environment may name other places than the file does: see `places`. Without `surroundings`,
    the files and variables that the file names need not be there yet: enough to install its
    engines. Raises `SettingsError`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{path.name}: not valid YAML: it is not UTF-8 text.") from None
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        line = f", line {place.line + 1}" if place else ""
        problem = getattr(error, "problem", None) or "it cannot be parsed"
        raise SettingsError(f"{path.name}{line}: not valid YAML: {problem}.") from None
    if not isinstance(document, dict):
        raise SettingsError(f"{path.name}: must hold the keys {', '.join(Settings.model_fields)}.")
    if (state := os.environ.get(STATE)) and isinstance(document.get("service"), dict):
        document["service"]["state"] = os.path.abspath(state)
    context = {"folder": path.parent, "surroundings": surroundings}
    try:
        return Settings.model_validate(document, context=context)
    except ValidationError as error:
        raise SettingsError(f"{path.name}: {sentence(error, Settings)}") from None
