"""Background tasks with an owner: when one ends by an exception, somebody is told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any

from choreo.logger import get_logger

_logger = get_logger()

Failed = Callable[[str, BaseException], None]
"""Told the name of a task, and the exception that it ended with."""


def owned(
    work: Coroutine[Any, Any, None], name: str, failed: Failed, *, context: Context | None = None
) -> asyncio.Task[None]:
    """Begin `work` in a task called `name`, and tell `failed` if it raises. Cancelled, it has ended as it was told."""

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            failed(name, error)

    task = asyncio.create_task(work, name=name, context=context)
    task.add_done_callback(ended)
    return task


def unsaid(task: str, error: BaseException) -> None:
    """Say that something could not be said; the work does not depend on it."""
    _logger.error("task failed inside choreo", task=task, exc_info=error, next="the work goes on")


async def first_of(*what: asyncio.Event | asyncio.Future[Any], timeout: float | None = None) -> None:
    """Wait until one of `what` has happened, at most `timeout` seconds."""
    waiting = {asyncio.ensure_future(each.wait()) if isinstance(each, asyncio.Event) else each for each in what}
    try:
        await asyncio.wait(waiting, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in waiting - set(what):
            each.cancel()
