"""`serving keys`: who may use the service. It needs the database, and no running service."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from serving.accounts.database import Database
from serving.accounts.keys import SCOPES, Keys
from serving.cli_routing import seconds
from serving.settings import Quota, config_file, load_settings

PROJECT = Path(__file__).parent.parent

keys = typer.Typer(no_args_is_help=True, help="The API keys of this service.")
console = Console()
#: What is no key goes here, so that `serving keys create … > file` leaves just the key there.
notes = Console(stderr=True)

_T = TypeVar("_T")
Limit = Annotated[int | None, typer.Option(min=1, help="A limit of its own.")]
Id = Annotated[str, typer.Argument(help="The key's id, as `serving keys list` shows it.")]


@keys.command("create")
def create(
    name: Annotated[str, typer.Argument(help="Whose key it is, or what for.", max=200)],
    scope: Annotated[
        list[str] | None,
        typer.Option(help=f"What it is good for: {', '.join(SCOPES)}; inference by default."),
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Only for this model; may be given several times.")
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="Only this label may be named, and no version.")
    ] = None,
    expires: Annotated[str | None, typer.Option(help="After 12h, 90d and so on.")] = None,
    requests_per_minute: Limit = None,
    tokens_per_minute: Limit = None,
    tokens_per_day: Limit = None,
    concurrent: Limit = None,
) -> None:
    """Make a key. It is shown once, and never again. A key with any limit of its own has no other;
    one without any has those of `limits.per_key` in serving.yaml."""
    quota = Quota(
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        tokens_per_day=tokens_per_day,
        concurrent=concurrent,
    )
    lifetime = None if expires is None else timedelta(seconds=seconds("--expires", expires))
    key, text = _run(
        lambda keys: keys.create(
            name,
            scopes=scope or ["inference"],
            models=model or None,
            labels=label or None,
            quota=None if quota == Quota() else quota,
            lifetime=lifetime,
        )
    )
    notes.print(f"Key {key.id} of {key.name}, for {' '.join(sorted(key.scopes))}; shown only now:")
    print(text)


@keys.command("list")
def list_keys() -> None:
    """List all keys, without what nobody may see."""
    table = Table(
        "id", "name", "state", "scopes", "models", "labels", "created", "expires", box=None
    )
    now = datetime.now(UTC)
    for key in _run(lambda keys: keys.list()):
        table.add_row(
            key.id,
            key.name,
            key.state(now),
            " ".join(scope for scope in SCOPES if scope in key.scopes),
            "all" if key.models is None else " ".join(sorted(key.models)),
            "all" if key.labels is None else " ".join(sorted(key.labels)),
            _day(key.created),
            _day(key.expires),
        )
    console.print(table if table.row_count else "No key yet; run `serving keys create NAME`.")


@keys.command("revoke")
def revoke(key_id: Id) -> None:
    """End a key, within a second in every running service."""
    key = _run(lambda keys: keys.revoke(key_id))
    console.print(f"Key {key.id} of {key.name} is revoked.")


@keys.command("rotate")
def rotate(
    key_id: Id,
    grace: Annotated[str, typer.Option(help="How long the old key is still good.")] = "24h",
) -> None:
    """Make a new key with the same rights; the old one ends after the grace time."""
    lasts = timedelta(seconds=seconds("--grace", grace))
    key, text = _run(lambda keys: keys.rotate(key_id, grace=lasts))
    notes.print(f"Key {key.id} of {key.name} takes the place of {key_id}; shown only now:")
    print(text)


def _run(work: Callable[[Keys], Awaitable[_T]]) -> _T:
    return with_database(lambda database: work(Keys(database)))


def with_database(work: Callable[[Database], Awaitable[_T]]) -> _T:
    """What comes of `work` on the database that serving.yaml names. Raises `DatabaseError`, and
    what it raises."""
    settings = load_settings(config_file(PROJECT), surroundings=False)

    async def run() -> _T:
        database = Database(settings)
        try:
            await database.migrate()
            return await work(database)
        finally:
            await database.close()

    return asyncio.run(run())


def _day(moment: datetime | None) -> str:
    return moment.astimezone().strftime("%Y-%m-%d %H:%M") if moment else ""
