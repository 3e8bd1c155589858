"""Nothing is lost: a ledger of 2,000 orders whose worker or broker is killed while they are in flight.

Every order whose publish was confirmed ends: handled by both agents, or as a dead letter with its reason. Some may be
handled twice; each of these is accounted for.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest

from choreo import dead_letter
from choreo.broker_url import BrokerUrl
from choreo.message import Message, Reason
from choreo.rabbit import session as rabbit
from choreo.rabbit.node import Node
from choreo.topology import LEVELS, Names
from choreo.transport import Confirmed, Delivery, Session
from tests.waiting import eventually, until

if TYPE_CHECKING:
    from tests.conftest import Running

Start = Callable[..., "Running"]
T = TypeVar("T")

ORDERS = 2_000
PREFETCH = 100

# Every tenth order fails once and is retried by the broker, every twentieth is a dead letter.
AGENTS = {
    "events": """
from choreo import Event

class Placed(Event, topic="NS.placed", external=True):
    order: int

class Charged(Event, topic="NS.charged"):
    order: int
""",
    "ledger": """
import os

file = os.open(os.environ["LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def write(*words):
    os.write(file, " ".join(map(str, (os.getpid(), *words))).encode() + b"\\n")
""",
    "payment": """
import asyncio
from pathlib import Path

from choreo import Agent, Context, Retry
from agents.events import Charged, Placed
from agents.ledger import write

class Unreachable(Exception):
    pass

agent = Agent("payment", retry=Retry(on=Unreachable, attempts=3, first="1s", ceiling="1s"))

@agent.on
async def charge(placed: Placed, ctx: Context) -> Charged:
    while not Path("go").exists():
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.02)
    write("payment", placed.order, ctx.attempt, ctx.event_id)
    if placed.order % 20 == 7:
        raise ValueError("no such customer")
    if placed.order % 10 == 3 and ctx.attempt == 1:
        raise Unreachable
    return Charged(order=placed.order)
""",
    "shop": """
from choreo import Agent, Context
from agents.events import Charged
from agents.ledger import write

agent = Agent("shop")

@agent.on
async def ship(charged: Charged, ctx: Context) -> None:
    write("shop", charged.order, ctx.attempt, ctx.event_id)
""",
}


@dataclass(frozen=True, slots=True)
class Line:
    """One reaction that began: in which process, to which order, at which attempt, to an event of which id."""

    pid: int
    agent: str
    order: int
    attempt: int
    event_id: str


class Ledger:
    """The agents' own account, the broker's, and what ends a worker of them."""

    def __init__(self, project: Path, start: Start, url: str, namespace: str) -> None:
        self.names = Names(namespace)
        self._project = project
        self._start = start
        self._url = url
        for name, text in AGENTS.items():
            (project / "agents" / f"{name}.py").write_text(text.replace("NS", namespace))
        self._file = project / "ledger"
        self._file.touch()

    def start(self, agent: str) -> Running:
        """Start the worker of one agent and return it when it consumes."""
        environment = {
            "CHOREO_URL": self._url,
            "CHOREO_NAMESPACE": self.names.namespace,
            "CHOREO_PREFETCH": str(PREFETCH),
            "LEDGER": str(self._file),
        }
        running = self._start("run", agent, env=environment)
        running.wait_for('"state": "consuming"')
        return running

    def place(self) -> None:
        """Publish the orders, each confirmed, while the payment agent holds them; then let it go."""

        async def publish(session: Session) -> None:
            results = await asyncio.gather(
                *(
                    session.publish(
                        Message(json.dumps({"order": order}).encode(), message_id=f"order-{order}"),
                        exchange=self.names.events,
                        routing_key=f"{self.names.namespace}.placed",
                        timeout=30,
                    )
                    for order in range(ORDERS)
                )
            )
            assert set(results) == {Confirmed()}

        self.with_session(publish)
        (self._project / "go").touch()

    def lines(self, agent: str) -> list[Line]:
        """Return what an agent has written, or both have."""
        found = []
        for text in self._file.read_text().splitlines():
            pid, name, order, attempt, event_id = text.split()
            if name == agent:
                found.append(Line(int(pid), name, int(order), int(attempt), event_id))
        return found

    def charged(self, count: int) -> bool:
        """Say whether the payment agent has begun at least so many."""
        return len(self.lines("payment")) >= count

    def settle(self, within: float) -> None:
        """Wait until nothing is in flight: no queue holds anything but dead letters, and nothing is unsettled."""
        work = [self.names.queue("payment"), self.names.queue("shop"), *map(self.names.level, range(LEVELS))]

        async def empty(session: Session) -> bool:
            found = [await session.stats(queue) for queue in work]
            return not any(each is None or each.ready for each in found)

        async def wait(session: Session) -> None:
            await eventually(
                lambda: len(self.ended()) == ORDERS,
                within=within,
                what=f"the end of {ORDERS} orders, {len(self.ended())} of them so far",
            )
            await eventually(lambda: empty(session), within=15, what="empty queues")

        self.with_session(wait)

    def ended(self) -> set[int]:
        """Return the orders that need nothing more as far as the agents know."""
        failed = {line.order for line in self.lines("payment") if line.order % 20 == 7}
        return {line.order for line in self.lines("shop")} | failed

    def dead(self) -> list[tuple[int, str]]:
        """Return order and reason of every dead letter."""

        async def read(session: Session) -> list[tuple[int, str]]:
            queue = self.names.dlq("payment")
            found = await session.stats(queue)
            got: list[Delivery] = []
            assert found is not None
            consumer = await session.consume(queue, prefetch=1_000, on_delivery=got.append)
            await eventually(lambda: len(got) == found.ready)
            await consumer.close()
            return [
                (json.loads(each.message.body)["order"], dead_letter.read(each.message, agent="payment").reason)
                for each in got
            ]

        return self.with_session(read)

    def with_session(self, work: Callable[[Session], Awaitable[T]]) -> T:
        async def connected() -> T:
            session = await rabbit.connect([BrokerUrl.parse(self._url)], name="ledger")
            try:
                return await work(session)
            finally:
                await session.close()

        return asyncio.run(connected())


def balance(ledger: Ledger, workers: list[Running], ends: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Compare the ledger with what was placed: confirmed = handled + dead, nothing queued, duplicates accounted for.

    `ends`: how often a worker's session was ended with deliveries in flight.
    """
    ledger.settle(within=60)
    for worker in workers:
        worker.send(signal.SIGTERM)
    assert [worker.wait() for worker in workers] == [0] * len(workers)

    everything = set(range(ORDERS))
    doomed = {order for order in everything if order % 20 == 7}
    payment, shop = ledger.lines("payment"), ledger.lines("shop")
    dead = ledger.dead()
    assert {line.order for line in payment} == everything
    assert {line.order for line in shop} == everything - doomed
    assert {order for order, _ in dead} == doomed
    assert {reason for _, reason in dead} == {Reason.FAILED}
    retried = {line.order for line in payment if line.attempt == 2}
    assert retried == {order for order in everything - doomed if order % 10 == 3}

    again = Counter((line.order, line.attempt) for line in payment)
    duplicates = sum(again.values()) - len(again)
    received_again = len(shop) - len({line.order for line in shop})
    buried_again = len(dead) - len(doomed)
    with capsys.disabled():
        print(
            f" [{ORDERS} placed = {len({line.order for line in shop})} handled + {len(doomed)} dead;"
            f" twice: {duplicates} charged, {received_again} shipped, {buried_again} buried]",
            end="",
        )
    # A worker holds PREFETCH deliveries, and each that was not settled when its session ended is delivered once more.
    # What had been emitted, retried or buried for it by then is a second copy, which may be handled as such.
    assert duplicates <= 2 * PREFETCH * ends
    assert received_again <= duplicates + PREFETCH * ends
    assert buried_again <= duplicates
    # A receiver can tell them: a second copy has the id of the first.
    assert len({(line.order, line.event_id) for line in shop}) == len(everything - doomed)
    assert len({(line.order, line.event_id) for line in payment}) == ORDERS


@pytest.mark.timeout(180)
def test_killed_worker_loses_no_order(
    start_choreo: Start, project: Path, broker_url: str, namespace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """kill -9 of the payment worker, twice, while 2,000 orders are in flight: the next one takes over. What was handled
    twice was begun by a worker that was killed, once, and again by its successor."""
    ledger = Ledger(project, start_choreo, broker_url, namespace)
    payment, shop = ledger.start("payment"), ledger.start("shop")
    ledger.place()
    killed = []
    for handled in (300, 900):
        until(partial(ledger.charged, handled))
        os.kill(payment.pid, signal.SIGKILL)
        payment.wait()
        killed.append(payment.pid)
        assert len(ledger.ended()) < ORDERS, "they were in flight"
        payment = ledger.start("payment")
    balance(ledger, [payment, shop], ends=2, capsys=capsys)
    begun = Counter((line.order, line.attempt, line.pid) for line in ledger.lines("payment"))
    by_survivor = {key: times for key, times in begun.items() if times > 1}
    # Retries can be doubled by a kill between their confirmation and the acknowledgement of the try before.
    assert {attempt for _, attempt, _ in by_survivor} <= {2}
    for order, attempt in {(order, attempt) for order, attempt, _ in begun if attempt == 1}:
        pids = [pid for (one, other, pid) in begun if (one, other) == (order, attempt)]
        assert len(set(pids) - set(killed)) <= 1


@pytest.mark.timeout(240)
@pytest.mark.parametrize("end", [Node.stop, Node.kill], ids=["restarted", "killed"])
def test_restarted_broker_loses_no_order(
    start_choreo: Start,
    project: Path,
    fresh_node: Node,
    namespace: str,
    capsys: pytest.CaptureFixture[str],
    end: Callable[[Node], None],
) -> None:
    """RabbitMQ is stopped, or killed, while 2,000 orders are in flight. The workers come back by themselves within ten
    seconds of its return, and every order ends."""
    ledger = Ledger(project, start_choreo, fresh_node.url, namespace)
    workers = [ledger.start("payment"), ledger.start("shop")]
    fresh_node.flush()
    ledger.place()
    until(partial(ledger.charged, 300))
    end(fresh_node)
    assert len(ledger.ended()) < ORDERS, "they were in flight"
    fresh_node.start_again()
    for worker in workers:
        worker.wait_for('"state": "consuming"', timeout=10, times=2)
        assert worker.process.poll() is None
    balance(ledger, workers, ends=2, capsys=capsys)
