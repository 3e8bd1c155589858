"""Waiting for a condition with a deadline: the one place in the tests that lets time pass."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

import pytest

PAUSE = 0.02  # seconds between two looks

T = TypeVar("T")


@overload
async def eventually(condition: Callable[[], Awaitable[T]], *, within: float = 10.0, what: str = "") -> T: ...


@overload
async def eventually(condition: Callable[[], T], *, within: float = 10.0, what: str = "") -> T: ...


async def eventually(condition: Callable[[], Any], *, within: float = 10.0, what: str = "") -> Any:
    """Return the first true answer of `condition`, plain or awaitable; fail the test after `within` seconds."""
    deadline = time.monotonic() + within
    while True:
        answer = condition()
        if inspect.isawaitable(answer):
            answer = await answer
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
