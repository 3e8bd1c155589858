"""Who opens and closes the session of a publisher."""

from __future__ import annotations

import asyncio

import pytest

from choreo.broker import in_process
from choreo.broker.in_process import Host, InProcessSession
from choreo.config.settings import Settings
from choreo.errors import UsageError
from choreo.event import Event
from choreo.runtime.publisher import Publisher


class Said(Event, topic="test-publisher.said", external=True):
    pass


class Broker:
    """Opens sessions, when it may, and keeps them."""

    def __init__(self) -> None:
        self.sessions: list[InProcessSession] = []
        self.free = asyncio.Event()
        self.asked = asyncio.Event()
        self.free.set()

    async def connect(self) -> InProcessSession:
        self.asked.set()
        await self.free.wait()
        self.sessions.append(await in_process.connect(Host()))
        return self.sessions[-1]

    @property
    def closed(self) -> list[bool]:
        return [session.lost.done() for session in self.sessions]


async def test_last_of_several_tasks_that_leave_closes_the_session() -> None:
    """The one publisher of a program may be entered by each task that uses it."""
    broker = Broker()
    publisher = Publisher(Settings(), broker.connect)
    async with publisher:
        async with publisher:
            pass
        assert broker.closed == [False]
    assert broker.closed == [True]


async def test_publisher_that_is_left_while_it_connects_leaves_nothing_open() -> None:
    """The publish that waited for another session is told so, and the session is closed."""
    broker = Broker()
    async with Publisher(Settings(), broker.connect) as publisher:
        await broker.sessions[0].close()
        broker.free.clear()
        broker.asked.clear()
        waiting = asyncio.create_task(publisher.publish(Said()))
        await broker.asked.wait()
    broker.free.set()
    with pytest.raises(UsageError, match="closed"):
        await waiting
    assert broker.closed == [True, True]


async def test_publisher_that_could_not_be_opened_is_not_open() -> None:
    """Entering it again tries again."""
    broker = Broker()
    failures = [ConnectionError("no")]

    async def connect() -> InProcessSession:
        if failures:
            raise failures.pop()
        return await broker.connect()

    publisher = Publisher(Settings(), connect)
    with pytest.raises(ConnectionError):
        await publisher.__aenter__()
    async with publisher:
        assert broker.closed == [False]
    assert broker.closed == [True]
