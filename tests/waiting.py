"""Waiting for a condition with a deadline: the one place in the tests that lets time pass."""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ParamSpec, TypeVar, overload

import pytest

from choreo.testing import VirtualLoop

PAUSE = 0.02  # seconds between two looks


def slowness() -> float:
    """Return how many programs want each processor here, at least 1: so many times as long takes what they all do."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1.0, os.getloadavg()[0] / processors)


P = ParamSpec("P")
T = TypeVar("T")


def in_virtual_time(test: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """Run a test that talks to nothing outside in a time of its own: a busy machine makes nothing come late."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            return runner.run(test(*args, **kwargs))

    return run


@overload
async def eventually(condition: Callable[[], Awaitable[T]], *, within: float = 30.0, what: str = "") -> T: ...


@overload
async def eventually(condition: Callable[[], T], *, within: float = 30.0, what: str = "") -> T: ...


async def eventually(condition: Callable[[], Any], *, within: float = 30.0, what: str = "") -> Any:
    """Return the first true answer of `condition`, plain or awaitable; fail the test after `within` seconds.

    They are those of a quiet machine: where others want the processors too, it has as much longer.
    """
    began = time.monotonic()
    while True:
        answer = condition()
        if inspect.isawaitable(answer):
            answer = await answer
        if answer:
            return answer
        if time.monotonic() - began > within * slowness():
            pytest.fail(f"{what or 'the condition'} did not come true within {within:g} s; last: {answer!r}")
        await asyncio.sleep(PAUSE)


def until(condition: Callable[[], T], *, within: float = 30.0, what: str = "") -> T:
    """As `eventually`, for a test without an event loop."""
    began = time.monotonic()
    while not (answer := condition()):
        if time.monotonic() - began > within * slowness():
            pytest.fail(f"{what or 'the condition'} did not come true within {within:g} s; last: {answer!r}")
        time.sleep(PAUSE)
    return answer
