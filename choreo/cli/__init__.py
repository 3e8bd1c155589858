"""The command line: one file per command, no logic of its own. Only this room prints.

Rooms below are imported inside the commands, so that `choreo --help` does not wait for them.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
import traceback
from pathlib import Path

import typer

import choreo
from choreo.cli import bench, check, dlq, graph, inspect, publish, run
from choreo.errors import ChoreoError, ConfigurationError

app = typer.Typer(
    name="choreo",
    help="Event choreography on RabbitMQ: run agents, publish events, look at queues, mend what failed.",
    epilog="Exit codes: 0 done or drained, 1 failed or findings, 2 usage, 3 partly done, 65 invalid payload,"
    " 69 broker unreachable, 70 event loop blocked, 75 deadline passed, 78 configuration, 130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command("run")(run.run)
app.command("publish")(publish.publish)
app.command("inspect")(inspect.inspect)
app.add_typer(dlq.app, name="dlq")
app.command("graph")(graph.graph)
app.command("check")(check.check)
app.command("bench")(bench.bench)


def _version(wanted: bool) -> None:
    if wanted:
        from choreo import __version__

        typer.echo(f"choreo {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    pass


def main() -> None:
    """Run the command line, and end with one of the exit codes that `choreo --help` lists."""
    _steady_output()
    try:
        app(prog_name="choreo")
    except ChoreoError as error:
        typer.echo(f"choreo: {error.message}", err=True)
        if error.way_out:
            typer.echo(f"  {error.way_out}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # Whoever read our output has read enough. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        from choreo.loader import IMPORTING

        note = next((each for each in getattr(error, "__notes__", ()) if each.startswith(IMPORTING)), None)
        if note is None:
            raise
        typer.echo(_of_the_user(error), err=True, nl=False)
        typer.echo(
            f"choreo: {note.removeprefix(IMPORTING).strip()} cannot be imported: {type(error).__name__}", err=True
        )
        sys.exit(ConfigurationError.exit_code)


def _steady_output() -> None:
    """Let stdout take everything: texts of a message that are no UTF-8, and more than a pipe holds.

    With PYTHONUNBUFFERED, common in containers, a signal would silently cut what is written beyond that.
    """
    if not isinstance(sys.stdout, io.TextIOWrapper):
        return
    raw = sys.stdout.buffer
    if isinstance(raw, io.RawIOBase):
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(raw), sys.stdout.encoding, line_buffering=True)
    sys.stdout.reconfigure(errors="backslashreplace")


def _of_the_user(error: Exception) -> str:
    """Return the traceback of an error in a user's module, from that module on: the way there is not theirs."""
    folders = [str(Path(each).parent) for each in (choreo.__file__, typer.__file__, importlib.__file__)]
    frames = traceback.extract_tb(error.__traceback__)
    theirs = (
        number
        for number, frame in enumerate(frames)
        if not frame.filename.startswith((*folders, "<frozen")) and Path(frame.filename).exists()
    )
    found = traceback.TracebackException.from_exception(error)
    found.stack = traceback.StackSummary.from_list(frames[next(theirs, len(frames)) :])
    found.__notes__ = []
    return "".join(found.format())
