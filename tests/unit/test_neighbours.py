"""What becomes of one delivery costs those beside it and behind it nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from choreo import Agent, Event, Retry
from choreo.broker.in_process import Host, InProcessSession, connect
from choreo.config.settings import Settings
from choreo.runtime.publisher import Publisher
from choreo.runtime.worker import Worker
from choreo.topology import Names
from choreo.transport import Publication
from tests.waiting import eventually, in_virtual_time


class Job(Event, topic="neighbours.job", external=True):
    name: str


class Busy(Exception):
    """What policies below name."""


class Answers:
    """A session in which publishes to some exchanges have no answer."""

    def __init__(self, session: InProcessSession, silent: set[str]) -> None:
        self._session = session
        self._silent = silent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def publish(self, *args: Any, exchange: str, **options: Any) -> Awaitable[Publication]:
        if exchange in self._silent:
            return asyncio.get_running_loop().create_future()
        return self._session.publish(*args, exchange=exchange, **options)


class Scene:
    def __init__(self, agent: Agent, silent: set[str], **settings: Any) -> None:
        self.host = Host(clock=asyncio.get_running_loop().time)
        self.silent = silent
        self.worker = Worker([agent], Settings(**settings), self.connect)

    async def connect(self) -> Any:
        return Answers(await connect(self.host), self.silent)

    async def publish(self, *names: str) -> None:
        async with Publisher(Settings(), lambda: connect(self.host), source="test", start="") as publisher:
            for name in names:
                await publisher.publish(Job(name=name))


@asynccontextmanager
async def working(agent: Agent, *silent: str, **settings: Any) -> AsyncIterator[Scene]:
    scene = Scene(agent, set(silent), **settings)
    running = asyncio.create_task(scene.worker.run())
    await eventually(lambda: scene.worker.ready)
    try:
        yield scene
    finally:
        scene.worker.abort()
        await running
        scene.host.close()


@pytest.mark.parametrize("prefetch", [1, 8])
@in_virtual_time
async def test_a_retry_runs_beside_as_many_as_wait_for_the_broker(prefetch: int) -> None:
    """All that may be held of the queue are dead letters that the broker does not answer: what comes back from a delay
    has a share of its own, and whoever runs it."""
    agent = Agent("neighbours")
    begun: list[str] = []

    @agent.on(retry=Retry(on=Busy, attempts=3, first="1s", ceiling="1s"))
    async def work(job: Job) -> None:
        begun.append(job.name)
        if job.name == "again" and begun.count("again") == 1:
            raise Busy
        if job.name != "again":
            raise ValueError

    async with working(agent, Names().dead, prefetch=prefetch, concurrency=1) as scene:
        await scene.publish("again", *(f"dead {number}" for number in range(prefetch)))
        await asyncio.sleep(10)
        assert scene.worker.counters["neighbours"].handled == 1, begun
