"""A deadline that costs nothing for what never waits.

Setting and cancelling a timer takes longer than many a reaction does. So a coroutine takes its first step without one,
and gets it when that step ends in waiting for something.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Coroutine, Generator
from typing import Any, TypeVar, cast

T = TypeVar("T")


class DeadlineError(Exception):
    """What was awaited has been cancelled, because its time was up."""


async def within(seconds: float, work: Coroutine[Any, Any, T]) -> T:
    """Await `work`. Raises DeadlineError when it has waited for longer than `seconds`, besides what `work` raises."""
    try:
        awaited = work.send(None)
    except StopIteration as end:
        return cast("T", end.value)
    deadline = asyncio.timeout(seconds)
    try:
        async with deadline:
            return await _continued(work, awaited)
    except TimeoutError as error:
        if not deadline.expired():
            raise  # the work's own
        raise DeadlineError from error


@types.coroutine
def _continued(work: Coroutine[Any, Any, T], awaited: Any) -> Generator[Any, Any, T]:
    """Await `work`, which has begun already and waits for what `awaited` stands for."""
    while True:
        try:
            yield awaited
        except BaseException as error:  # noqa: BLE001 - cancellation above all: it is the work's to handle
            try:
                awaited = work.throw(error)
            except StopIteration as end:
                return cast("T", end.value)
        else:
            break
    rest: T = yield from work
    return rest
