"""An agent's lifespan, entered and left within bounds, and both in one task, as context managers may want it."""

from __future__ import annotations

import asyncio
import contextlib
import traceback
from collections.abc import Awaitable, Callable
from types import FrameType, TracebackType
from typing import Any, Final

from choreo import frames
from choreo.agent import Agent
from choreo.errors import ChoreoError, DeadlinePassed, DeclarationError, InternalError, LifespanFailed
from choreo.logger import get_logger
from choreo.observe.logs import shown
from choreo.runtime.tasks import owned

START_TIMEOUT: Final = 300.0  # seconds
_FIRST_WORD: Final = 5.0  # seconds until a lifespan that has not begun is spoken of; doubled each time

_logger = get_logger()


class StoppedError(Exception):
    """The worker was told to stop before the lifespan had begun."""


async def enter(
    stack: contextlib.AsyncExitStack, agent: Agent, stopping: asyncio.Event, leave_by: Callable[[], float]
) -> Any:
    """Enter the lifespan of `agent`, if it has one, and leave it with `stack`; return what it yields.

    It has five minutes to begin, and until `leave_by` (a time of the loop) to end; what hangs is said and cancelled.
    Raises StoppedError, DeadlinePassed, DeclarationError, and whatever the lifespan raises.
    """
    if agent.lifespan is None:
        return None
    manager = agent.lifespan()
    if not hasattr(manager, "__aenter__"):
        raise DeclarationError(
            f"agent {agent.name} ({agent.where}): its lifespan returned an object of type {type(manager).__name__},"
            " which is not an asynchronous context manager",
            "write @asynccontextmanager over an async def with one yield",
        )
    resources = await _begun(manager, agent, stopping)

    async def leave(
        kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return await _leave(agent, leave_by(), manager.__aexit__(kind, error, trace))

    stack.push_async_exit(leave)
    return resources


async def _leave(agent: Agent, leave_by: float, leaving: Awaitable[bool | None]) -> bool | None:
    limit = asyncio.timeout_at(leave_by)
    try:
        async with limit:
            return await leaving
    except TimeoutError:
        if not limit.expired():
            raise  # the lifespan's own
        _logger.error("lifespan hangs", agent=agent.name, where="at its end", next="it is cut off")  # noqa: TRY400
        return None


def agent_on(frame: FrameType | None) -> Agent | None:
    """Return the agent whose lifespan begins in `frame` or in one that it was called from."""
    while frame is not None:
        if frame.f_code is _begun.__code__:
            found: Agent = frame.f_locals["agent"]
            return found
        frame = frame.f_back
    return None


def failure(error: BaseException) -> LifespanFailed | None:
    """Return what to say of `error` if a lifespan has raised it, after a line in the log; None for any other."""
    if isinstance(error, ChoreoError):
        return None  # it says already what it means
    for frame, _ in traceback.walk_tb(error.__traceback__):
        agent = frame.f_locals.get("agent")
        if frame.f_code not in (enter.__code__, _leave.__code__) or not isinstance(agent, Agent):
            continue
        when = "at its end" if frame.f_code is _leave.__code__ else "before its yield"
        place = frames.report_of(error)
        _logger.error("lifespan failed", agent=agent.name, when=when, error=shown(error), **place)
        where = f" ({place['where']})" if "where" in place else ""
        return LifespanFailed(
            f"the lifespan of agent {agent.name} failed {when}{where}: {shown(error)}",
            'the log line "lifespan failed" has the traceback',
        )
    return None


async def _begun(manager: contextlib.AbstractAsyncContextManager[Any], agent: Agent, stopping: asyncio.Event) -> Any:
    limit = asyncio.timeout(START_TIMEOUT)
    failures = list[BaseException]()

    def failed(_: str, error: BaseException) -> None:  # nobody would hear that the worker is to stop
        failures.append(error)
        limit.reschedule(asyncio.get_running_loop().time())

    try:
        async with limit:
            watch = owned(_watch(agent, stopping, limit), f"watch over the lifespan of {agent.name}", failed)
            try:
                return await manager.__aenter__()
            finally:
                watch.cancel()
    except TimeoutError as error:
        if not limit.expired():
            raise  # the lifespan's own
        if failures:
            raise InternalError(f"the watch over the lifespan of agent {agent.name} has failed") from failures[0]
        if stopping.is_set():
            raise StoppedError from error
        raise DeadlinePassed(
            f"the lifespan of agent {agent.name} has not begun within {START_TIMEOUT:g} s",
            "find out what it waits for; put slow work after its yield",
        ) from error


async def _watch(agent: Agent, stopping: asyncio.Event, limit: asyncio.Timeout) -> None:
    """Say again and again who is waited for, and end the waiting when the worker is to stop."""
    loop = asyncio.get_running_loop()
    began, pause = loop.time(), _FIRST_WORD
    while True:
        try:
            async with asyncio.timeout(pause):
                await stopping.wait()
        except TimeoutError:
            seconds = round(loop.time() - began)
            _logger.warning("lifespan hangs", agent=agent.name, where="before its yield", seconds=seconds)
            pause *= 2
        else:
            limit.reschedule(loop.time())
            return
