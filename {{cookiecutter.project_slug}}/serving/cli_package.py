"""`serving bento|image|sbom`: what is shipped."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.filesize import decimal

from serving.settings import config_file, load_settings

PROJECT = Path(__file__).parent.parent

if TYPE_CHECKING:
    from serving.packaging.bento import Built

console = Console(highlight=False)

Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model", help="NAME:NUMBER to put in; again for more. [default: what is served]"
    ),
]
NoModels = Annotated[
    bool, typer.Option("--no-models", help="Put none in: the store is mounted where it runs.")
]


def add_to(app: typer.Typer) -> None:
    app.command()(bento)
    app.command()(image)
    app.command()(sbom)


def bento(model: Models = None, no_models: NoModels = False) -> None:
    """Build a Bento: service, contract, and exact model versions."""
    built = _bento(model, no_models)
    console.print(f"bentoml serve {built.tag}", soft_wrap=True)


def image(
    tag: Annotated[
        str, typer.Option(help="The image's name, as in registry.example.com/chat:1.0.")
    ],
    backend: Annotated[
        Literal["docker", "buildah", "podman"] | None,
        typer.Option(help="What builds it. [default: whichever works here]"),
    ] = None,
    model: Models = None,
    no_models: NoModels = False,
) -> None:
    """Build the image of such a Bento: the gateway, the engines, the models."""
    from serving.packaging.builders import find
    from serving.packaging.image import build

    find(backend)  # says at once when there is none
    size = build(PROJECT, _bento(model, no_models), tag, backend)
    console.print(f"Built [bold]{tag}[/bold] ({decimal(size)}).", soft_wrap=True)


def sbom(
    folder: Annotated[Path, typer.Option(help="Where the documents go.")] = Path("sbom"),
) -> None:
    """List what is installed, the gateway's packages and each engine's, as CycloneDX."""
    from serving.packaging.sbom import write

    settings = load_settings(config_file(PROJECT), surroundings=False)
    for file in write(PROJECT, settings, folder):
        console.print(str(file), soft_wrap=True)


def _bento(model: list[str] | None, no_models: bool) -> Built:
    from serving.packaging.bento import build

    if model and no_models:
        raise typer.BadParameter("--model and --no-models exclude each other.")
    built = build(PROJECT, [] if no_models else model)
    carried = ", ".join(f"{v.tag} ({decimal(v.size)})" for v in built.models) or "no model"
    new = "Built" if built.new else "There already:"
    console.print(f"{new} [bold]{built.tag}[/bold] with {carried}.", soft_wrap=True)
    return built
