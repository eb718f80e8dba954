"""`serving models push|pull|export|import-archive`: versions between stores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from serving.runtime import archive, distribution
from serving.runtime.remote import Remote
from serving.runtime.store import ModelStore, StoreError, Version

console = Console()
errors = Console(stderr=True)

Tag = Annotated[str, typer.Argument(help="NAME:NUMBER")]
Url = Annotated[
    str, typer.Argument(help="A folder, or where fsspec can write: s3://BUCKET/MODELS, gs://…")
]
AllowPickle = Annotated[
    bool, typer.Option(help="Also take pickled weights, which can run code when loaded.")
]


def add_to(models: typer.Typer) -> None:
    """Under `serving models`."""
    models.command("push")(push_model)
    models.command("pull")(pull_models)
    models.command("export")(export_model)
    models.command("import-archive")(import_archive)


def push_model(tag: Tag, url: Url) -> None:
    """Send one version to a folder or a bucket, from where other stores pull it."""
    store = ModelStore()
    version = store.find(tag)
    remote = Remote(url)
    with progress(errors) as bar:
        task = bar.add_task(f"{tag} to {remote.url}", total=version.size)
        new = distribution.push(store, remote, version, lambda done: bar.advance(task, done))
    done = f"Pushed [bold]{tag}[/bold] ({decimal(version.size)})" if new else f"{tag} was there"
    console.print(f"{done}: {remote.url}.", soft_wrap=True)


def pull_models(
    url: Url,
    tags: Annotated[
        list[str] | None, typer.Argument(help="NAME:NUMBER …; without, all that are there.")
    ] = None,
    allow_pickle: AllowPickle = False,
) -> None:
    """Fetch versions that were pushed, with their numbers; again, after a cut, where it stopped."""
    store = ModelStore()
    remote = Remote(url)
    wanted = tags or remote.tags()
    if not wanted:
        raise StoreError(
            f"{remote.url} holds no version, or is not there; `serving models push` brings one."
        )
    for version in [distribution.find(remote, tag) for tag in wanted]:
        _pull(store, remote, version, allow_pickle)


def _pull(store: ModelStore, remote: Remote, version: Version, allow_pickle: bool) -> None:
    tag = version.tag
    with progress(errors) as bar:
        task = bar.add_task(f"{tag} from {remote.url}", total=version.size)
        new = distribution.pull(
            store,
            remote,
            version,
            allow_pickle=allow_pickle,
            advance=lambda done: bar.advance(task, done),
            waits=lambda: errors.print(f"Waiting for another pull of {tag}."),
        )
    if new:
        console.print(f"Pulled [bold]{tag}[/bold] ({decimal(version.size)}).")
    else:
        console.print(f"{tag} is there already.")


def export_model(
    tag: Tag,
    target: Annotated[Path, typer.Argument(help="The .tar file to write, or a folder for it.")],
) -> None:
    """Write one version as a tar file, to carry where no network leads."""
    store = ModelStore()
    version = store.find(tag)
    file = archive.archive_file(version, target)
    with progress(errors) as bar:
        task = bar.add_task(f"{tag} to {file}", total=version.size)
        archive.export(store, version, file, lambda done: bar.advance(task, done))
    console.print(f"Exported [bold]{tag}[/bold] ({decimal(version.size)}): {file}.", soft_wrap=True)


def import_archive(
    file: Annotated[Path, typer.Argument(help="What `serving models export` wrote.")],
    allow_pickle: AllowPickle = False,
) -> None:
    """Take the version in an exported file into the store, with its number."""
    with progress(errors) as bar:
        task = bar.add_task(str(file), total=file.stat().st_size)
        version, new = archive.import_archive(
            ModelStore(),
            file,
            allow_pickle=allow_pickle,
            advance=lambda done: bar.advance(task, done),
        )
        bar.update(task, completed=file.stat().st_size)
    if new:
        console.print(f"Imported [bold]{version.tag}[/bold] ({decimal(version.size)}).")
    else:
        console.print(f"{version.tag} is there already.")


def progress(console: Console) -> Progress:
    """Bytes, and how fast they go by; nothing where nobody looks."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=console,
        disable=not console.is_terminal,
    )
