"""What a load test leaves on the disk: the whole report as JSON, its tables as CSV, and a page."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import msgspec

from loadtests import page
from loadtests.results import Report, Sample, Spread, Stage, StageResult, Summary

JSON, REQUESTS, STAGES, PAGE = "report.json", "requests.csv", "stages.csv", "report.html"

_REQUEST_COLUMNS = (*Sample.__struct_fields__, "tpot")
_LATENCIES = ("ttft", "itl", "tpot", "e2e")
_FIGURES = tuple(
    field for field in Summary.__struct_fields__ if field not in (*_LATENCIES, "errors")
)


class NotWritten(Exception):
    """The message is one sentence that says what to do."""


def write(report: Report, folder: Path) -> Path:
    """Writes `report.json`, `requests.csv`, `stages.csv` and `report.html` into `folder`, which is
    made. Each file is there whole or not at all. Returns the page's path. Raises `NotWritten`."""
    make(folder)
    try:
        with _whole(folder / JSON) as file:
            file.writelines(_json(report))
        with _whole(folder / REQUESTS) as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(_REQUEST_COLUMNS)
            rows.writerows(map(_request, report.samples))
        with _whole(folder / STAGES) as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(_stage_columns())
            rows.writerows(map(_stage, report.stages))
        with _whole(folder / PAGE) as file:
            file.write(page.render(report))
    except OSError as error:
        raise _not_written(folder, error) from error
    return folder / PAGE


def make(folder: Path) -> None:
    """Makes the folder of a report, unless it is there. Raises `NotWritten`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_written(folder, error) from error


def _not_written(folder: Path, error: OSError) -> NotWritten:
    return NotWritten(
        f"The report could not be written to {folder} ({error.strerror or error}): make room or"
        " name another folder, one that you may write to."
    )


@contextmanager
def _whole(path: Path) -> Iterator[IO[str]]:
    """A file that takes its name once everything is in it."""
    unfinished = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        with unfinished.open("w", encoding="utf-8", newline="") as file:
            yield file
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def _json(report: Report) -> Iterator[str]:
    """A line for each field, and one for each item of a list: a million gaps, a line each, would be
    a file that no editor opens."""
    for number, field in enumerate(report.__struct_fields__):
        yield ("{" if number == 0 else ",") + f'\n  "{field}": '
        value = getattr(report, field)
        if not (isinstance(value, list) and value):
            yield _encoded(value)
            continue
        for place, item in enumerate(value):
            yield ("[" if place == 0 else ",") + "\n    " + _encoded(item)
        yield "\n  ]"
    yield "\n}\n"


def _encoded(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _request(sample: Sample) -> Iterator[Any]:
    for field in _REQUEST_COLUMNS:
        value = getattr(sample, field)
        yield " ".join(map(repr, value)) if field == "gaps" else value


def _stage_columns() -> list[str]:
    spreads = [f"{name}_{figure}" for name in _LATENCIES for figure in Spread.__struct_fields__]
    times = ["began", "ended", "finished"]
    return [*Stage.__struct_fields__, *times, *_FIGURES, *spreads, "errors"]


def _stage(result: StageResult) -> Iterator[Any]:
    yield from msgspec.structs.astuple(result.stage)
    yield from (result.began, result.ended, result.finished)
    yield from (getattr(result.summary, figure) for figure in _FIGURES)
    for name in _LATENCIES:
        spread: Spread | None = getattr(result.summary, name)
        yield from (getattr(spread, figure, None) for figure in Spread.__struct_fields__)
    yield _encoded(result.summary.errors) if result.summary.errors else ""
