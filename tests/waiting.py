"""Waiting for a condition with a deadline: the one place in the tests that lets time pass."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

import pytest

PAUSE = 0.02  # seconds between two looks

T = TypeVar("T")


async def eventually(condition: Callable[[], T | Awaitable[T]], *, within: float = 10.0, what: str = "") -> T:
    """Return the first true answer of `condition`, plain or awaitable; fail the test after `within` seconds."""
    deadline = time.monotonic() + within
    while True:
        found = condition()
        answer = await found if inspect.isawaitable(found) else cast("T", found)
        if answer:
            return answer
        if time.monotonic() > deadline:
            pytest.fail(f"{what or 'the condition'} did not come true within {within:g} s; last: {answer!r}")
        await asyncio.sleep(PAUSE)


def until(condition: Callable[[], T], *, within: float = 10.0, what: str = "") -> T:
    """As `eventually`, for a test without an event loop."""
    deadline = time.monotonic() + within
    while not (answer := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"{what or 'the condition'} did not come true within {within:g} s; last: {answer!r}")
        time.sleep(PAUSE)
    return answer
