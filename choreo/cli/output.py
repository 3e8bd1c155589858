"""Data on stdout as a table, JSON or JSON lines; words for people on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

import typer

from choreo.cli.options import Output

if TYPE_CHECKING:
    from choreo.settings import Settings

T = TypeVar("T")

_LONG: Final = 200  # things to do; for fewer a bar would only flicker


def rows(data: Iterable[Mapping[str, Any]], output: Output, columns: Sequence[str], empty: str = "nothing") -> None:
    """Write rows of one kind: `columns` of them as a table, all as JSON. `empty` is said when there are none."""
    found = list(data)
    if output is Output.JSON:
        typer.echo(json.dumps(found, default=str, ensure_ascii=False))
    elif output is Output.JSONL:
        for row in found:
            typer.echo(json.dumps(row, default=str, ensure_ascii=False))
    elif found:
        table(found, columns)
    else:
        note(empty)


def document(data: Mapping[str, Any], output: Output, text: str) -> None:
    """Write one thing: `text` for people, `data` as JSON (one line of it for jsonl)."""
    typer.echo(text if output is Output.TEXT else json.dumps(data, default=str, ensure_ascii=False))


def table(found: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write a table: with rules and colour on a terminal, plain columns that cut and awk understand elsewhere."""
    cells = [[_cell(row.get(column)) for column in columns] for row in found]
    if not sys.stdout.isatty():
        widths = [max(len(line[i]) for line in [list(columns), *cells]) for i in range(len(columns))]
        for line in [list(columns), *cells]:
            typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    view = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        numeric = all(isinstance(row.get(column), int | float | None) for row in found)
        view.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for line in cells:
        view.add_row(*(Text(cell) for cell in line))
    Console().print(view)


def note(text: str) -> None:
    """Say something to the person at the terminal, on stderr."""
    typer.echo(text, err=True)


def note_broker(settings: Settings) -> None:
    """Say which broker is used when nobody named one: that of the project's `choreo dev`."""
    if settings.found is not None:
        note(f"choreo: broker {settings.found.text}")


def note_forgotten(names: Sequence[str] | None, settings: Settings) -> None:
    """Unless agents are named: say which files of the folder look like an agent's and declare none."""
    from choreo import loader

    if not names and (files := loader.forgotten(settings.agents_folder)):
        note(f'choreo: left out, for want of a line agent = Agent("name") at the top level: {", ".join(files)}')


@contextmanager
def progress(what: str, total: int | None, interval: float = 0.0) -> Iterator[Callable[[], None]]:
    """Show on a terminal how far it is; elsewhere, and for what is quickly done, nothing."""
    quick = total is not None and total < _LONG and total * interval < 2
    if quick or not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    # Where data goes to a terminal as well, both have to go through the same console to stay off each other's lines.
    same = sys.stdout.isatty()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=not same), redirect_stdout=same, transient=True) as shown:
        task = shown.add_task(what, total=total)
        yield lambda: shown.advance(task)


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something is destroyed. Without a terminal nobody can answer: then `--yes` is needed."""
    from choreo.errors import UsageError

    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"{question} Nobody can be asked here", "say --yes to go ahead")
    try:
        if typer.confirm(question, err=True):
            return
    except typer.Abort:
        raise KeyboardInterrupt from None
    note("nothing was done")
    raise typer.Exit(1)


def wait_for(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end, on uvloop where it is installed."""
    import asyncio

    factory: Callable[[], asyncio.AbstractEventLoop]
    try:
        from uvloop import new_event_loop as factory
    except ImportError:
        factory = asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(work)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.1f}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)
