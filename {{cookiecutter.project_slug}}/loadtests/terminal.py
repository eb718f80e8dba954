"""What the run does, while it runs: live on a terminal, line by line elsewhere."""

from __future__ import annotations

from types import TracebackType

import gevent
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from loadtests.figures import spread
from loadtests.results import Report, StageResult, Summary
from loadtests.session import Session
from loadtests.words import seconds

#: Seconds between two looks.
EVERY = 0.5
#: Seconds of answers that a look tells of.
RECENT = 5.0
COLUMNS = (
    "stage",
    "offered/s",
    "answered/s",
    "good",
    "TTFT p50",
    "p99",
    "TPOT p50",
    "ITL p99",
    "tokens/s",
    "refused",
    "broken",
)


class Terminal:
    """Shows the session for as long as the context lasts."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._session: Session | None = None
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._greenlet: gevent.Greenlet[[], None] | None = None
        self._printed = 0

    def told(self, text: str) -> None:
        self._console.print(Text(f"  {text}", style="dim"))

    def watch(self, session: Session) -> None:
        self._session = session

    def __enter__(self) -> Terminal:
        if self._console.is_terminal:
            self._live.start()
        self._greenlet = gevent.spawn(self._look_always)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._greenlet is not None:
            self._greenlet.kill()
        if self._live.is_started:
            self._live.stop()

    def _look_always(self) -> None:
        while True:
            gevent.sleep(EVERY)
            if self._session is None:
                continue
            self._print_finished(self._session)
            if self._live.is_started:
                self._live.update(self._now(self._session), refresh=True)

    def _print_finished(self, session: Session) -> None:
        """Elsewhere than on a terminal, where the table tells it."""
        if self._live.is_started:
            return
        for result in session.stages[self._printed :]:
            self._printed += 1
            told = ", ".join(
                f"{name} {value}"
                for name, value in zip(COLUMNS[1:], _cells(result.summary), strict=True)
                if value
            )
            self._console.print(f"  {result.stage.name}: {told}", highlight=False)

    def _now(self, session: Session) -> Group:
        stage, now = session.running, session.now()
        recent = [s for s in session.samples[-20_000:] if s.end > now - RECENT]
        ttft = spread([s.ttft for s in recent if s.ttft is not None])
        broken = sum(s.outcome in ("failed", "truncated") for s in recent)
        line = Text()
        line.append(f"{session.scenario} ", style="bold")
        line.append(f"{now:.0f} s  {stage.name if stage else 'between stages'}  ")
        line.append(f"{len(recent) / RECENT:.1f} answers/s")
        if ttft:
            line.append(f"  TTFT p50 {seconds(ttft.p50)} p99 {seconds(ttft.p99)}")
        if broken:
            line.append(f"  {broken} broken", style="bold red")
        return Group(stages_table(session.stages), line)


def stages_table(stages: list[StageResult]) -> Table:
    table = Table(*COLUMNS, box=None, pad_edge=False, header_style="bold")
    for result in stages:
        cells = [result.stage.name, *_cells(result.summary)]
        table.add_row(*cells, style="" if result.stage.measured else "dim")
    return table


def show(report: Report, console: Console) -> None:
    """The end of a run."""
    console.print(stages_table(report.stages))
    for table in report.tables:
        console.print(_titled(table.title, table.columns, table.rows))
    if report.knee:
        console.print(f"\n[bold]Knee[/bold]: {report.knee.rate:.3g} requests a second.")
    for warning in report.warnings:
        console.print(f"[yellow]Warning[/yellow]: {warning}", highlight=False)
    for verdict in report.verdicts:
        mark = "[green]passed[/green]" if verdict.passed else "[bold red]FAILED[/bold red]"
        console.print(f"{mark}  {verdict.name}: {verdict.text}", highlight=False)


def _titled(title: str, columns: list[str], rows: list[list[str]]) -> Group:
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*row)
    return Group(Text(f"\n{title}", style="bold"), table)


def _cells(summary: Summary) -> list[str]:
    ttft, tpot, itl = summary.ttft, summary.tpot, summary.itl
    return [
        f"{summary.offered_rate:.3g}",
        f"{summary.achieved_rate:.3g}",
        f"{summary.good:.1%}",
        seconds(ttft.p50) if ttft else "",
        seconds(ttft.p99) if ttft else "",
        seconds(tpot.p50) if tpot else "",
        seconds(itl.p99) if itl else "",
        f"{summary.tokens_out_rate:.0f}" if summary.tokens_out_rate else "",
        str(summary.refused or ""),
        str(summary.failed + summary.truncated or ""),
    ]
