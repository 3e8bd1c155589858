"""What is rehearsed: a coroutine function that takes the rehearsal."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from choreo.errors import UsageError

_NOT_THEIRS = tuple(str(Path(each).parent) for each in (asyncio.__file__, __file__))

T = TypeVar("T")
R = TypeVar("R")


class NoScenarioError(UsageError):
    """What was given cannot be rehearsed, on no schedule."""


def going(scenario: Callable[[R], Awaitable[T]], rehearsal: R) -> Awaitable[T]:
    """Return `scenario` under way. Raises NoScenarioError that says what a scenario is."""
    __tracebackhide__ = True  # pytest then shows who called it
    given: Any = scenario
    name = getattr(given, "__name__", "scenario")
    if inspect.iscoroutine(given):
        given.close()  # it would complain that nobody awaited it, which is not what is wrong
        raise NoScenarioError(f"{name}() is given, called already", f"give the function itself: {name}")
    if not callable(given):
        raise NoScenarioError(f"{given!r:.60} is not a scenario", "a scenario is: async def scenario(rehearsal): ...")
    result: Any = given(rehearsal)
    if not inspect.isawaitable(result):
        raise NoScenarioError(
            f"{name} is a plain function, and a scenario is a coroutine function", f"write it as: async def {name}(...)"
        )
    return result


def onward(trace: TracebackType | None) -> TracebackType | None:
    """Return `trace` from the scenario on: how the event loop came to run it is a screen that says nothing."""
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_NOT_THEIRS):
        trace = trace.tb_next
    return trace
