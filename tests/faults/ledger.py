"""The ledger: what was confirmed to a publisher, and where each of it is in the end.

Two agents write a line per reaction: payment, which fails every tenth order once and every twentieth for good, and shop
behind it. What they have not handled is looked for in the broker's queues. Nothing is assumed, everything is counted.
"""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from choreo import dead_letter
from choreo.config.broker_url import BrokerUrl
from choreo.message import Message, Reason
from choreo.rabbit import session as rabbit
from choreo.topology import LEVELS, Names
from choreo.transport import Confirmed, Delivery, Refused, Session
from tests.faults.balance import Balance
from tests.waiting import eventually, until

if TYPE_CHECKING:
    from tests.conftest import Running

Start = Callable[..., "Running"]
T = TypeVar("T")

BOTH: Final = ("payment", "shop")
PREFETCH: Final = 100
BATCH: Final = 2_000  # publishes at once
AT_ONCE: Final = 65_535  # deliveries that are not settled, the most that AMQP can say
# Seconds without a line after which no more is to be expected. A dead-lettering that RabbitMQ has not confirmed to
# itself, such as the end of a delay just before a crash, is repeated by it after 180 s [measured: 3.10.8].
STILL: Final = 200.0
CONSUMING: Final = '"state": "consuming"'
LOST: Final = '"session lost"'

AGENTS: Final = {
    "events": """
from choreo import Event

class Placed(Event, topic="order.placed", external=True):
    order: int

class Charged(Event, topic="order.charged"):
    order: int
""",
    "ledger": """
import asyncio
import os
from pathlib import Path

file = os.open("ledger", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

async def pace(agent):
    while not Path(f"go-{agent}").exists():
        await asyncio.sleep(0.01)
    await asyncio.sleep(float(os.environ[f"PACE_{agent.upper()}"]))

def write(*words):
    os.write(file, " ".join(map(str, (os.getpid(), *words))).encode() + b"\\n")
""",
    "payment": """
from choreo import Agent, Context, Retry
from agents.events import Charged, Placed
from agents.ledger import pace, write
from tests.faults import points

class Unreachable(Exception):
    pass

points.watch()
agent = Agent("payment", retry=Retry(on=Unreachable, attempts=3, first="1s", ceiling="1s"))

@agent.on
async def charge(placed: Placed, ctx: Context) -> Charged:
    await pace("payment")
    points.reached(points.BEGUN)
    write("payment", placed.order, ctx.attempt, ctx.event_id)
    points.reached(points.EFFECT)
    if placed.order % 20 == 7:
        raise ValueError("no such customer")
    if placed.order % 10 == 3 and ctx.attempt == 1:
        raise Unreachable
    return Charged(order=placed.order)
""",
    "shop": """
from choreo import Agent, Context
from agents.events import Charged
from agents.ledger import pace, write

agent = Agent("shop")

@agent.on
async def ship(charged: Charged, ctx: Context) -> None:
    await pace("shop")
    write("shop", charged.order, ctx.attempt, ctx.event_id)
""",
}


def is_doomed(order: int) -> bool:
    """Say whether payment fails `order` for good."""
    return order % 20 == 7


def most_repeated(sessions: int) -> int:
    """Return how much may come again when both agents lose so many sessions, each with all that it may hold.

    What payment held is charged again, and what came of that is at the shop twice: as its copy, and as what the shop
    held itself. Of what was held, one in twenty is doomed, and is a dead letter again.
    """
    return sessions * (3 * PREFETCH + PREFETCH // 20)


def tries(agent: str, order: int) -> int:
    """Return how often the reaction of `agent` to `order` has to begin when nothing goes wrong."""
    return 2 if agent == "payment" and order % 10 == 3 else 1


@dataclass(frozen=True, slots=True)
class Line:
    """One reaction that had its effect: in which process, of whom, on which order and attempt, event of which id."""

    pid: int
    agent: str
    order: int
    attempt: int
    event_id: str


@dataclass(slots=True)
class Found:
    """What a queue holds: the orders, with the reason of each that is a dead letter."""

    orders: list[int] = field(default_factory=list)
    reasons: set[str] = field(default_factory=set)


class Ledger:
    """Agents in a project of their own, the orders placed with them, and the account of what became of those.

    `pace`: seconds that a reaction of payment and of shop takes.
    """

    def __init__(
        self, project: Path, start: Start, url: str, namespace: str, *, pace: tuple[float, float] = (0.02, 0.0)
    ) -> None:
        self.names = Names(namespace)
        self.project = project
        self.workers: list[Running] = []
        self._start = start
        self._url = url
        self._pace = pace
        self._placed = 0
        self._confirmed: set[int] = set()
        self._unknown: set[int] = set()
        for name, text in AGENTS.items():
            (project / "agents" / f"{name}.py").write_text(text)
        self._file = project / "ledger"
        self._file.touch()
        self._read = 0  # bytes of it
        self._lines: list[Line] = []

    def start(self, *agents: str, url: str = "", processes: int = 1, **settings: str) -> Running:
        """Start a worker, and return it when it consumes; `url` is its way to the broker, if it has one of its own."""
        environment = {
            "CHOREO_URL": url or self._url,
            "CHOREO_NAMESPACE": self.names.namespace,
            "CHOREO_PREFETCH": str(PREFETCH),
            "PACE_PAYMENT": str(self._pace[0]),
            "PACE_SHOP": str(self._pace[1]),
        }
        options = ["--processes", str(processes)] if processes > 1 else []
        worker = self._start("run", *agents, *options, cwd=self.project, env=environment | settings)
        self.workers.append(worker)
        worker.wait_for(CONSUMING, times=processes)
        return worker

    def stop(self, worker: Running) -> int:
        """End `worker` as systemd would, and return its exit code: 0 if it has finished what it had begun."""
        worker.send(signal.SIGTERM)
        return self.ended(worker)

    def ended(self, worker: Running) -> int:
        """Wait for the end of `worker`, however it comes, and return its exit code."""
        self.workers.remove(worker)
        return worker.wait(45)

    def go(self, *agents: str) -> None:
        """Let the reactions go on, of both agents if none is named."""
        for agent in agents or BOTH:
            (self.project / f"go-{agent}").touch()

    def hold(self, *agents: str) -> None:
        """Have the reactions wait before their effect."""
        for agent in agents or BOTH:
            (self.project / f"go-{agent}").unlink()

    def place(self, count: int, *, timeout: float = 30) -> list[float]:
        """Publish so many more orders, and return how many seconds each waited for its answer, at most `timeout`."""
        orders = range(self._placed, self._placed + count)
        self._placed += count
        return self.with_session(lambda session: self._publish(session, orders, timeout))

    def lines(self, agent: str) -> list[Line]:
        """Return what an agent has written so far."""
        with self._file.open("rb") as file:
            file.seek(self._read)
            whole, end, _ = file.read().rpartition(b"\n")
        self._read += len(whole + end)
        for text in whole.decode().splitlines():
            pid, name, order, attempt, event_id = text.split()
            self._lines.append(Line(int(pid), name, int(order), int(attempt), event_id))
        return [line for line in self._lines if line.agent == agent]

    def goes_on(self, agent: str, count: int, *, within: float = 30) -> None:
        """Wait until `agent` has had so many more effects."""
        before = len(self.lines(agent))
        until(lambda: len(self.lines(agent)) >= before + count, within=within, what=f"{count} more effects of {agent}")

    def in_flight(self) -> int:
        """Return how many confirmed orders have not ended, as far as the agents know."""
        failed = {line.order for line in self.lines("payment") if is_doomed(line.order)}
        return len(self._confirmed - failed - {line.order for line in self.lines("shop")})

    def settle(self, *, within: float = 3_600) -> Balance:
        """Wait until nothing is in flight or nothing moves any more; stop the workers, and draw the balance."""
        moved, seen = time.monotonic(), len(self._lines)

        def over() -> bool:
            nonlocal moved, seen
            if not self.in_flight():
                return True
            if len(self._lines) != seen:
                moved, seen = time.monotonic(), len(self._lines)
            return time.monotonic() - moved > STILL

        until(over, within=within, what=f"the end of all orders, {self.in_flight()} in flight")
        self.with_session(self._wait_for_copies)
        codes = [self.stop(worker) for worker in list(self.workers)]
        assert codes == [0] * len(codes), "a worker did not finish what it had begun"
        return self.balance()

    def balance(self) -> Balance:
        """Count where the confirmed orders are. Nothing may consume meanwhile."""
        work, delayed, dead = self.with_session(self._look)
        shipped = self.lines("shop")
        handled = {line.order for line in shipped} & self._confirmed
        buried = set(dead.orders) & self._confirmed
        queued = set(work.orders) & self._confirmed - handled - buried
        later = set(delayed.orders) & self._confirmed - handled - buried - queued
        astray = {order for order in handled if is_doomed(order)} | {order for order in buried if not is_doomed(order)}
        effects = Counter((line.agent, line.order) for line in (*self.lines("payment"), *shipped))
        again = sum(max(0, count - tries(*which)) for which, count in effects.items())
        ids = Counter(
            agent + str(order) for agent, order, _ in {(at.agent, at.order, at.event_id) for at in self._lines}
        )
        return Balance(
            confirmed=len(self._confirmed),
            handled=len(handled),
            queued=len(queued),
            delayed=len(later),
            dead=len(buried - handled),
            astray=len(astray) + len(dead.reasons - {Reason.FAILED}) + sum(count > 1 for count in ids.values()),
            duplicated=again + len(dead.orders) - len(set(dead.orders)),
            unknown=len(self._unknown),
            missing=tuple(sorted(self._confirmed - handled - buried - queued - later)),
        )

    def with_session(self, work: Callable[[Session], Awaitable[T]]) -> T:
        """Do `work` in a session with the broker that has nothing between."""

        async def connected() -> T:
            session = await rabbit.connect([BrokerUrl.parse(self._url)], name="ledger")
            try:
                return await work(session)
            finally:
                await session.close()

        return asyncio.run(connected())

    async def _publish(self, session: Session, orders: range, timeout: float) -> list[float]:
        async def publish(order: int) -> float:
            began = time.monotonic()
            result = await session.publish(
                Message(json.dumps({"order": order}).encode(), message_id=f"order-{order}"),
                exchange=self.names.events,
                routing_key="order.placed",
                timeout=timeout,
            )
            assert not isinstance(result, Refused), result
            (self._confirmed if isinstance(result, Confirmed) else self._unknown).add(order)
            return time.monotonic() - began

        waited: list[float] = []
        for first in range(orders.start, orders.stop, BATCH):
            batch = range(first, min(first + BATCH, orders.stop))
            waited += await asyncio.gather(*map(publish, batch))
        return waited

    async def _wait_for_copies(self, session: Session) -> None:
        """Wait a moment for what is in flight besides the first copy of each order; it is a duplicate, or a loss."""
        deadline = time.monotonic() + 5

        async def empty() -> bool:
            found = [await session.stats(queue) for queue in (*self._work(), *self._levels())]
            return time.monotonic() > deadline or not any(each.ready for each in found if each is not None)

        await eventually(empty, within=60)

    async def _look(self, session: Session) -> tuple[Found, Found, Found]:
        async def inside(queues: Iterator[str]) -> Found:
            found = Found()
            for queue in queues:
                for delivery in await _contents(session, queue):
                    found.orders.append(json.loads(delivery.message.body)["order"])
                    if queue == self.names.dlq("payment"):
                        found.reasons.add(dead_letter.read(delivery.message, agent="payment").reason)
            return found

        dead = map(self.names.dlq, BOTH)
        return await inside(self._work()), await inside(self._levels()), await inside(dead)

    def _work(self) -> Iterator[str]:
        return chain(map(self.names.queue, BOTH), map(self.names.retries, BOTH))

    def _levels(self) -> Iterator[str]:
        return chain(map(self.names.level, range(LEVELS)), [self.names.due])


async def _contents(session: Session, queue: str) -> list[Delivery]:
    """Read everything in `queue` and give it back."""
    found = await session.stats(queue)
    got: list[Delivery] = []
    if found is not None and found.ready:
        consumer = await session.consume(queue, prefetch=AT_ONCE, on_delivery=got.append)
        await eventually(lambda: len(got) >= found.ready, within=60, what=f"{found.ready} messages of {queue}")
        await consumer.close()
    return got


def said(worker: Running, text: str, *, times: int = 1) -> float:
    """Wait until a log line with `text` was written so many times; return when the last one was, as `time.time`."""
    line = json.loads(worker.wait_for(text, times=times))
    return datetime.fromisoformat(line["timestamp"]).timestamp()


def times_said(worker: Running, text: str) -> int:
    """Return how often a log line with `text` was written so far."""
    return sum(text in line for line in list(worker.stderr))
