"""Calling a function of the user's: on the event loop or in a thread, within a deadline, for the events that it gives.

The deadline costs nothing for what never waits. Setting and cancelling a timer takes longer than many a reaction does,
so a coroutine takes its first step without one, and gets it when that step ends in waiting for something.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import os
import threading
import time
import types
from collections.abc import AsyncIterable, Awaitable, Callable, Coroutine, Generator, Iterable, Mapping
from collections.abc import Set as AbstractSet
from concurrent.futures import Executor
from dataclasses import dataclass
from types import FrameType
from typing import Any, Final, TypeVar

from pydantic import BaseModel

from choreo import forks
from choreo.envelope import Envelope
from choreo.errors import ReactionTimeout
from choreo.event import Event, codec, declaration
from choreo.logger import get_logger
from choreo.reaction import Reaction

CHILD_CAME_BACK: Final = 70  # the exit code of such a child: EX_SOFTWARE of sysexits.h

# One thing, although Python can iterate over it.
_ONE: Final = (Envelope, BaseModel, Mapping, str, bytes)

T = TypeVar("T")

_logger = get_logger()

GoesOn = Callable[[asyncio.Future[None]], None]


def _nobody_minds(_: asyncio.Future[None]) -> None:
    """Take no note of a thread that goes on."""


@dataclass(slots=True)
class Run:
    """A call in a thread: of which reaction, and from when to when, in times of `time.monotonic`."""

    reaction: Reaction
    began: float
    ended: float | None = None


_runs: dict[int, Run] = {}  # the last one of each thread
_of_a_reaction: set[types.CodeType] = set()  # of functions whose local `reaction` is the one that they are about


def about_a_reaction(function: Callable[..., T]) -> Callable[..., T]:
    """Have `reaction_on` find the local variable `reaction` of `function`."""
    _of_a_reaction.add(function.__code__)
    return function


async def call(
    reaction: Reaction,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    executor: Executor | None,
    goes_on: GoesOn = _nobody_minds,
) -> list[Event]:
    """Return what `function` gives, as `begin` does, when it has it all."""
    given = begin(reaction, function, arguments, executor, goes_on)
    return given if isinstance(given, list) else await given


@about_a_reaction
def begin(
    reaction: Reaction,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    executor: Executor | None,
    goes_on: GoesOn = _nobody_minds,
) -> list[Event] | Awaitable[list[Event]]:
    """Return what `function`, of `reaction`, gives: called in a thread of `executor` or, without one, on the loop.

    That is to be awaited if the function waits for something. Raises ReactionTimeout when it has waited for longer than
    the reaction may, besides what the function raises. A thread cannot be stopped: when nobody waits for it any more,
    `goes_on` is given what is done when it ends, and what comes of it is dropped.
    """
    work = function(*arguments) if executor is None else _threaded(executor, reaction, function, arguments, goes_on)
    if type(work) is not types.CoroutineType:
        work = unfolded(work)
    try:
        awaited = work.send(None)
    except StopIteration as end:
        # Most give nothing or one event: whether it is an async generator is asked of all else.
        if (result := end.value) is None:
            return []
        if type(result) in reaction.emits:
            return [result]
        if isinstance(result, AsyncIterable):
            return _within(reaction, unfolded(result))
        return listed(result)
    return _within(reaction, _rest(work, awaited))


def reaction_on(frame: FrameType | None) -> Reaction | None:
    """Return the reaction for which something runs in `frame`: its function, or the validators of its event."""
    while frame is not None:
        found = frame.f_locals.get("reaction") if frame.f_code in _of_a_reaction else None
        if isinstance(found, Reaction):
            return found
        frame = frame.f_back
    return None


def end_child(reaction: Reaction) -> None:
    """End this process, a child that `reaction` has forked: it must not go on as a second worker."""
    what = "a child that it forked came back from it, and ends here"
    _logger.error("forked child", agent=reaction.agent, reaction=reaction.name, error=what)
    os._exit(CHILD_CAME_BACK)


def in_threads(since: float, until: float) -> list[Reaction]:
    """Return the reactions that were in a thread all the time between two times of `time.monotonic`."""
    runs = [run for run in tuple(_runs.values()) if run.began <= since and (run.ended is None or run.ended >= until)]
    return list({id(run.reaction): run.reaction for run in runs}.values())


def unfinished(agent: str) -> list[tuple[Reaction, float]]:
    """Return the reactions of `agent` that are still in a thread, and for how many seconds."""
    now = time.monotonic()
    runs = [run for run in tuple(_runs.values()) if run.ended is None and run.reaction.agent == agent]
    return [(run.reaction, now - run.began) for run in runs]


def listed(result: Any) -> list[Any]:
    """Return what a reaction has returned as a list of events: none for None, those of whatever can be iterated over.

    The order is part of their ids. A set has none, and gets the order of what is written.
    """
    if result is None:
        return []
    if isinstance(result, Event):
        return [result]
    if isinstance(result, _ONE) or not isinstance(result, list | Iterable):
        return [result]  # no event at all: it is refused as that
    events = [each for each in result if each is not None]
    if isinstance(result, AbstractSet) and all(isinstance(each, Event) for each in events):
        events.sort(key=lambda each: (declaration(each).topic, codec(type(each)).write(each)))
    return events


@about_a_reaction
async def _within(reaction: Reaction, work: Awaitable[Any]) -> list[Event]:
    deadline = asyncio.timeout(reaction.timeout)
    try:
        async with deadline:
            return listed(await work)
    except TimeoutError as error:
        if not deadline.expired():
            raise  # the work's own
        if reaction.in_thread:
            what = "its thread continues, because it cannot be stopped; its result will be ignored"
            _logger.warning("deadline passed", agent=reaction.agent, reaction=reaction.name, next=what)
        raise ReactionTimeout(
            f"reaction {reaction.name!r} of agent {reaction.agent} ran longer than its {reaction.timeout:g} s",
            "make it faster, or raise its timeout=",
        ) from error


async def _rest(work: Coroutine[Any, Any, Any], awaited: Any) -> Any:
    return await unfolded(await _continued(work, awaited))


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
                result: T = end.value
                return result
        else:
            break
    rest: T = yield from work
    return rest


async def unfolded(result: Any) -> Any:
    """Return what `result` comes to: something to be awaited, the events that come one after the other, or itself."""
    if inspect.isawaitable(result):
        result = await result
    return [event async for event in result] if isinstance(result, AsyncIterable) else result


class _Thread:
    """A call in a thread, as both sides see it. Each side writes before it reads, so that one of them always knows."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._begun = self._ended = self._given_up = False
        self._over: asyncio.Future[None] | None = None

    def begin(self) -> bool:
        """Say, in the thread, whether anybody still wants the call."""
        self._begun = True
        return not self._given_up

    def end(self) -> None:
        """Tell the loop, from the thread, that the call is over."""
        self._ended = True
        if self._over is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._tell)

    def give_up(self) -> asyncio.Future[None] | None:
        """Return what is done when the thread ends; None if it has ended, or will not begin any more."""
        self._given_up = True
        if not self._begun:
            return None
        self._over = self._loop.create_future()
        return None if self._ended else self._over

    def _tell(self) -> None:
        if self._over is not None and not self._over.done():
            self._over.set_result(None)


async def _threaded(
    executor: Executor,
    reaction: Reaction,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    goes_on: GoesOn,
) -> Any:
    run = contextvars.copy_context().run
    loop = asyncio.get_running_loop()
    thread = _Thread(loop)
    try:
        result = await loop.run_in_executor(executor, run, _in_thread, thread, reaction, function, arguments)
    except asyncio.CancelledError:
        if (over := thread.give_up()) is not None:
            goes_on(over)
        raise
    return await unfolded(result)


def _in_thread(thread: _Thread, reaction: Reaction, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    if not thread.begin():
        return None
    run = _runs[threading.get_ident()] = Run(reaction, time.monotonic())
    try:
        result = function(*arguments)
        if inspect.isawaitable(result) or isinstance(result, AsyncIterable):
            return result  # for the loop
        return listed(result)  # a generator does its work in the thread too
    except (StopIteration, GeneratorExit) as error:
        # A future cannot carry these two: it would never be done, or end whoever awaits it.
        raise RuntimeError(f"{function.__name__} raised {type(error).__name__}") from error
    finally:
        run.ended = time.monotonic()
        if run.ended - run.began > reaction.timeout:
            seconds = round(run.ended - run.began, 1)
            _logger.warning("late thread ended", agent=reaction.agent, reaction=reaction.name, seconds=seconds)
        if forks.forked:
            end_child(reaction)
        thread.end()
