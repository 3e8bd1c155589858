"""The command line: one file per command, no logic of its own. Only this room prints.

Rooms below are imported inside the commands, so that `choreo --help` does not wait for them.
"""

from __future__ import annotations

import os
import sys

import typer

from choreo.cli import check, dlq, graph, inspect, publish, run
from choreo.errors import ChoreoError

app = typer.Typer(
    name="choreo",
    help="Event choreography on RabbitMQ: run agents, publish events, look at queues, mend what failed.",
    epilog="Exit codes: 0 done or drained, 1 failed or findings, 2 usage, 3 partly done, 65 invalid payload,"
    " 69 broker unreachable, 75 deadline passed, 78 configuration, 130 interrupted.",
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
