"""What one process gets out of a broker: publish, consume, latency and hop, in a namespace that is gone afterwards."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from choreo.agent import Agent
from choreo.config.settings import Settings
from choreo.errors import AccessRefused, ChoreoError, DeadlinePassed
from choreo.event import Event
from choreo.logger import get_logger
from choreo.runtime.publisher import Publisher
from choreo.runtime.worker import Worker
from choreo.topology import Topology
from choreo.transport import Connect, Session

SIZE: Final = 512  # bytes of an event's JSON
WINDOW: Final = 500  # publishes without an answer
RATE: Final = 200.0  # events per second while latency is measured
_MOST_TIMED: Final = 1000  # events of the latency: five seconds, and ten of them beyond p99
_PATIENCE: Final = 5.0  # seconds for the answers that are still to come

_logger = get_logger()


class Order(Event):
    """What every event that is published here says; `note` fills it up to SIZE."""

    order: str
    customer: str = "customer@example.org"
    total: Decimal = Decimal("129.90")
    currency: str = "EUR"
    note: str = ""


class Taken(Order, topic="bench.taken"):
    """Consumed, and nothing follows."""


class Asked(Order, topic="bench.asked"):
    """Consumed, and `Answered` follows."""


class Answered(Event, topic="bench.answered"):
    """What follows."""

    order: str


@dataclass(frozen=True, slots=True)
class Measured:
    """What a workload came to. `cpu` is the process's, in seconds; `took` are seconds from event to answer, sorted."""

    workload: str
    events: int
    seconds: float
    cpu: float | None = None
    took: tuple[float, ...] = ()

    def data(self) -> dict[str, Any]:
        """Return it for a table: events per second, microseconds of CPU per event, milliseconds of latency."""
        return {
            "workload": self.workload,
            "events": self.events,
            "per_second": None if self.took else round(self.events / self.seconds),
            "cpu_us": None if self.cpu is None else round(self.cpu / self.events * 1e6, 1),
            "p50_ms": self._percentile(50),
            "p99_ms": self._percentile(99),
        }

    def _percentile(self, percent: int) -> float | None:
        return round(self.took[len(self.took) * percent // 100] * 1000, 2) if self.took else None


class Meter:
    """Counts events up to `most`, and takes the time from `begin`, or else the first event, to the last."""

    def __init__(self, most: int) -> None:
        self.all = asyncio.Event()
        self.count = 0
        self._most = most
        self._begun: tuple[float, float] | None = None
        self._before = 0  # events that were done when it began
        self._last = (0.0, 0.0)

    def begin(self) -> None:
        """Take the time from now on."""
        self._begun = time.perf_counter(), time.process_time()
        self._before = self.count

    def seen(self) -> None:
        """Count one event."""
        self.count += 1
        self._last = time.perf_counter(), time.process_time()
        if self._begun is None:
            self.begin()
        if self.count == self._most:
            self.all.set()

    def measured(self, workload: str) -> Measured:
        """Return what was measured. Raises DeadlinePassed when too little was done for that."""
        events = self.count - self._before
        if self._begun is None or events < 1:
            raise DeadlinePassed(
                f"{workload}: {self.count} events were done in time, too few to measure",
                "look at the broker, or give it more --seconds",
            )
        seconds, cpu = (last - begun for begun, last in zip(self._begun, self._last, strict=True))
        return Measured(workload, events, seconds, cpu)


class Bench:
    """Measures the broker of `settings`: each workload with at most `events`, and for about `seconds` at most.

    The public worker and publisher do the work, with the user's settings. All that they declare is in `namespace`,
    which nobody else has.
    """

    def __init__(self, settings: Settings, connect: Connect, *, events: int, seconds: float) -> None:
        self.namespace = f"bench-{secrets.token_hex(4)}"
        self._settings = settings.model_copy(update={"namespace": self.namespace})
        self._connect = connect
        self._events = events
        self._seconds = seconds
        self._done = self._answered = Meter(events)
        self._sent: dict[str, float] = {}
        self._took: list[float] = []
        self._taker, self._hopper, self._sink = Agent("taker"), Agent("hopper"), Agent("sink")
        self._react()
        self._topology = Topology.of((self._taker, self._hopper, self._sink), self.namespace)

    async def run(self, report: Callable[[Measured], None]) -> None:
        """Measure, and `report` each workload. Raises what the broker refuses, and DeadlinePassed."""
        async with self._declared(), Publisher(self._settings, self._connect, source="choreo bench") as publisher:
            published = await self._publish(publisher, Taken)
            report(published.measured("publish"))
            report(await self._work_off("consume", self._taker, published.count))
            # Before the hops: their answers are left in the queue of the sink.
            report(await self._latency(publisher))
            published = await self._publish(publisher, Asked)
            report(await self._work_off("hop", self._hopper, published.count))

    def _react(self) -> None:
        """Say what the agents do."""

        @self._taker.on
        async def take(_order: Taken) -> None:
            self._done.seen()

        @self._hopper.on
        async def hop(asked: Asked) -> Answered:
            self._done.seen()
            return Answered(order=asked.order)

        @self._sink.on
        async def arrive(answer: Answered) -> None:
            if (sent := self._sent.pop(answer.order, None)) is not None:  # a second copy does not count
                self._took.append(time.perf_counter() - sent)
                self._answered.seen()

    @asynccontextmanager
    async def _declared(self) -> AsyncIterator[None]:
        """Declare everything; delete it at the end, whatever happened."""
        session = await self._connect()
        try:
            await self._declare(session)
            yield
        except BaseException:
            try:
                await self._remove()
            except AccessRefused:
                pass  # who may not delete could not declare either
            except ChoreoError as error:
                _logger.warning("the benchmark's queues are left behind", namespace=self.namespace, reason=str(error))
            raise
        await self._remove()

    async def _declare(self, session: Session) -> None:
        declaring = asyncio.ensure_future(session.declare(self._topology))
        try:
            await asyncio.shield(declaring)
        except asyncio.CancelledError:
            # A declaration that the broker is still at would outlive its deletion.
            await asyncio.wait({declaring})
            raise
        except AccessRefused as error:
            mine = '"^bench-"'
            way_out = f"the benchmark has a namespace of its own: rabbitmqctl set_permissions USER {mine} {mine} {mine}"
            raise AccessRefused(error.message, way_out) from error
        finally:
            await session.close()

    async def _remove(self) -> None:
        session = await self._connect()
        try:
            await session.remove(self._topology)
        finally:
            await session.close()

    async def _publish(self, publisher: Publisher, kind: type[Order]) -> Meter:
        """Publish events with WINDOW of them outstanding."""
        meter = Meter(self._events)
        numbers = iter(range(self._events))
        meter.begin()
        end = time.perf_counter() + self._seconds

        async def one_after_another() -> None:
            for number in numbers:
                await publisher.publish(order(kind, number))
                meter.seen()
                if time.perf_counter() > end:
                    return

        tasks = [asyncio.create_task(one_after_another()) for _ in range(min(WINDOW, self._events))]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        return meter

    async def _work_off(self, workload: str, agent: Agent, count: int) -> Measured:
        """Have a worker with `agent` take what waits for it."""
        self._done = Meter(count)
        async with self._working(agent) as running:
            await _first(self._done.all, running, self._seconds)
        return self._done.measured(workload)

    async def _latency(self, publisher: Publisher) -> Measured:
        """Publish at a pace, and take the time from just before each publish until its answer reaches a reaction."""
        count = max(min(self._events, _MOST_TIMED, int(self._seconds * RATE)), 1)
        self._done, self._answered = Meter(count), Meter(count)
        loop = asyncio.get_running_loop()
        publishes = []
        async with self._working(self._hopper, self._sink) as running:
            begin = loop.time()
            for number in range(count):
                await asyncio.sleep(begin + number / RATE - loop.time())
                asked = order(Asked, number)
                self._sent[asked.order] = time.perf_counter()
                publishes.append(asyncio.create_task(publisher.publish(asked)))
            await asyncio.gather(*publishes)
            await _first(self._answered.all, running, _PATIENCE)
        if not self._took:
            raise DeadlinePassed("latency: no answer came", "look at the broker")
        return Measured("latency", len(self._took), count / RATE, took=tuple(sorted(self._took)))

    @asynccontextmanager
    async def _working(self, *agents: Agent) -> AsyncIterator[asyncio.Task[bool]]:
        """Run a worker until the end of the block, which begins when it is ready."""
        worker = Worker(agents, self._settings, self._connect)
        ready = asyncio.Event()
        worker.watch(lambda worker: ready.set() if worker.ready else None)
        running = asyncio.create_task(worker.run())
        try:
            await _first(ready, running)
            yield running
            worker.stop()
        except BaseException:
            await _first(ready, running)  # it declares when it starts, see `_declare`
            worker.abort()
            raise
        finally:
            await running


def order(kind: type[Order], number: int) -> Order:
    """Return order `number`, with SIZE bytes of JSON."""
    return kind(order=f"{number:08d}", note=_NOTE)


async def _first(event: asyncio.Event, running: asyncio.Task[bool], timeout: float | None = None) -> None:
    """Wait for `event`, not longer than `running` runs and not longer than `timeout` seconds."""
    waiting = asyncio.create_task(event.wait())
    try:
        await asyncio.wait({waiting, running}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()


_NOTE: Final = "x" * (SIZE - len(Taken(order="00000000").model_dump_json()))
