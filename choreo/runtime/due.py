"""Scheduled events whose time has come: published to all who are bound now, agents and others alike.

The broker cannot do that alone. What leaves a delay towards a queue that is full or gone holds up everything behind it,
and no exchange can tell what nobody takes. So every worker consumes from one queue of what is due, and publishes.
"""

from __future__ import annotations

import asyncio
from typing import Final

from choreo import dead_letter
from choreo.errors import ChoreoError, EnvelopeError, PublishRefused
from choreo.logger import get_logger
from choreo.message import Message, Reason
from choreo.topology import UNCLAIMED, Names, schedule_key, scheduled
from choreo.transport import Confirmed, Consumer, Delivery, Publication, Refused, Session, Unknown

_AT_ONCE: Final = 100  # on the way at a time, in one process
_MOST_REFUSED: Final = 8  # doublings of the second after which an event is published again: four minutes
_PATIENCE: Final = 600.0  # seconds for the broker's word; a lost session ends it sooner
_PAUSE: Final = 5.0  # seconds before something is requeued that could go nowhere
_GOODBYE: Final = 3.0  # seconds for what is on the way when the worker stops

_logger = get_logger()


class DueEvents:
    """Publishes due events in one session. Each is settled only when its copy is confirmed: at least once.

    A nack says that one of several queues has not taken it, and not which, or that the dead-letter queue is full. So it
    is published again, after a delay that doubles each time; those that have it already get it again, with the same id.
    Nothing else waits for it meanwhile.
    """

    def __init__(self, session: Session, names: Names) -> None:
        self.queue = names.due
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()  # never done; see Window
        self._session = session
        self._names = names
        self._consumer: Consumer | None = None
        self._under_way: set[asyncio.Task[None]] = set()
        self._arrivals = 0

    async def open(self) -> None:
        """Subscribe. Raises what the session raises."""
        self._consumer = await self._session.consume(self.queue, prefetch=_AT_ONCE, on_delivery=self._arrived)

    @property
    def mark(self) -> object:
        """See Window."""
        return None if self._consumer is None or len(self._under_way) >= _AT_ONCE else self._arrivals

    async def cancel(self) -> None:
        """Take nothing more, and wait a little for what is on the way."""
        consumer, self._consumer = self._consumer, None
        if consumer is None:
            return
        goodbye = asyncio.ensure_future(consumer.cancel())
        await asyncio.wait((goodbye, *self._under_way), timeout=_GOODBYE)

    def abandon(self) -> None:
        """Forget everything: the session is gone or going, and what is unsettled is delivered again."""
        self._consumer = None
        for task in self._under_way:
            task.cancel()

    def _arrived(self, delivery: Delivery) -> None:
        self._arrivals += 1
        task = asyncio.create_task(self._take(delivery), name=f"due event of {self.queue}")
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _take(self, delivery: Delivery) -> None:
        """Take one to settled."""
        try:
            problem = await self._publish(delivery)
        except Exception as error:  # noqa: BLE001 - a defect of choreo's costs a pause, and no event
            problem = repr(error)
        if problem is None:
            delivery.consumer.acknowledge(delivery)
        elif not self._session.lost.done():
            _logger.error("due event held", queue=self.queue, error=problem, next=f"requeued in {_PAUSE:g} s")
            await asyncio.sleep(_PAUSE)
            delivery.consumer.requeue(delivery)

    async def _publish(self, delivery: Delivery) -> str | None:
        """Have it stored where it belongs, or wait in the delays once more. Return why it is not, or None."""
        topic, refused = scheduled(delivery.routing_key)
        message = delivery.message
        result = await self._store(message, topic)
        if isinstance(result, Unknown) and result.nacked and message.unread is None:  # else its headers would be lost
            doublings = min(refused, _MOST_REFUSED)
            key = schedule_key(topic, 2**doublings, min(refused + 1, _MOST_REFUSED))
            result = await self._send(message.forwarded({}), self._names.delay, key)
        return None if isinstance(result, Confirmed) else result.detail

    async def _store(self, message: Message, topic: str) -> Publication:
        if message.unread is not None:
            unread = EnvelopeError(Reason.HEADERS, "the headers of this scheduled event cannot be read")
            return await self._bury(message, topic, Reason.HEADERS, unread)
        result = await self._send(message.forwarded({}), self._names.events, topic)
        match result:
            case Refused("returned"):
                nobody = PublishRefused(f"nobody was bound to {topic!r} when this event was due")
                return await self._bury(message, topic, Reason.UNCLAIMED, nobody)
            case Refused("rejected", detail):
                return await self._bury(message, topic, Reason.REFUSED, PublishRefused(detail))
        return result

    async def _bury(self, message: Message, topic: str, reason: Reason, error: ChoreoError) -> Publication:
        """Write a dead letter for what no agent has."""
        letter = dead_letter.write(
            message,
            topic=topic,
            agent=UNCLAIMED,
            reason=reason,
            error=error,
            reaction=None,
            attempts=0,
            first_failure=None,
            code_version=None,
        )
        return await self._send(letter, self._names.unclaimed, schedule_key(topic, 0))

    async def _send(self, message: Message, exchange: str, key: str) -> Publication:
        return await self._session.publish(message, exchange=exchange, routing_key=key, timeout=_PATIENCE)
