"""No event has two tries in one process at the same time; a thread that goes on after its deadline keeps its place."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from choreo import Agent, Event, Retry
from choreo.broker.in_process import Host, InProcessSession, connect
from choreo.config.settings import Settings
from choreo.errors import BrokerUnreachable
from choreo.runtime.publisher import Publisher
from choreo.runtime.worker import Worker
from choreo.topology import Names
from tests.waiting import eventually, in_virtual_time

TIMEOUT = 0.3


class Job(Event, topic="underway.job", external=True):
    name: str


class Runs:
    """What runs in threads: how many at once, and at most so far, in all and for one name."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.gate = threading.Event()
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.most = self.most_of_one = 0

    def run(self, job: Job) -> None:
        with self.lock:
            self.begun.append(job.name)
            running = [name for name in set(self.begun) for _ in range(self.begun.count(name) - self.ended.count(name))]
            self.most = max(self.most, len(running))
            self.most_of_one = max(self.most_of_one, running.count(job.name))
        if job.name.startswith("slow"):
            self.gate.wait(30)
        with self.lock:
            self.ended.append(job.name)


class Scene:
    def __init__(self, agent: Agent, concurrency: int = 4) -> None:
        self.host = Host(clock=asyncio.get_running_loop().time)
        self.sessions: list[InProcessSession] = []
        self.worker = Worker([agent], Settings(concurrency=concurrency), self.connect)

    async def connect(self) -> InProcessSession:
        self.sessions.append(await connect(self.host))
        return self.sessions[-1]

    async def publish(self, *names: str) -> None:
        async with Publisher(Settings(), lambda: connect(self.host), source="test", start="") as publisher:
            for name in names:
                await publisher.publish(Job(name=name))

    async def dead(self, agent: str) -> int:
        found = await self.sessions[-1].stats(Names("choreo").dlq(agent))
        return found.ready if found is not None else 0

    @property
    def handled(self) -> int:
        return sum(each.handled for each in self.worker.counters.values())


@asynccontextmanager
async def working(agent: Agent, runs: Runs | None = None, **options: Any) -> AsyncIterator[Scene]:
    scene = Scene(agent, **options)
    running = asyncio.create_task(scene.worker.run())
    await eventually(lambda: scene.worker.ready)
    try:
        yield scene
    finally:
        if runs is not None:
            runs.gate.set()
        scene.worker.abort()
        await running
        scene.host.close()


async def test_a_try_at_once_waits_for_the_thread_of_the_one_before() -> None:
    """The deadline has passed, the thread goes on: four tries, never two at once; the last one is handled."""
    runs = Runs()
    agent = Agent("slow", timeout=TIMEOUT, retry=Retry(on=TimeoutError, attempts=4, immediate=3))
    agent.on(job(runs))
    async with working(agent, runs) as scene:
        await scene.publish("slow")
        await eventually(lambda: scene.worker.counters["slow"].dead or runs.begun)
        await asyncio.sleep(1.5 * TIMEOUT)
        assert runs.begun == ["slow"]
        runs.gate.set()
        await eventually(lambda: scene.handled)
    assert (runs.begun, runs.most_of_one) == (["slow"] * 2, 1)


async def test_a_thread_that_never_ends_costs_tries_and_then_a_dead_letter() -> None:
    """Each try that is due while it runs has failed; the event is not called again beside it."""
    runs = Runs()
    agent = Agent("slow", timeout=0.05, retry=Retry(on=TimeoutError, attempts=4, immediate=3))
    agent.on(job(runs))
    async with working(agent, runs) as scene:
        await scene.publish("slow")
        await eventually(lambda: scene.worker.counters["slow"].dead)
        assert runs.begun == ["slow"]
        assert await scene.dead("slow") == 1


async def test_a_later_try_waits_for_the_thread_of_the_one_before() -> None:
    """It comes back from the broker's delay to the same process."""
    runs = Runs()
    agent = Agent("slow", timeout=2.0, retry=Retry(on=TimeoutError, attempts=3, first="1s", ceiling="1s"))
    agent.on(job(runs))
    async with working(agent, runs) as scene:
        await scene.publish("slow")
        await eventually(lambda: scene.worker.counters["slow"].retried)
        await eventually(lambda: waiting(scene))
        runs.gate.set()
        await eventually(lambda: scene.handled)
    assert (runs.begun, runs.most_of_one) == (["slow"] * 2, 1)


@in_virtual_time
async def test_what_a_lost_session_brings_again_waits_for_what_still_runs() -> None:
    """The broker delivers it anew in the next session, while the reaction of the last one goes on."""
    begun = running = most = 0
    gate = asyncio.Event()
    agent = Agent("slow")

    @agent.on
    async def work(job: Job) -> None:
        nonlocal begun, running, most
        begun, running = begun + 1, running + 1
        most = max(most, running)
        await gate.wait()
        running -= 1

    async with working(agent) as scene:
        await scene.publish("one")
        await eventually(lambda: begun)
        scene.sessions[-1].cut(BrokerUnreachable("the cable"))
        await eventually(lambda: len(scene.sessions) == 2 and scene.worker.ready)
        await eventually(lambda: waiting(scene))
        assert begun == 1
        gate.set()
        await eventually(lambda: scene.handled == 2)
    assert (begun, most) == (2, 1)


async def test_a_thread_that_goes_on_keeps_its_place() -> None:
    """`concurrency` counts what runs: nobody begins beside it while it has not run for twice its deadline."""
    runs = Runs()
    agent = Agent("slow", timeout=TIMEOUT)
    agent.on(job(runs))
    async with working(agent, runs, concurrency=1) as scene:
        await scene.publish("slow", "quick")
        await eventually(lambda: scene.worker.counters["slow"].dead)
        assert runs.begun == ["slow"]
        runs.gate.set()
        await eventually(lambda: scene.handled)
    assert (runs.begun, runs.most) == (["slow", "quick"], 1)


async def test_threads_that_hang_give_their_places_up_in_the_end() -> None:
    """More of them than there are places: after their deadline once more, others run beside them."""
    runs = Runs()
    agent = Agent("slow", timeout=TIMEOUT)
    agent.on(job(runs))
    async with working(agent, runs, concurrency=2) as scene:
        await scene.publish(*(f"slow-{number}" for number in range(5)), *(f"quick-{number}" for number in range(5)))
        await eventually(lambda: (scene.handled, scene.worker.counters["slow"].dead) == (5, 5))
        runs.gate.set()
        await eventually(lambda: scene.worker._pools["slow"].arrived._free == 2)
        assert not scene.worker._pools["slow"].processor.underway


def job(runs: Runs) -> Any:
    def work(job: Job) -> None:
        runs.run(job)

    return work


def waiting(scene: Scene) -> bool:
    (pool,) = scene.worker._pools.values()
    return any(event.waiting for event in pool.processor.underway._events.values())
