"""Data on stdout as a table, JSON or JSON lines; words for people on stderr.

Nothing but a command's own data gets to stdout, and nothing of either that is not printable to a terminal.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Any, Final, TypeVar

import typer

from choreo.censor import censored
from choreo.cli.options import Output
from choreo.errors import ChoreoError
from choreo.printable import folded, visible, visible_json

if TYPE_CHECKING:
    from choreo.config.settings import Settings

T = TypeVar("T")

_GAP: Final = 2  # between two columns
_LABEL: Final = 9  # characters, with the gap behind it
_INDENT: Final = 4  # of what stands below its row
_NARROWEST: Final = 20  # characters; a terminal that leaves less wraps by itself
_NUMBER: Final = (int, float, type(None))
_LONG: Final = 200  # things to do; for fewer a bar would only flicker
_STDOUT: Final = 1

_data: IO[str] | None = None  # what was stdout, once it is kept apart


def keep_data_apart() -> None:
    """From now on only `write` gets to stdout. What else is printed, by a user's module or a child of it, is on stderr.

    Without a stdout of the process's own, as in a test, everything stays as it is.
    """
    global _data  # noqa: PLW0603 - a process has one stdout
    if _data is not None or sys.stdout is None:
        return
    try:
        sys.stdout.flush()
        if sys.stdout.fileno() != _STDOUT:
            return
        kept = os.dup(_STDOUT)
    except (OSError, ValueError):
        return
    try:
        os.dup2(2, _STDOUT)
    except OSError:  # there is no stderr either
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, _STDOUT)
    raw = io.BufferedWriter(io.FileIO(kept, "w"))
    _data = io.TextIOWrapper(raw, sys.stdout.encoding, "backslashreplace", line_buffering=True)


def stdout() -> IO[str]:
    """Return what data is written to."""
    return _data or sys.stdout


def write(text: str, *, nl: bool = True) -> None:
    """Write data as text. Raises ChoreoError when it cannot be written, BrokenPipeError when nobody reads any more."""
    _write(visible(text), nl=nl)


def write_json(value: Any, *, before: str = "", nl: bool = True) -> None:
    """Write data as JSON on one line, behind `before`. Raises as `write` does."""
    _write(before + visible_json(json.dumps(value, default=str, ensure_ascii=False)), nl=nl)


def _write(text: str, *, nl: bool = True) -> None:
    try:
        typer.echo(text, file=stdout(), nl=nl)
    except BrokenPipeError:
        silence()
        raise
    except OSError as error:
        silence()
        raise ChoreoError(f"stdout cannot be written: {error.strerror}", "make room, or write it elsewhere") from None


def silence() -> None:
    """Let what is still to be written to stdout go nowhere: Python would try once more when it ends, and complain."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stdout().fileno())
        os.close(nowhere)


def rows(data: Iterable[Mapping[str, Any]], output: Output, columns: Sequence[str], empty: str = "nothing") -> None:
    """Write rows of one kind: `columns` of them as a table, all as JSON. `empty` is said when there are none."""
    found = list(data)
    if output is Output.JSON:
        write_json(found)
    elif output is Output.JSONL:
        for row in found:
            write_json(row)
    elif found:
        table(found, columns)
    else:
        note(empty)


def document(data: Mapping[str, Any], output: Output, text: str) -> None:
    """Write one thing: `text` for people, `data` as JSON (one line of it for jsonl)."""
    if output is Output.TEXT:
        write(text)
    else:
        write_json(data)


def table(found: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write a table: as wide as the terminal with a bold head, elsewhere columns that cut and awk understand."""
    if not stdout().isatty():
        write("\n".join(lines(found, columns)))
        return
    head, *rest = lines(found, columns, width=shutil.get_terminal_size().columns)
    _write("\n".join([typer.style(head, bold=True), *rest]))


def lines(found: Sequence[Mapping[str, Any]], columns: Sequence[str], width: int | None = None) -> list[str]:
    """Return the lines of a table. With a `width` in characters, what is too wide for it stands below its row.

    Nothing is cut: an id or a topic can be copied from a narrow terminal too.
    """
    cells = {column: [_cell(row.get(column)) for row in found] for column in columns}
    widths = {column: max(map(len, [column, *cells[column]])) for column in columns}
    beside: list[str] = []
    for column in columns:
        if width is None or not beside or sum(widths[each] + _GAP for each in [*beside, column]) - _GAP <= width:
            beside.append(column)
    below = [column for column in columns if column not in beside]
    numbers = {column for column in columns if width and all(isinstance(row.get(column), _NUMBER) for row in found)}

    def line(texts: Mapping[str, str]) -> str:
        padded = (
            texts[each].rjust(widths[each]) if each in numbers else texts[each].ljust(widths[each]) for each in beside
        )
        return (" " * _GAP).join(padded).rstrip()

    written = [line({column: column for column in columns})]
    for number, row in enumerate(found):
        written.append(line({column: cells[column][number] for column in columns}))
        for column in below:
            if row.get(column) not in (None, [], ()):
                written += _paragraph(f"{column:<{max(map(len, below))}}  ", cells[column][number], width or 0)
    return written


def _paragraph(name: str, text: str, width: int) -> list[str]:
    """Return `text` behind `name`, indented, its words on as many lines as it takes."""
    indent = " " * (_INDENT + len(name))
    told = textwrap.wrap(text, max(width - len(indent), _NARROWEST), break_long_words=False, break_on_hyphens=False)
    return [f"{indent if number else ' ' * _INDENT + name}{each}" for number, each in enumerate(told or [""])]


def note(text: str) -> None:
    """Say something to the person at the terminal, on stderr; where that is gone, nobody hears it."""
    with suppress(OSError):
        typer.echo(visible(censored(text)), err=True)


def tell(line: str) -> None:
    """Say a line that begins with a label of nine characters; on a terminal it goes on below from a whole word on."""
    width = shutil.get_terminal_size().columns if sys.stderr is not None and sys.stderr.isatty() else None
    note(folded(visible(line), width, _LABEL))


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
    from rich.file_proxy import FileProxy
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    # Where data goes to a terminal as well, both have to go through the same console to stay off each other's lines.
    global _data  # noqa: PLW0603
    before, same = _data, stdout().isatty()
    console = Console(file=stdout() if same else sys.stderr)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, redirect_stdout=same, transient=True) as shown:
        task = shown.add_task(what, total=total)
        if same:
            _data = FileProxy(console, stdout())  # type: ignore[assignment]  # as much of a file as is written to
        try:
            yield lambda: shown.advance(task)
        finally:
            _data = before


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something is destroyed. Without a terminal nobody can answer: then `--yes` is needed."""
    from choreo.errors import UsageError

    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"{question} There is no terminal to confirm on", "pass --yes to confirm")
    try:
        if typer.confirm(visible(question), err=True):
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
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return visible(text, keep="")  # a line break would make two rows of one
