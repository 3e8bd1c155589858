"""A stream of numbered events towards one agent, published while things break, and the account of it.

Each event is published once, under an id of its own. What the broker confirmed must end: handled, or a dead letter.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Self

import choreo
from choreo import dead_letter
from choreo.config.broker_url import BrokerUrl
from choreo.errors import ChoreoError
from choreo.message import Message
from choreo.rabbit import session as rabbit
from choreo.topology import LEVELS, Names
from choreo.transport import Delivery, Session
from tests.waiting import eventually

if TYPE_CHECKING:
    from tests.conftest import Running

IN_FLIGHT = 200  # events that may wait for their confirmation at once
STEADY = 2.0  # seconds without a pause longer than PAUSE: the stream flows
PAUSE = 1.0  # seconds

# While a file named hold is there, every reaction waits; while one named fail is there, every reaction raises.
DESK = """
import asyncio, os, time
from pathlib import Path

from choreo import Agent, Event

class Asked(Event, topic="NS.asked", external=True):
    number: int

agent = Agent("desk")
file = os.open("desk", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

@agent.on
async def answer(asked: Asked) -> None:
    while Path("hold").exists():
        await asyncio.sleep(0.01)
    if Path("fail").exists():
        raise ValueError("told to")
    os.write(file, f"{asked.number} {time.monotonic()}\\n".encode())
"""


@dataclass(frozen=True, slots=True)
class Account:
    """What became of the events that were confirmed."""

    confirmed: int
    lost: int
    duplicated: int
    dead: Counter[str]


class Stream:
    """The agent desk in `project`, and events numbered from 0 that are published to it."""

    def __init__(self, project: Path, start: Callable[..., Running], url: str, namespace: str) -> None:
        self.names = Names(namespace)
        self.url = url
        self.confirmed: dict[int, float] = {}  # when, on the monotonic clock
        self.failures: Counter[str] = Counter()  # publishes without a confirmation, by error
        self._project = project
        self._start = start
        self._next = 0
        self._topic = f"{namespace}.asked"
        (project / "agents" / "desk.py").write_text(DESK.replace("NS", namespace))

    @property
    def environment(self) -> dict[str, str]:
        """What a worker of this stream has to be told."""
        return {"CHOREO_URL": self.url, "CHOREO_NAMESPACE": self.names.namespace}

    def start(self, **changes: str) -> Running:
        """Start a worker of the desk, and return it when it consumes."""
        running = self._start("run", "desk", env=self.environment | changes)
        running.wait_for('"state": "consuming"')
        return running

    @property
    def handled(self) -> list[tuple[int, float]]:
        """Every reaction of the desk that ran: number and when, on the monotonic clock that processes share."""
        file = self._project / "desk"
        lines = file.read_text().splitlines() if file.exists() else []
        return [(int(number), float(when)) for number, when in map(str.split, lines)]

    @asynccontextmanager
    async def flowing(self, rate: float) -> AsyncIterator[Self]:
        """Publish `rate` events a second as long as the block runs, whatever becomes of them."""
        async with choreo.connect(self.url, namespace=self.names.namespace) as publisher:
            task = asyncio.create_task(self._publish(publisher, rate))
            try:
                yield self
            finally:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    async def publish(self, count: int, *, delay: int | None = None) -> None:
        """Publish `count` events, to be delivered after `delay` seconds, and wait for their confirmations."""
        async with choreo.connect(self.url, namespace=self.names.namespace) as publisher:
            first, self._next = self._next, self._next + count
            await asyncio.gather(*(self._send(publisher, number, delay) for number in range(first, first + count)))

    async def _publish(self, publisher: choreo.Publisher, rate: float) -> None:
        async with asyncio.TaskGroup() as tasks:
            running: set[asyncio.Task[None]] = set()
            while True:
                if len(running) < IN_FLIGHT:
                    task = tasks.create_task(self._send(publisher, self._next))
                    running.add(task)
                    task.add_done_callback(running.discard)
                    self._next += 1
                await asyncio.sleep(1 / rate)

    async def _send(self, publisher: choreo.Publisher, number: int, delay: int | None = None) -> None:
        try:
            message = Message(json.dumps({"number": number}).encode(), message_id=f"{self._topic}-{number}")
            await publisher.send(message, self._topic, delay=delay)
        except ChoreoError as error:
            self.failures[type(error).__name__] += 1
        else:
            self.confirmed[number] = time.monotonic()

    async def flows(self, since: float, *, within: float) -> bool:
        """Wait until events have been handled steadily for a while after `since`; say whether they were."""
        deadline = time.monotonic() + within
        while (now := time.monotonic()) < deadline:
            if now - since > STEADY + PAUSE and self.gap(now - STEADY) < PAUSE:
                return True
            await asyncio.sleep(0.1)
        return False

    def gap(self, since: float) -> float:
        """The longest time without a handled event from `since` until now, in seconds."""
        times = [when for _, when in self.handled if when > since]
        times = [since, *sorted(times), time.monotonic()]
        return max(after - before for before, after in pairwise(times))

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        """A session of the test's own with the broker."""
        session = await rabbit.connect(BrokerUrl.parse_all(self.url), name="test")
        try:
            yield session
        finally:
            await session.close()

    async def ready(self, queue: str) -> int:
        """How many messages wait in `queue`."""
        async with self.session() as session:
            found = await session.stats(queue)
        assert found is not None, f"{queue} is gone"
        return found.ready

    async def account(self, *, within: float = 30.0) -> Account:
        """Wait until nothing is on its way any more, and say what became of everything."""
        async with self.session() as session:
            own = self.names.queue("desk"), self.names.retries("desk"), self.names.due
            work = [*own, *map(self.names.level, range(LEVELS))]

            async def empty() -> bool:
                found = [await session.stats(queue) for queue in work]
                return not any(each is None or each.ready for each in found)

            # Nor is what a worker holds in any queue's count: what is missing gets some time to turn up.
            for _ in range(5):
                if self.confirmed.keys() <= {number for number, _ in self.handled}:
                    break
                await asyncio.sleep(1)
            await eventually(empty, within=within, what="empty queues")
            dead = await self._dead(session)
            ended = {number for number, _ in dead}
        times = Counter(number for number, _ in self.handled)
        return Account(
            confirmed=len(self.confirmed),
            lost=len(self.confirmed.keys() - times.keys() - ended),
            duplicated=sum(times.values()) - len(times),
            dead=Counter(reason for _, reason in dead),
        )

    async def _dead(self, session: Session) -> list[tuple[int, str]]:
        queue = self.names.dlq("desk")
        found, got = await session.stats(queue), list[Delivery]()
        assert found is not None
        consumer = await session.consume(queue, prefetch=10_000, on_delivery=got.append)
        await eventually(lambda: len(got) >= found.ready)
        await consumer.close()
        letters = [dead_letter.read(each.message, agent="desk") for each in got]
        return [(json.loads(letter.body)["number"], letter.reason) for letter in letters]
