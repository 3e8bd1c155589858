"""Whose code a frame is: a report of what went wrong begins with the line that its reader can change."""

from __future__ import annotations

import importlib
import sysconfig
import traceback
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Final

_DEEPEST: Final = 12  # frames that a report shows, the innermost ones


@cache
def _others() -> tuple[str, ...]:
    """Return how the files begin that are nobody's to change here: choreo, installed libraries, Python itself."""
    ours, importing = Path(__file__).parent, Path(importlib.__file__).parent
    return (
        str(ours),
        str(importing),
        *map(sysconfig.get_path, ("purelib", "platlib", "stdlib", "platstdlib")),
        "<frozen",
    )


def is_the_users(file: str) -> bool:
    """Say whether the code in `file` belongs to the user's project."""
    return not file.startswith(_others()) and Path(file).exists()


def near(file: str) -> str:
    """Return `file` as it is called from the working folder, where it is inside."""
    try:
        return str(Path(file).relative_to(Path.cwd()))
    except (OSError, ValueError):  # the working folder is gone; the file is elsewhere
        return file


def report(frame: FrameType | None) -> dict[str, str]:
    """Return `where` the user's code stands in `frame`, and the `stack` from its first line on."""
    return _report(traceback.extract_stack(frame)) if frame is not None else {}


def report_of(error: BaseException) -> dict[str, str]:
    """Return `where` the user's code raised `error`, and the `stack` from its first line on."""
    return _report(traceback.extract_tb(error.__traceback__))


def _report(stack: Sequence[traceback.FrameSummary]) -> dict[str, str]:
    theirs = [number for number, frame in enumerate(stack) if is_the_users(frame.filename)]
    if not theirs:
        return {"stack": " > ".join(map(_line, stack[-_DEEPEST:]))} if stack else {}
    # The user's own program may have called choreo, which called this.
    called = max((number for number in range(theirs[-1]) if _is_ours(stack[number].filename)), default=-1)
    shown = stack[next(number for number in theirs if number > called) :][-_DEEPEST:]
    return {"where": _line(stack[theirs[-1]]), "stack": " > ".join(map(_line, shown))}


def _is_ours(file: str) -> bool:
    return file.startswith(_others()[0])


def _line(frame: traceback.FrameSummary) -> str:
    return f"{near(frame.filename)}:{frame.lineno} {frame.name}"
