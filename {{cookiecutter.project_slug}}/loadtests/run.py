"""One run: the service, the scenario, the report.

Exit codes: 0 when all verdicts passed, 1 when one failed, 2 when it could not run, 130 when it was
stopped.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console

from loadtests import interrupt
from loadtests import report as reports
from loadtests.clock import still
from loadtests.compare import compare
from loadtests.options import Options
from loadtests.own_service import OwnService, project_model, under_test
from loadtests.results import Report
from loadtests.scenarios import SCENARIOS
from loadtests.service import CannotRun, Service
from loadtests.session import Session
from loadtests.terminal import Terminal, show

PASSED, FAILED, CANNOT_RUN, STOPPED = 0, 1, 2, 130
#: Columns of a log file or a pipe, which tell none.
WIDE = 120


def perform(
    scenario: str,
    options: Options,
    url: str | None,
    model: str | None,
    folder: Path,
    earlier: Report | None = None,
    earlier_path: Path | None = None,
) -> int:
    """Runs the scenario and leaves its report in `folder`, also of a run that is stopped. Returns
    the exit code. Raises `CannotRun` and the like."""
    interrupt.heed()
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, WIDE)
    reports.make(folder)
    still()
    stopped = False
    with (
        _kept_if_used(folder),
        under_test(url, folder / "service.log") as service,
        Terminal(console) as terminal,
    ):
        name = model or (project_model() if url is None else _first(service))
        if isinstance(service, OwnService):
            console.print(
                f"Starting the service (its log: {folder / 'service.log'})", soft_wrap=True
            )
            service.wait_until_ready()
        console.print(f"{scenario} of {name} at {service.url}")
        session = Session(scenario, options, service, name, folder, terminal.told)
        terminal.watch(session)
        try:
            SCENARIOS[scenario](session)
        except KeyboardInterrupt:
            stopped = True
            session.judge("finished", False, "The run was stopped before its end.")
        finally:
            session.close()
    report = session.report()
    if earlier is not None:
        table, verdicts = compare(earlier, report, options.tolerance)
        table.title += f" ({earlier_path})"
        report.tables.append(table)
        report.verdicts.extend(verdicts)
    page = reports.write(report, folder)
    show(report, console)
    console.print(f"\nThe report: {page}", highlight=False, soft_wrap=True)
    if stopped:
        return STOPPED
    return PASSED if report.passed else FAILED


def raise_open_file_limit() -> None:
    """Each stream is an open file."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextmanager
def _kept_if_used(folder: Path) -> Iterator[None]:
    """A run that cannot begin leaves no empty folder."""
    try:
        yield
    except Exception:
        with suppress(OSError):
            folder.rmdir()
        raise


def _first(service: Service) -> str:
    served = service.models()
    if not served:
        raise CannotRun(f"{service.url} does not tell what it serves: name a model with --model.")
    return served[0]
