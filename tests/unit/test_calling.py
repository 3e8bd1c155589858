"""Calling a function of the user's: what it may give, in which form, and when its time is up."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from choreo.agent import Agent
from choreo.envelope import open_envelope
from choreo.errors import ReactionTimeout
from choreo.event import Event
from choreo.message import Message
from choreo.runtime.calling import call


class Asked(Event, topic="test-calling.asked"):
    pass


class Said(Event, topic="test-calling.said", terminal=True):
    number: int = 0


agent = Agent("caller")
ONE, MANY = Said(number=1), [Said(number=1), Said(number=2)]


@agent.on(timeout=0.05)
async def patient(event: Asked) -> Said | None: ...


(REACTION,) = agent.reactions


async def nothing() -> None: ...


async def one() -> Said:
    return ONE


async def one_later() -> Said:
    await asyncio.sleep(0)
    return ONE


async def many() -> list[Said]:
    return MANY


async def yielding() -> AsyncIterator[Said]:
    for each in MANY:
        await asyncio.sleep(0)
        yield each


async def returning_an_iterator() -> AsyncIterator[Said]:
    return yielding()


def in_thread() -> Said:
    return ONE


def generating() -> Iterator[Said]:
    yield from MANY


def returning_a_coroutine() -> Coroutine[Any, Any, Said]:
    return one_later()


@pytest.mark.parametrize(
    ("function", "events"),
    [(nothing, []), (one, [ONE]), (one_later, [ONE]), (many, MANY), (yielding, MANY), (returning_an_iterator, MANY)],
)
async def test_on_the_loop(function: Callable[[], Any], events: list[Event]) -> None:
    assert await call(REACTION, function, (), None) == events


@pytest.mark.parametrize(
    ("function", "events"), [(in_thread, [ONE]), (generating, MANY), (returning_a_coroutine, [ONE])]
)
async def test_in_a_thread(function: Callable[[], Any], events: list[Event]) -> None:
    with ThreadPoolExecutor(1) as executor:
        assert await call(REACTION, function, (), executor) == events


async def test_no_timer_for_what_never_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cost is why calling is done by hand."""
    loop = asyncio.get_running_loop()
    timers: list[float] = []
    call_at = loop.call_at

    def noted(when: float, *args: Any, **options: Any) -> asyncio.TimerHandle:
        timers.append(when)
        return call_at(when, *args, **options)

    monkeypatch.setattr(loop, "call_at", noted)
    await call(REACTION, one, (), None)
    assert timers == []
    await call(REACTION, one_later, (), None)
    assert len(timers) == 1


async def test_one_that_waits_too_long_is_cancelled_and_named() -> None:
    ended: list[str] = []

    async def hangs() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cleaned up")

    with pytest.raises(ReactionTimeout, match=r"'patient' of agent caller ran longer than its 0\.05 s"):
        await call(REACTION, hangs, (), None)
    assert ended == ["cleaned up"]


async def test_what_it_returns_is_part_of_its_time() -> None:
    """One deadline for the coroutine and for the events that come one by one out of what it returns."""

    async def slowly() -> AsyncIterator[Said]:
        await asyncio.sleep(0.04)
        yield ONE

    async def slow() -> AsyncIterator[Said]:
        await asyncio.sleep(0.03)
        return slowly()

    with pytest.raises(ReactionTimeout):
        await call(REACTION, slow, (), None)


async def test_envelope_that_is_returned_is_one_thing() -> None:
    """Though it is a tuple: what its reaction did wrong is told of the envelope, not of its fields."""
    envelope: Any = open_envelope(Message(b"{}"), "test-calling.asked")

    async def confused() -> Any:
        return envelope

    assert await call(REACTION, confused, (), None) == [envelope]


async def test_timeout_of_its_own_is_its_own() -> None:
    async def impatient() -> None:
        async with asyncio.timeout(0.001):
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError) as caught:
        await call(REACTION, impatient, (), None)
    assert not isinstance(caught.value, ReactionTimeout)


@pytest.mark.parametrize("waits", [False, True])
async def test_what_it_raises_arrives(waits: bool) -> None:
    async def fails() -> None:
        if waits:
            await asyncio.sleep(0)
        raise LookupError("no such order")

    with pytest.raises(LookupError, match="no such order"):
        await call(REACTION, fails, (), None)


async def test_cancellation_in_its_first_wait_is_its_to_handle() -> None:
    """It may clean up with waits of its own, or go on."""
    steps: list[str] = []

    async def stubborn() -> Said:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            steps.append("cleaned up")
        return ONE

    task = asyncio.create_task(call(REACTION, stubborn, (), None))
    await asyncio.sleep(0)
    task.cancel()
    assert await task == [ONE]
    assert steps == ["cleaned up"]


async def test_first_step_sees_task_and_context() -> None:
    variable = contextvars.ContextVar("variable", default="")
    seen: list[object] = []

    async def looks() -> None:
        seen.extend((asyncio.current_task(), variable.get()))
        await asyncio.sleep(0)
        seen.extend((asyncio.current_task(), variable.get()))

    variable.set("set")
    await call(REACTION, looks, (), None)
    assert seen == [asyncio.current_task(), "set"] * 2
