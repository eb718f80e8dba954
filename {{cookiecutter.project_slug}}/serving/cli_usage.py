"""`serving usage`: what was used, by whom. It needs the database, and no running service."""

from __future__ import annotations

import csv
import sys
from datetime import datetime
from typing import Annotated, Literal

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from serving.accounts.usage import GROUPS, Used, used
from serving.cli_keys import with_database
from serving.cli_routing import NotDone

console = Console()
_FIGURES = [name for name in Used.__struct_fields__ if name != "group"]

Day = Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="A day, in UTC.")]


def usage(
    by: Annotated[str, typer.Option(help=f"Of {', '.join(GROUPS)}.")] = "key,model",
    since: Day = None,
    until: Day = None,
    shadow: Annotated[bool, typer.Option(help="Of the copies that shadows got, instead.")] = False,
    form: Annotated[
        Literal["table", "csv", "json"], typer.Option("--format", help="How to write it.")
    ] = "table",
) -> None:
    """Add up requests and tokens from the ledger: `serving usage --by day,key`."""
    known = {str(group): group for group in GROUPS}
    asked = by.split(",")
    unknown = [name for name in asked if name not in known]
    if unknown:
        raise NotDone(f"--by: there is no {unknown[0]!r}; there are {', '.join(GROUPS)}.")
    groups = [known[name] for name in asked]
    rows = with_database(
        lambda database: used(
            database,
            groups,
            since=since.date() if since else None,
            until=until.date() if until else None,
            shadow=shadow,
        )
    )
    if form == "json":
        print(msgspec.json.format(msgspec.json.encode(rows)).decode())
        return
    lines = [
        [*(_shown(row.group[group]) for group in groups), *(str(getattr(row, f)) for f in _FIGURES)]
        for row in rows
    ]
    if form == "csv":
        csv.writer(sys.stdout, lineterminator="\n").writerows([[*groups, *_FIGURES], *lines])
        return
    table = Table(*groups, box=None, pad_edge=False)
    for figure in _FIGURES:
        table.add_column(figure.replace("_tokens", ""), justify="right")
    for line in lines:
        table.add_row(*line)
    console.print(table if lines else "Nothing was used yet.")


def _shown(value: object) -> str:
    return "-" if value is None else str(value)
