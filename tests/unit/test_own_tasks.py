"""The worker's own tasks: whichever of them fails, the worker works on or has ended loudly, and never looks alive."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import structlog

from choreo.agent import Agent
from choreo.broker.in_process import Host, InProcessSession, connect
from choreo.config.settings import Settings
from choreo.errors import BrokerUnreachable
from choreo.event import Event
from choreo.observe.systemd import Notifier
from choreo.runtime import service
from choreo.runtime.publisher import Publisher
from choreo.runtime.worker import State, Worker
from choreo.testing import Rehearsal
from tests.waiting import in_virtual_time


class Placed(Event, topic="own-tasks.placed", external=True):
    order: int


class Boom(Exception):
    """What no task expects."""


class Array:
    """As numpy's arrays, tensors and SQL expressions do: `==` gives no truth value."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> Any:
        return Array(other)

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        raise ValueError("the truth value of an array is ambiguous")


class Alike:
    """Equal to everything."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


variable: contextvars.ContextVar[object] = contextvars.ContextVar("variable")


@pytest.mark.parametrize("make", [Array, list, lambda _: Alike()], ids=["array", "list", "alike"])
@pytest.mark.parametrize("before", [True, False], ids=["set before", "new"])
def test_what_a_reaction_leaves_in_its_context_costs_no_place_and_reaches_nobody(
    make: Callable[[Any], object], before: bool
) -> None:
    """Whatever `==` says of it: each delivery begins with the context that the worker had."""
    agent, seen = Agent("shop"), list[object]()

    @agent.on
    async def work(placed: Placed) -> None:
        seen.append(variable.get(None))
        variable.set(make([]))

    async def scenario(rehearsal: Rehearsal) -> object:
        first = make([]) if before else None
        if before:
            variable.set(first)
        await rehearsal.start(agent)
        for order in range(60):
            await rehearsal.publish(Placed(order=order))
        await rehearsal.settled(within="1h")
        return first

    first = Rehearsal(settings=Settings(concurrency=4, prefetch=10)).run(scenario)
    assert len(seen) == 60
    assert all(each is first for each in seen)


PLACES = 2
WAITS, TOGETHER = 0, 1  # orders whose reactions wait: for the test, and for each other


class Scene:
    """A worker with everything that goes on beside it, and what it has handled."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.host = Host(clock=self.loop.time)
        self.sessions: list[InProcessSession] = []
        self.handled: list[int] = []
        self.gate = asyncio.Event()
        self.away = False
        self.worker = Worker(
            [self.agent("payment"), self.agent("shop", lifespan=self.lifespan)],
            Settings(concurrency=PLACES, prefetch=PLACES, drain=5.0),
            self.connect,
            look_every=1.0,
        )
        self.before = asyncio.all_tasks()
        self.running = asyncio.create_task(self.run(), name="the worker itself")

    async def run(self) -> None:
        notifier = Notifier("/nonexistent", watchdog_interval=1.0)
        async with service.watchdog(notifier, self.worker.fail):
            await self.worker.run()

    def agent(self, name: str, **options: Any) -> Agent:
        agent, together = Agent(name, **options), asyncio.Barrier(PLACES)

        @agent.on
        async def work(placed: Placed) -> None:
            if placed.order == WAITS:
                await self.gate.wait()
            elif placed.order == TOGETHER:
                await together.wait()
            self.handled.append(placed.order)

        return agent

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        if self.away:
            await asyncio.sleep(30)
        yield

    async def connect(self) -> InProcessSession:
        if self.away:
            raise BrokerUnreachable("away")
        self.sessions.append(await connect(self.host))
        return self.sessions[-1]

    async def publish(self, order: int) -> None:
        async with Publisher(Settings(), lambda: connect(self.host), source="test", start="") as publisher:
            await publisher.publish(Placed(order=order))

    async def reached(self, state: State) -> None:
        there = asyncio.Event()
        self.worker.watch(lambda worker: there.set() if worker.state is state else None)
        if self.worker.state is not state:
            await there.wait()

    def tasks(self) -> dict[str, list[asyncio.Task[Any]]]:
        """Everything that runs and is not the test's, by kind: what it is called, or else does."""
        kinds: dict[str, list[asyncio.Task[Any]]] = {}
        for task in asyncio.all_tasks() - self.before:
            kind = task.get_name().rstrip("0123456789")
            does: Any = task.get_coro()
            kinds.setdefault(does.__qualname__ if kind == "Task-" else kind, []).append(task)
        return kinds

    async def works(self) -> bool:
        """Say whether all places of both agents handle what is published now, within two minutes."""
        self.away = False
        self.gate.set()
        for _ in range(PLACES):
            await self.publish(TOGETHER)
        for _ in range(120):
            if self.handled.count(TOGETHER) >= 2 * PLACES:
                return True
            await asyncio.sleep(1)
        return False

    async def ended_loudly(self) -> bool:
        """Say whether the worker has ended by an exception, within the drain time."""
        self.gate.set()
        await asyncio.wait((self.running,), timeout=30)
        return self.running.done() and not self.running.cancelled() and self.running.exception() is not None

    async def close(self) -> None:
        self.worker.abort()
        await asyncio.wait((self.running,))
        if not self.running.cancelled():
            self.running.exception()
        self.host.close()


async def idle(scene: Scene) -> None:
    """Consuming, with as many tasks as carry deliveries."""
    await scene.reached(State.CONSUMING)
    for _ in range(PLACES):
        await scene.publish(TOGETHER)
    await asyncio.sleep(3.5)
    assert len(scene.handled) == 2 * PLACES
    scene.handled.clear()


async def busy(scene: Scene) -> None:
    await idle(scene)
    for order in (WAITS, 2, WAITS, 2, WAITS):
        await scene.publish(order)
    await asyncio.sleep(0.5)


async def suspicious(scene: Scene) -> None:
    """A delivery that has come back twice runs alone, and others wait for it."""
    await idle(scene)
    for _ in range(3):
        await scene.publish(WAITS)
        await asyncio.sleep(0.01)
        scene.sessions[-1].cut(BrokerUnreachable("the cable"))
        await asyncio.sleep(5)


async def without_broker(scene: Scene) -> None:
    await idle(scene)
    scene.away = True
    scene.sessions[-1].cut(BrokerUnreachable("the cable"))
    await asyncio.sleep(10)


async def coming_back(scene: Scene) -> None:
    await without_broker(scene)
    scene.away = False
    await scene.reached(State.CONSUMING)


async def starting(scene: Scene) -> None:
    scene.away = True
    await asyncio.sleep(3)


async def draining(scene: Scene) -> None:
    await busy(scene)
    scene.worker.stop()
    await asyncio.sleep(1)


def fail(task: asyncio.Task[Any]) -> bool:
    """Let what `task` waits for raise. False: it waits for another task, which is there as well."""
    waits_for = task._fut_waiter  # type: ignore[attr-defined]
    if waits_for is None or isinstance(waits_for, asyncio.Task) or waits_for.done():
        return False
    waits_for.set_exception(Boom("injected"))
    return True


@pytest.mark.parametrize("reach", [idle, busy, suspicious, without_broker, coming_back, starting, draining])
@in_virtual_time
async def test_no_failure_of_any_task_leaves_a_worker_that_only_looks_alive(
    reach: Callable[[Scene], Awaitable[None]],
) -> None:
    """All tasks of one kind fail, in each situation, and then those of the next kind."""
    left, broken = {""}, set[str]()
    with structlog.testing.capture_logs():
        while left:
            scene = Scene()
            await reach(scene)
            kinds = scene.tasks()
            left = kinds.keys() - broken
            if left:
                kind = min(left)
                broken.add(kind)
                if sum(fail(task) for task in kinds[kind]):
                    good = reach is draining and await ended(scene)
                    assert good or await scene.ended_loudly() or await scene.works(), kind
            await scene.close()
    assert {"the worker itself"} < broken


async def ended(scene: Scene) -> bool:
    await asyncio.wait((scene.running,), timeout=30)
    return scene.running.done()
