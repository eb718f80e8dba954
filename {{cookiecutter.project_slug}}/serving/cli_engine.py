"""`serving engine …`: the engines that serving.yaml names."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, TypeVar

import typer
import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from serving.environments import environments
from serving.recommend import Recommendation, recommend
from serving.recommend.figures import Line
from serving.recommend.sizing import (
    ModelType,
    Needs,
    Quantization,
    Shape,
    estimate_shape,
    shape_of,
)
from serving.settings import config_file, load_settings

PROJECT = Path(__file__).parent.parent

engine = typer.Typer(no_args_is_help=True, help="The engines this service runs.")
console = Console(highlight=False)
T = TypeVar("T")
N = TypeVar("N", int, float)


@engine.command("install")
def install_engines(
    python: Annotated[
        str, typer.Option(help="The interpreter the environments are made with.")
    ] = sys.executable,
) -> None:
    """Make the environment of each engine in serving.yaml, unless it is up to date."""
    settings = load_settings(config_file(PROJECT), surroundings=False)
    for environment in environments(settings, PROJECT / "engines"):
        environment.install(python)


@engine.command("recommend")
def recommend_engine(
    model_type: Annotated[ModelType | None, typer.Option(help="What the model does.")] = None,
    model: Annotated[
        Path | None,
        typer.Option(exists=True, help="The model's folder or config.json, for its real numbers."),
    ] = None,
    parameters_b: Annotated[
        float | None, typer.Option(min=1e-6, help="Parameters, in billions.")
    ] = None,
    quantization: Annotated[
        Quantization, typer.Option(help="How the weights are to be kept in memory.")
    ] = Quantization.NONE,
    bytes_per_weight: Annotated[
        float | None, typer.Option(min=0.1, max=4, help="Instead of what quantization implies.")
    ] = None,
    gpus: Annotated[int | None, typer.Option(min=0, max=1024, help="GPUs; 0: a CPU.")] = None,
    gpu_memory_gib: Annotated[float | None, typer.Option(min=1, help="Of each GPU.")] = None,
    gpu_tflops: Annotated[
        float | None, typer.Option(min=0.1, help="Of each GPU: dense peak, at the weights' width.")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Streams at the same time.")
    ] = None,
    context: Annotated[
        int | None, typer.Option(min=1, help="Longest prompt and answer together, in tokens.")
    ] = None,
    shared_prefix: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of prompt tokens that repeat between requests."),
    ] = None,
    ttft_ms: Annotated[
        float | None, typer.Option(min=0, help="Target time to first token; 0: none.")
    ] = None,
    fp8_kv_cache: Annotated[bool, typer.Option(help="Keep the KV cache in 8 bits.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Say which engine fits, with which settings, and why. Asks for what no flag says."""
    kinds = ", ".join(ModelType)
    model_type = _asked("--model-type", model_type, f"Model type ({kinds})", ModelType)
    needs = Needs(model_type)
    if model_type.is_one_transformer:
        width = bytes_per_weight or quantization.bytes_per_weight
        shape = _shape(model, parameters_b, width)
        gpus = _asked("--gpus", gpus, "GPUs (0: a CPU)", _number(int, 0))
        memory = 0.0
        if gpus:
            memory = _asked("--gpu-memory-gib", gpu_memory_gib, "GiB each", _number(float, 1))
        needs = Needs(
            model_type,
            shape,
            gpus=gpus,
            gpu_memory_gib=memory,
            concurrency=_asked("--concurrency", concurrency, "Streams at once", _number(int, 1)),
            context=_asked("--context", context, "Prompt and answer, tokens", _number(int, 1)),
            shared_prefix=_asked(
                "--shared-prefix",
                shared_prefix,
                "Repeated share of prompts, 0 to 1",
                _number(float, 0, 1),
                0.0,
            ),
            ttft_ms=_asked("--ttft-ms", ttft_ms, "TTFT in ms (0: any)", _number(float, 0), 0.0)
            or None,
            quantization=quantization,
            fp8_kv_cache=fp8_kv_cache,
            gpu_tflops=gpu_tflops,
        )
    answer = recommend(needs)
    if as_json:
        figures = {name: asdict(figure) for name, figure in answer.figures.items()}
        print(json.dumps({**asdict(answer), "figures": figures}, indent=2))
    else:
        _show(answer)


def _shape(model: Path | None, parameters_b: float | None, bytes_per_weight: float) -> Shape:
    if model is None:
        question = "Parameters, billions"
        parameters = 1e9 * _asked("--parameters-b", parameters_b, question, _number(float, 1e-6))
        return estimate_shape(parameters, parameters * bytes_per_weight)
    file = model / "config.json" if model.is_dir() else model
    size = sum(weights.stat().st_size for weights in file.parent.glob("*.safetensors"))
    if parameters_b is None and not size:
        sys.exit(f"serving: {file.parent} has no .safetensors file; name --parameters-b too.")
    try:
        config = json.loads(file.read_bytes())
        return shape_of(config, parameters_b and parameters_b * 1e9, size, bytes_per_weight)
    except (ValueError, TypeError, AttributeError, ArithmeticError):
        sys.exit(f"serving: {file} is not the config.json of a transformer.")
    except KeyError as error:
        sys.exit(f"serving: {file} does not say {error}; leave --model out for an estimate.")


def _asked(
    flag: str, value: T | None, question: str, read: Callable[[str], T], default: T | None = None
) -> T:
    """The flag's value, or the answer of whoever sits at the terminal, or the default."""
    if value is not None:
        return value
    if _has_terminal():
        answer: T = typer.prompt(question, default=default, value_proc=_again(read), err=True)
        return answer
    if default is not None:
        return default
    sys.exit(f"serving: {flag} is missing, and there is no terminal to ask on.")


def _has_terminal() -> bool:
    return sys.stdin.isatty()


def _again(read: Callable[[str], T]) -> Callable[[str], T]:
    """What cannot be read is asked again."""

    def reader(answer: str) -> T:
        try:
            return read(answer)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None

    return reader


def _number(kind: type[N], least: float, most: float = math.inf) -> Callable[[str], N]:
    def read(answer: str) -> N:
        with suppress(ValueError):
            number = kind(answer)
            if least <= number <= most:
                return number
        span = f"from {least:g} to {most:g}" if math.isfinite(most) else f"of {least:g} or more"
        raise ValueError(f"write a number {span}")

    return read


def _show(answer: Recommendation) -> None:
    fits = f"[bold]{answer.engine}[/bold]" if answer.engine else "[bold]none fits[/bold]"
    console.print(f"{fits} (rule: {answer.rule})")
    if answer.section:
        print(f"\n{yaml.safe_dump({'engine': answer.section}, sort_keys=False)}", end="")
    numbers = {name: number for number, name in enumerate(answer.figures, 1)}
    for title, lines in (
        ("why", answer.reasons),
        ("mind", answer.warnings),
        ("or" if answer.engine else "instead", answer.instead),
    ):
        _list(title, ((f"{line.text}{_marks(line, numbers)}", "-") for line in lines))
    sources = zip(numbers.values(), answer.figures.values(), strict=True)
    _list("sources", ((f"{one.claim}\n{one.source}", f"{number}") for number, one in sources))


def _marks(line: Line, numbers: dict[str, int]) -> str:
    return "".join(f" [{numbers[name]}]" for name in line.figures)


def _list(title: str, rows: Iterable[tuple[str, str]]) -> None:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 0))
    for text, mark in rows:
        table.add_row(mark, Text(text))
    if table.row_count:
        console.print(f"\n[bold]{title}[/bold]")
        console.print(table)
