"""The command `python -m loadtests [SCENARIO]`; what it was told is checked in `arguments`."""

from __future__ import annotations

import dataclasses
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from loadtests.arguments import above_zero, address, arrivals_of, plan_of, slo_of, within
from loadtests.crew import CrewError, work
from loadtests.lengths import FORMS as LENGTHS
from loadtests.lengths import LengthError
from loadtests.options import (
    STAGE_FORMS,
    OptionError,
    Options,
    duration,
    parse_stage,
    percentage,
)
from loadtests.prompts import PromptsError
from loadtests.report import NotWritten
from loadtests.results import UnreadableReport, read
from loadtests.run import CANNOT_RUN, perform, raise_open_file_limit
from loadtests.scenarios import SCENARIOS
from loadtests.service import CannotRun
from loadtests.workload import PRESETS
from serving.bearer import BadKey

RESULTS = Path(__file__).parent / "results"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
errors = Console(stderr=True)

_LOAD, _WORK, _WANTED, _RUN = "Load", "Work", "What is wanted", "The run"


def _option(panel: str, help_text: str, *names: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(*names, help=help_text, rich_help_panel=panel)
    return option


@app.command()
def run(
    scenario: Annotated[
        str, typer.Argument(help=f"{', '.join(SCENARIOS)}; or worker, with its master's HOST:PORT.")
    ] = "sweep",
    master: Annotated[str | None, typer.Argument(hidden=True)] = None,
    url: Annotated[
        str | None, _option(_RUN, "A service that runs. Without it one is started for the run.")
    ] = None,
    model: Annotated[
        str | None, _option(_RUN, "The model to ask; chat@canary, chat:3 too.")
    ] = None,
    seconds: Annotated[
        str | None, _option(_LOAD, "How long the scenario takes, as in 60s or 10m.", "--seconds")
    ] = None,
    rate: Annotated[
        float | None, _option(_LOAD, "Requests a second; a sweep's first rate.", "--rate")
    ] = None,
    users: Annotated[
        int | None, _option(_LOAD, "That many users who wait for their answers, not a rate.")
    ] = None,
    think: Annotated[
        str | None, _option(_LOAD, "What a user waits after an answer, or between turns.")
    ] = None,
    arrivals: Annotated[str, _option(_LOAD, "poisson, gamma or constant.")] = "poisson",
    burstiness: Annotated[float, _option(_LOAD, "Gamma's shape: 1 is Poisson, less bursts.")] = 1.0,
    stage: Annotated[
        list[str] | None, _option(_LOAD, f"Of `load`, in turn: {STAGE_FORMS}.")
    ] = None,
    steps: Annotated[int, _option(_LOAD, "Stages of a sweep.")] = 6,
    rounds: Annotated[
        int, _option(_LOAD, "Pairs of a baseline, kills of chaos, starts of cold_start.")
    ] = 5,
    factor: Annotated[float, _option(_LOAD, "How many times the load a spike is.")] = 5.0,
    version: Annotated[
        int | None, _option(_LOAD, "The version that a swap or canary goes to.")
    ] = None,
    percent: Annotated[int, _option(_LOAD, "The canary's part of the traffic.")] = 50,
    engine_url: Annotated[
        str | None, _option(_LOAD, "The bare engine of a baseline; its key: ENGINE_KEY.")
    ] = None,
    workload: Annotated[
        str, _option(_WORK, f"{', '.join(PRESETS)}: where the lengths below come from.")
    ] = "short",
    operation: Annotated[str | None, _option(_WORK, "chat, completions or embeddings.")] = None,
    prompt: Annotated[str | None, _option(_WORK, f"Tokens: {LENGTHS}.")] = None,
    answer: Annotated[str | None, _option(_WORK, "Tokens, likewise.")] = None,
    prefix: Annotated[str | None, _option(_WORK, "Tokens of an opening that many share.")] = None,
    prefixes: Annotated[int | None, _option(_WORK, "How many such openings there are.")] = None,
    turns: Annotated[int | None, _option(_WORK, "Turns of a conversation.")] = None,
    file: Annotated[
        Path | None, _option(_WORK, "Prompts of your own: JSON lines, or ShareGPT's format.")
    ] = None,
    temperature: Annotated[
        float, _option(_WORK, "Of the answers; below 0: the model's own.")
    ] = 0.0,
    free_length: Annotated[
        bool, _option(_WORK, "Let the model end its answers, also where it could be kept on.")
    ] = False,
    context: Annotated[
        int | None, _option(_WORK, "The model's window, which the work is cut to.")
    ] = None,
    seed: Annotated[int, _option(_WORK, "The same seed offers the same work.")] = 0,
    ttft: Annotated[str | None, _option(_WANTED, "Of each request, as in 500ms.")] = None,
    tpot: Annotated[str | None, _option(_WANTED, "Likewise, as in 50ms.")] = None,
    e2e: Annotated[str | None, _option(_WANTED, "Likewise, as in 10s.")] = None,
    share: Annotated[str, _option(_WANTED, "Of the requests that must meet them.")] = "99%",
    at_least: Annotated[
        float | None, _option(_WANTED, "The rate that a sweep's knee must reach.")
    ] = None,
    old: Annotated[
        Path | None, _option(_WANTED, "The report.json of an earlier run to compare.", "--compare")
    ] = None,
    tolerance: Annotated[
        str, _option(_WANTED, "By how much worse is not worse yet, beyond chance.")
    ] = "5%",
    warm_up: Annotated[str, _option(_RUN, "Time that is not counted; 0 for none.")] = "2s",
    timeout: Annotated[str, _option(_RUN, "For a whole answer.")] = "120s",
    workers: Annotated[int, _option(_RUN, "Load generators on this machine.")] = 0,
    others: Annotated[
        int, _option(_RUN, "And on others: `python -m loadtests worker HOST:PORT`.")
    ] = 0,
    bind: Annotated[str, _option(_RUN, "Where those workers come to.")] = "127.0.0.1:5557",
    out: Annotated[Path | None, _option(_RUN, "Folder of the report.")] = None,
) -> None:
    """How many users, and what breaks first: sweep (the default) finds the highest rate that holds
    the SLO; load offers what you say; swap, canary, spike, soak, cold_start and chaos look at one
    thing each; baseline tells what the gateway costs."""
    try:
        if scenario == "worker":
            raise_open_file_limit()
            work(master or "")
            return
        if scenario not in SCENARIOS or master is not None:
            raise OptionError(f"There is no scenario {scenario}; there are {', '.join(SCENARIOS)}.")
        plan = plan_of(workload, operation, prompt, answer, prefix, prefixes, turns, think, file)
        options = Options(
            plan=plan,
            slo=slo_of(ttft, tpot, e2e, share),
            slo_given=any((ttft, tpot, e2e)),
            seed=within("--seed", seed, 0, 2**31),
            arrivals=arrivals_of(arrivals),
            burstiness=above_zero("--burstiness", burstiness),
            seconds=duration(seconds) if seconds else None,
            rate=None if rate is None else above_zero("--rate", rate),
            users=None if users is None else within("--users", users, 1, 100_000),
            think=duration(think) if think else 0.0,
            steps=within("--steps", steps, 1, 100),
            rounds=within("--rounds", rounds, 1, 1000),
            version=version,
            percent=within("--percent", percent, 1, 99),
            factor=above_zero("--factor", factor),
            at_least=at_least,
            tolerance=percentage(tolerance),
            engine_url=engine_url,
            fixed_length=not free_length,
            temperature=temperature if temperature >= 0 else None,
            context=context,
            warm_up=0.0 if warm_up in ("0", "0s") else duration(warm_up),
            patience=duration(timeout),
            workers=within("--workers", workers, 0, 1000),
            others=within("--others", others, 0, 1000),
            bind=address(bind) if others else ("127.0.0.1", 0),
        )
        stages = tuple(parse_stage(text, n, options) for n, text in enumerate(stage or (), 1))
        if stages and scenario != "load":
            raise OptionError(f"--stage belongs to the scenario load, not to {scenario}.")
        options = dataclasses.replace(options, stages=stages)
        if scenario == "sweep" and users is not None:
            raise OptionError("--users belongs to the other scenarios: a sweep is over rates.")
        if rate is not None and users is not None:
            raise OptionError("--rate and --users are two kinds of load: give one of them.")
        earlier = read(old) if old else None
        raise_open_file_limit()
        code = perform(scenario, options, url, model, out or _folder(scenario), earlier, old)
    except (
        OptionError,
        LengthError,
        PromptsError,
        UnreadableReport,
        CannotRun,
        CrewError,
        BadKey,
        NotWritten,
    ) as error:
        errors.print(f"loadtests: {error}", style="red", highlight=False, soft_wrap=True)
        code = CANNOT_RUN
    sys.exit(code)


def main() -> None:
    app()


def _folder(scenario: str) -> Path:
    return RESULTS / f"{scenario}-{datetime.now():%Y%m%d-%H%M%S}"
