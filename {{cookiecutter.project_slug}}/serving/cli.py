"""`serving …`: the versions in the model store; how they travel is in `cli_transfer.py`, what runs
in `cli_routing.py` and `cli_rollout.py`, the engines in `cli_engine.py`, keys in `cli_keys.py`,
what they used in `cli_usage.py`."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from serving import cli_package, cli_routing, cli_transfer
from serving.accounts.database import DatabaseError
from serving.accounts.keys import KeyRefused
from serving.bearer import BadKey
from serving.cli_engine import engine
from serving.cli_keys import keys
from serving.cli_rollout import rollout
from serving.cli_transfer import progress
from serving.cli_usage import usage
from serving.environments import NotInstalled
from serving.packaging.contents import NotPacked
from serving.runtime.checks import ModelRefused
from serving.runtime.files import FULL
from serving.runtime.source import fetch
from serving.runtime.store import ModelStore, StoreError, check_name
from serving.settings import SettingsError

DEMO = Path(__file__).parent.parent / "demo_model"

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
models = typer.Typer(no_args_is_help=True, help="The model versions this service can serve.")
app.add_typer(models, name="models")
cli_transfer.add_to(models)
app.add_typer(engine, name="engine")
app.add_typer(keys, name="keys")
app.command()(usage)
cli_routing.add_to(app)
app.add_typer(rollout, name="rollout")
cli_package.add_to(app)
console = Console()
errors = Console(stderr=True)


@app.callback()
def serving() -> None:
    """Look after the models and engines of this LLM service."""


@models.command("import")
def import_model(
    name: Annotated[str, typer.Argument(help="The model's name, as clients send it.")],
    source: Annotated[
        str, typer.Argument(help="A folder, `demo`, or a Hugging Face repository org/name[@rev].")
    ],
    task: Annotated[
        Literal["generate", "embed"], typer.Option(help="What the model is asked for.")
    ] = "generate",
    allow_pickle: Annotated[
        bool, typer.Option(help="Also take pickled weights, which can run code when loaded.")
    ] = False,
    if_missing: Annotated[
        bool, typer.Option(help="Do nothing when the model already has a version.")
    ] = False,
) -> None:
    """Import a model as the next version of NAME."""
    check_name(name)
    store = ModelStore()
    existing = store.versions(name)
    if if_missing and existing:
        console.print(f"{existing[-1].tag} is there already.")
        return
    with fetch(source, store, DEMO, allow_pickle=allow_pickle) as fetched, progress(errors) as bar:
        total = sum(path.stat().st_size for path in fetched.folder.rglob("*") if path.is_file())
        whole = bar.add_task(f"{name} from {source}", total=total)
        version = store.add(
            name,
            fetched.folder,
            fetched.described,
            task=task,
            allow_pickle=allow_pickle,
            consume=fetched.staged,
            advance=lambda done: bar.advance(whole, done),
        )
        bar.update(whole, completed=total)
    console.print(f"Imported [bold]{version.tag}[/bold] ({decimal(version.size)}).")


@models.command("list")
def list_models(name: Annotated[str | None, typer.Argument()] = None) -> None:
    """List all versions, or those of NAME."""
    table = Table("version", "task", "size", "imported", "source", box=None, pad_edge=False)
    for version in ModelStore().versions(name):
        created = version.created.astimezone().strftime("%Y-%m-%d %H:%M")
        table.add_row(version.tag, version.task, decimal(version.size), created, version.source)
    if table.row_count:
        console.print(table)
    else:
        console.print("No version yet; run `serving models import NAME SOURCE`.")


@models.command("show")
def show_model(tag: Annotated[str, typer.Argument(help="NAME:NUMBER")]) -> None:
    """Show one version's files with their SHA-256, in the form that `sha256sum --check` reads."""
    version = ModelStore().find(tag)
    print(f"# {version.tag}, {decimal(version.size)}, to {version.task}, from {version.source}")
    print(f"# {version.path}")
    for file in version.files:
        print(f"{file.sha256}  {file.path}")


@models.command("verify")
def verify_model(tag: Annotated[str, typer.Argument(help="NAME:NUMBER")]) -> None:
    """Read all files of one version again and compare them with what was imported."""
    store = ModelStore()
    version = store.find(tag)
    with progress(errors) as bar:
        task = bar.add_task(tag, total=version.size)
        store.verify(version, lambda done: bar.advance(task, done), trust_cache=False)
    console.print(f"{version.tag} is as it was imported.")


@models.command("delete")
def delete_model(tag: Annotated[str, typer.Argument(help="NAME:NUMBER")]) -> None:
    """Delete one version, unless a running service uses it."""
    store = ModelStore()
    version = store.find(tag)
    store.delete(version)
    console.print(f"Deleted {version.tag}.")


_TOLD = (
    *(StoreError, ModelRefused, SettingsError, NotInstalled, cli_routing.NotDone, BadKey),
    *(DatabaseError, KeyRefused, NotPacked),
)


def _of_files(error: OSError) -> str:
    """What copies a tree gathers its errors, and one that copies a file names the source first."""
    gathered = str(error.args[0][0][2]) if isinstance(error, shutil.Error) else ""
    place = error.filename2 or error.filename
    if error.errno in FULL or any(os.strerror(number) in gathered for number in FULL):
        return (
            f"no space is left for {place or 'the model store or a Bento'}: free some (`serving "
            "models delete`, `bentoml delete`), or name a larger disk in BENTOML_HOME and TMPDIR."
        )
    return f"{place or 'the model store'}: {error.strerror or gathered or error}."


def main() -> None:
    """Runs the command line; what goes wrong is one sentence, and exit status 1."""
    try:
        app()
    except _TOLD as error:
        sys.exit(f"serving: {error}")
    except OSError as error:
        sys.exit(f"serving: {_of_files(error)}")


if __name__ == "__main__":
    main()
