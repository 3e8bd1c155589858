"""The command line: one file per command, no logic of its own. Only this room prints.

Rooms below are imported inside the commands, so that `choreo --help` does not wait for them.
"""

from __future__ import annotations

import io
import sys

import typer

from choreo.cli import bench, check, complaints, dev, dlq, graph, inspect, new, output, publish, run, streams
from choreo.errors import ChoreoError, ConfigurationError
from choreo.importing import imported_by, inherit

app = typer.Typer(
    name="choreo",
    help="Event choreography on RabbitMQ: run agents, publish events, inspect queues, repair what failed.",
    epilog="Exit codes: 0 done or drained, 1 failed or findings, 2 usage, 3 partly done, 65 invalid payload,"
    " 69 broker unreachable, 70 event loop blocked or internal error, 75 deadline passed, 78 configuration,"
    " 130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command("new")(new.new)
app.command("dev")(dev.dev)
app.command("run")(run.run)
app.command("publish")(publish.publish)
app.command("inspect")(inspect.inspect)
app.add_typer(dlq.app, name="dlq")
app.command("graph")(graph.graph)
app.command("check")(check.check)
app.command("bench")(bench.bench)

inherit()

# What typer raises for a command line that makes no sense; where its class is differs from release to release.
_USAGE: type[Exception] = typer.BadParameter.__mro__[1]


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
    streams.open_closed()
    streams.words_never_fail()
    _steady_output()
    try:
        sys.exit(app(prog_name="choreo", standalone_mode=False))
    except ChoreoError as error:
        complaints.complain(error.message, error.way_out)
        run.leave_threads(error.exit_code)
        sys.exit(error.exit_code)
    except _USAGE as error:
        complaints.of_usage(error)
        sys.exit(2)
    except BrokenPipeError:
        output.silence()  # whoever read our output has read enough
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:  # noqa: BLE001 - it is said, without the passwords that it may quote
        if (module := imported_by(error)) is None:
            complaints.of_anything_else(error)
            run.leave_threads(1)
            sys.exit(1)
        complaints.of_import(module, error)
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
