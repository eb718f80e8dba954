"""`serving rollout`: a version goes into production step by step, by itself, or comes back."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from serving.cli_routing import LOCAL, Model, NotDone, Revision, Url, ask, console, seconds

rollout = typer.Typer(
    no_args_is_help=True, help="Take a version into production step by step, watched."
)


@rollout.command("start")
def start(
    model: Model,
    version: Annotated[int, typer.Argument(min=1)],
    steps: Annotated[
        str, typer.Option(help="Its parts of the traffic in percent, one after the other.")
    ] = "5,25,50,100",
    every: Annotated[str, typer.Option(help="The time of each step: 90s, 10m, 2h.")] = "10m",
    max_error_rate: Annotated[
        str, typer.Option(help="Of its answers, as in 1%; `none`: not watched.")
    ] = "1%",
    max_ttft_p95_ratio: Annotated[
        str, typer.Option(help="Of its TTFT p95 to production's; `none`: not watched.")
    ] = "1.2",
    min_answers: Annotated[
        int, typer.Option(min=1, help="A step goes on until it has given so many.")
    ] = 100,
    revision: Revision = None,
    url: Url = LOCAL,
) -> None:
    """Roll VERSION out: `serving rollout start chat 4 --steps 5,25,50,100 --every 10m`."""
    percentages = [_whole("--steps", step) for step in steps.split(",")]
    body = {
        "version": version,
        "steps": percentages,
        "every": seconds("--every", every),
        "max_error_rate": _fraction("--max-error-rate", max_error_rate),
        "max_ttft_p95_ratio": _fraction("--max-ttft-p95-ratio", max_ttft_p95_ratio),
        "min_answers": min_answers,
        "revision": revision,
    }
    with console.status(f"{model}:{version} gets ready"):
        done = ask("POST", url, f"/models/{model}/rollout", body)
    console.print(
        f"{model}:{version} gets {percentages[0]} % of the traffic (revision {done['revision']}); "
        "`serving status --watch` shows how it does."
    )


@rollout.command("stop")
def stop(model: Model, revision: Revision = None, url: Url = LOCAL) -> None:
    """Leave labels and traffic as they are now; `promote` and `rollback` go on from there."""
    query = "" if revision is None else f"?revision={revision}"
    done = ask("DELETE", url, f"/models/{model}/rollout{query}")
    console.print(f"The rollout of {model} goes no further (revision {done['revision']}).")


def _whole(option: str, text: str) -> int:
    if not text.strip().isdecimal():
        raise NotDone(f"{option}: {text!r} is no whole number.")
    return int(text)


def _fraction(option: str, text: str) -> float | None:
    if text == "none":
        return None
    parts = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", text)
    if parts is None:
        raise NotDone(f"{option}: {text!r} is no number; write 1% or 0.01, or none.")
    return float(parts[1]) / (100 if parts[2] else 1)
