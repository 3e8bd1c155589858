"""What a command that cannot go on says on stderr: what is wrong, and on the next line what to do about it."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import typer

from choreo.censor import censored
from choreo.errors import ChoreoError
from choreo.importing import imported_by
from choreo.printable import visible


def complain(message: str, way_out: str = "") -> None:
    """Say what went wrong, and what to do about it."""
    _say(f"choreo: {message}\n")
    if way_out:
        _say(f"  {way_out}\n")


def _say(text: str) -> None:
    with suppress(OSError):  # whoever read stderr is gone; the exit code is still to come
        typer.echo(visible(censored(text)), err=True, nl=False)


def of_usage(error: Any) -> None:
    """Say in our own style what typer says of a command line: an unknown option, a missing argument."""
    message, context = str(error.format_message()).strip(), error.ctx
    if context is None or message.startswith("Usage:"):  # nothing was said, so this is the help
        _say(f"{message}\n")
        return
    usage = " ".join(context.get_usage().split()).removeprefix("Usage: ").replace("{", "").replace("}", "")
    known = getattr(context.command, "commands", {})
    hint = f"known: {', '.join(known)}" if known else usage
    complain(f"{message[:1].lower()}{message[1:]}".removesuffix("."), f"{hint}; more by {context.command_path} --help")


def of_import(module: str, error: Exception) -> None:
    """Show the traceback of an error in a user's module, and say at its end what failed, where, and what to do."""
    from choreo import frames

    found, stack = traceback.TracebackException.from_exception(error), traceback.extract_tb(error.__traceback__)
    theirs = [number for number, frame in enumerate(stack) if frames.is_the_users(frame.filename)]
    # From their own module on: the way there is not theirs.
    found.stack = traceback.StackSummary.from_list(stack[theirs[0] if theirs else len(stack) :])
    found.__notes__ = []
    _say("".join(found.format()))
    place = ""
    if isinstance(error, SyntaxError):
        place = f" ({frames.near(error.filename or '?')}, line {error.lineno})"
    elif theirs:
        place = f" ({frames.near(stack[theirs[-1]].filename)}, line {stack[theirs[-1]].lineno})"
    what = " ".join(list(found.format_exception_only())[-1].split())
    if isinstance(error, ModuleNotFoundError):
        way_out = f"fix the import, or install it into {sys.prefix}, where this choreo runs"
    else:
        way_out = "the traceback above shows how it came there"
    complain(f"{module} cannot be imported{place}: {what}", way_out)


def of_left_out(left_out: Mapping[str, Exception]) -> None:
    """Say once what is wrong with each module whose agents are left out, in full, and which those are."""
    said: dict[tuple[type[Exception], str], tuple[Exception, list[str]]] = {}
    for name, error in left_out.items():
        # One broken module is imported anew for each agent that needs it.
        said.setdefault((type(error), str(error)), (error, []))[1].append(name)
    for error, names in said.values():
        if isinstance(error, ChoreoError):
            complain(error.message, error.way_out)
        else:
            of_import(imported_by(error) or names[0], error)
        complain(f"left out, because of that: {', '.join(names)}")


def of_anything_else(error: Exception) -> None:
    """Show the traceback of what nobody has expected, as Python would; but exceptions quote what they were given."""
    _say("".join(traceback.format_exception(error)))
