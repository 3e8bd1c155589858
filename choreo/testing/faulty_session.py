"""A session in which everything that a delivery does with its broker is seen, and can go wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from choreo.broker.in_process import InProcessConsumer, InProcessSession
from choreo.errors import ChoreoError
from choreo.message import Message
from choreo.testing.faults import Fates, Point
from choreo.testing.record import Record
from choreo.topology import Topology
from choreo.transport import Delivery, OnDelivery, OnTimeout, Publication, QueueStats, Server, Unknown

_ENDED: Final = Unknown("the process has ended")

Passes = Callable[[Point, str], bool]


class FaultySession:
    """`session`, as the process of `agent` has it. `passes`: whether a delivery goes on behind a point."""

    def __init__(self, session: InProcessSession, agent: str, fates: Fates, record: Record, passes: Passes) -> None:
        self._session = session
        self.agent = agent
        self.fates = fates
        self.record = record
        self.passes = passes

    @property
    def server(self) -> Server:
        """See transport.Session."""
        return self._session.server

    @property
    def lost(self) -> asyncio.Future[ChoreoError]:
        """See transport.Session."""
        return self._session.lost

    async def declare(self, topology: Topology) -> tuple[str, ...]:
        """See transport.Session."""
        return await self._session.declare(topology)

    async def remove(self, topology: Topology) -> None:
        """See transport.Session."""
        await self._session.remove(topology)

    async def consume(
        self,
        queue: str,
        *,
        prefetch: int,
        on_delivery: OnDelivery,
        hold: float | None = None,
        on_timeout: OnTimeout | None = None,
        looking: bool = False,
    ) -> FaultyConsumer:
        """See transport.Session."""
        consumer = FaultyConsumer(self, on_delivery)
        consumer.inner = await self._session.consume(
            queue,
            prefetch=prefetch,
            on_delivery=consumer.arrived,
            hold=hold,
            on_timeout=on_timeout,
            looking=looking,
        )
        return consumer

    async def publish(
        self, message: Message, *, exchange: str, routing_key: str, timeout: float, mandatory: bool = True
    ) -> Publication:
        """See transport.Session. It may be stored twice, and the process may end before or after it hears of it."""
        topic = message.type or routing_key

        def publish() -> asyncio.Future[Publication]:
            return self._session.publish(
                message, exchange=exchange, routing_key=routing_key, timeout=timeout, mandatory=mandatory
            )

        answer = publish()
        if self.fates.doubles(topic):
            publish()
        if not self.passes(Point.PUBLISHED, topic):
            return _ENDED
        result = await answer
        # An event that nobody listens to is answered too, and for a terminal one that is all there is to know.
        answered = not isinstance(result, Unknown) and not self.lost.done()
        if answered and not self.passes(Point.CONFIRMED, topic):
            return _ENDED
        return result

    def watch_blocked(self, callback: Callable[[str | None], None]) -> None:
        """See transport.Session."""
        self._session.watch_blocked(callback)

    async def missing(self, topology: Topology) -> tuple[str, ...]:
        """See transport.Session."""
        return await self._session.missing(topology)

    async def stats(self, queue: str) -> QueueStats | None:
        """See transport.Session."""
        return await self._session.stats(queue)

    async def close(self) -> None:
        """See transport.Session."""
        await self._session.close()

    def cut(self, reason: ChoreoError) -> None:
        """End it at once."""
        self._session.cut(reason)


class FaultyConsumer:
    """A subscription of a watched session."""

    inner: InProcessConsumer

    def __init__(self, session: FaultySession, on_delivery: OnDelivery) -> None:
        self._session = session
        self._on_delivery = on_delivery
        self._late: dict[int, tuple[asyncio.TimerHandle, Delivery, str]] = {}  # by tag, with the id of the event
        self._topics: dict[int, str] = {}  # of what is not settled, by tag

    @property
    def queue(self) -> str:
        """The name of the queue."""
        return self.inner.queue

    def arrived(self, delivery: Delivery) -> None:
        """Take a delivery, and hand it on: at once, or late, or never."""
        session = self._session
        delivery.consumer = self
        topic, event_id = session.record.arrived(delivery)
        self._topics[delivery.tag] = topic
        if not session.passes(Point.ARRIVED, topic):
            return
        if seconds := session.fates.lateness(session.agent, topic, event_id):
            timer = asyncio.get_running_loop().call_later(seconds, self._hand_on, delivery.tag)
            self._late[delivery.tag] = timer, delivery, event_id
        else:
            self._on_delivery(delivery)

    def acknowledge(self, delivery: Delivery) -> None:
        """See transport.Consumer. The broker may not get to hear it, and delivers again."""
        session, topic = self._session, self._topics.pop(delivery.tag, "")
        if session.lost.done():
            return
        if session.fates.loses(session.agent, topic):
            self.inner.requeue(delivery)
        else:
            self.inner.acknowledge(delivery)
        session.passes(Point.SETTLED, topic)

    def requeue(self, delivery: Delivery) -> None:
        """See transport.Consumer."""
        self._topics.pop(delivery.tag, None)
        self.inner.requeue(delivery)

    async def cancel(self) -> None:
        """See transport.Consumer: nothing comes afterwards, so what is late goes back, to be late for the next one."""
        await self.inner.cancel()
        now = asyncio.get_running_loop().time()
        for timer, delivery, event_id in self._late.values():
            self._session.fates.hold_on(self._session.agent, event_id, timer.when() - now)
            self.requeue(delivery)
        self._forget()

    async def close(self) -> None:
        """See transport.Consumer."""
        self._forget()
        await self.inner.close()

    def _hand_on(self, tag: int) -> None:
        _, delivery, _ = self._late.pop(tag)
        if not self._session.lost.done():
            self._on_delivery(delivery)

    def _forget(self) -> None:
        for timer, _, _ in self._late.values():
            timer.cancel()
        self._late.clear()
