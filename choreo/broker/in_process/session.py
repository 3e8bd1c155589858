"""A session with an embedded broker in the same process; it keeps the contract of `transport.Session`.

What a client says reaches the broker at once. What the broker says arrives in a later turn of the event loop, or after
the host's latency, and on each channel in the order in which it was said.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final

from choreo.amqp import reply_codes
from choreo.broker.core import AmqpError, BasicProperties, Cancelled, Channel, Deliver, Got, Sent, Sink
from choreo.broker.in_process.host import Host
from choreo.broker.in_process.mailbox import Mailbox
from choreo.broker.in_process.publishing import Publishing
from choreo.errors import BrokerUnreachable, ChoreoError
from choreo.message import Message
from choreo.topology import Exchange, Queue, Topology
from choreo.transport import Delivery, OnDelivery, OnTimeout, Publication, QueueStats, Server

_CHANNELS: Final = 2048
_FOLLOWS: Final = "4.3"  # the release of RabbitMQ that the embedded broker does as


async def connect(host: Host) -> InProcessSession:
    """Open a session with the broker of `host`."""
    return InProcessSession(host)


class InProcessSession:
    """A live session; made by `connect`."""

    def __init__(self, host: Host) -> None:
        host.catch_up()
        self.host = host
        self.server = Server("choreo, embedded", _FOLLOWS)
        self.lost: asyncio.Future[ChoreoError] = asyncio.get_running_loop().create_future()
        self._connection = host.broker.connect()
        self._channels: dict[int, Channel] = {}
        self._consumers: set[InProcessConsumer] = set()
        self._publishing = Publishing(host, self.open_channel, self._rejected)

    async def declare(self, topology: Topology) -> tuple[str, ...]:
        """Declare `topology`, idempotently."""
        older: list[str] = []
        channel = self.open_channel(_ignore)
        try:
            for exchange in topology.exchanges:
                arguments = {"alternate-exchange": exchange.alternate} if exchange.alternate else None
                channel.exchange_declare(exchange.name, exchange.type, durable=True, arguments=arguments)
            for queue in topology.queues:
                try:
                    channel.queue_declare(queue.name, durable=True, arguments=dict(queue.arguments))
                except AmqpError as error:
                    if error.code != reply_codes.PRECONDITION_FAILED or queue.before is None:
                        raise
                    channel = self.open_channel(_ignore)
                    channel.queue_declare(queue.name, durable=True, arguments=dict(queue.before))
                    older.append(queue.name)
            for binding in topology.bindings:
                bind = channel.queue_bind if binding.to == "queue" else channel.exchange_bind
                bind(binding.destination, binding.source, binding.pattern)
        except AmqpError as error:
            raise reply_codes.refusal(error.code, error.text) from error
        finally:
            channel.close()
        return tuple(older)

    async def remove(self, topology: Topology) -> None:
        """Delete the queues of `topology`, with all that they hold, and its exchanges."""
        channel = self.open_channel(_ignore)
        try:
            for queue in topology.queues:
                channel.queue_delete(queue.name)
            for exchange in topology.exchanges:
                channel.exchange_delete(exchange.name)
        except AmqpError as error:
            raise reply_codes.refusal(error.code, error.text) from error
        finally:
            channel.close()

    async def consume(
        self,
        queue: str,
        *,
        prefetch: int,
        on_delivery: OnDelivery,
        hold: float | None = None,  # noqa: ARG002 - this broker waits for ever
        on_timeout: OnTimeout | None = None,  # noqa: ARG002
        looking: bool = False,
    ) -> InProcessConsumer:
        """Subscribe to `queue` on a channel of its own."""
        consumer = InProcessConsumer(self, queue, on_delivery, nacks_rest=looking)
        try:
            consumer.start(prefetch)
        except AmqpError as error:
            raise reply_codes.refusal(error.code, error.text) from error
        self._consumers.add(consumer)
        return consumer

    def publish(
        self, message: Message, *, exchange: str, routing_key: str, timeout: float, mandatory: bool = True
    ) -> asyncio.Future[Publication]:
        """Publish with confirm; see transport.Session."""
        return self._publishing.publish(message, exchange, routing_key, timeout, mandatory=mandatory)

    def watch_blocked(self, callback: Callable[[str | None], None]) -> None:
        """Do nothing: this broker always takes publishes."""

    async def stats(self, queue: str) -> QueueStats | None:
        """Ask for `queue` without declaring it."""
        channel = self.open_channel(_ignore)
        try:
            found = channel.queue_declare(queue, passive=True)
        except AmqpError as error:
            if error.code == reply_codes.NOT_FOUND:
                return None
            raise reply_codes.refusal(error.code, error.text) from error
        finally:
            channel.close()
        return QueueStats(queue, found.messages, found.consumers)

    async def missing(self, topology: Topology) -> tuple[str, ...]:
        """Ask for everything without declaring it."""
        missing: list[str] = []
        everything: tuple[Exchange | Queue, ...] = (*topology.exchanges, *topology.queues)
        for each in everything:
            channel = self.open_channel(_ignore)
            try:
                if isinstance(each, Exchange):
                    channel.exchange_declare(each.name, passive=True)
                else:
                    channel.queue_declare(each.name, passive=True)
            except AmqpError:
                missing.append(each.name)
            finally:
                channel.close()
        return tuple(dict.fromkeys(missing))

    async def close(self) -> None:
        """End the session."""
        self.cut(BrokerUnreachable("the session was closed"))

    def cut(self, reason: ChoreoError) -> None:
        """End the session at once, as a lost connection does: what is unsettled is back in its queue."""
        if self.lost.done():
            return
        self.lost.set_result(reason)
        for consumer in self._consumers:
            consumer.end()
        self._publishing.end()
        self.host.catch_up()
        self._connection.close()

    def open_channel(self, sink: Sink) -> Channel:
        """Open a channel with a number that is free. Raises BrokerUnreachable after the end."""
        if self.lost.done():
            raise BrokerUnreachable("the session has ended")
        number = next(
            each for each in range(1, _CHANNELS) if each not in self._channels or not self._channels[each].open
        )
        self.host.catch_up()
        self._channels[number] = self._connection.open_channel(number, sink)
        return self._channels[number]

    def left(self, consumer: InProcessConsumer) -> None:
        """Forget `consumer`, which has ended."""
        self._consumers.discard(consumer)

    def _rejected(self, error: AmqpError) -> None:
        self.cut(reply_codes.refusal(error.code, error.text))


class InProcessConsumer:
    """A subscription on a channel of its own."""

    def __init__(
        self, session: InProcessSession, queue: str, on_delivery: OnDelivery, *, nacks_rest: bool = False
    ) -> None:
        self.queue = queue
        self._session = session
        self._on_delivery = on_delivery
        self._post = Mailbox(self._take, session.host.latency)
        self._nacks_rest = nacks_rest
        self._tag = ""
        self._ended = False
        self._channel = session.open_channel(self._post.put)

    def start(self, prefetch: int) -> None:
        """Begin to receive. Raises AmqpError."""
        self._channel.qos(prefetch)
        self._tag = self._channel.consume(self.queue)

    def acknowledge(self, delivery: Delivery) -> None:
        """Acknowledge; after the end nothing happens."""
        self._settle(partial(self._channel.ack, delivery.tag))

    def requeue(self, delivery: Delivery) -> None:
        """Requeue with basic.nack; after the end nothing happens."""
        self._settle(partial(self._channel.nack, delivery.tag, requeue=True))

    async def cancel(self) -> None:
        """Receive no more. What is on its way arrives before this returns, as it does on a wire."""
        if not self._ended and self._channel.open:
            self._session.host.catch_up()
            self._channel.cancel(self._tag)
            await self._post.empty()

    async def close(self) -> None:
        """Close the channel."""
        if not self._ended:
            if self._nacks_rest:
                self._settle(partial(self._channel.nack, 0, multiple=True, requeue=True))
            self.end()
            self._session.left(self)
            self._session.host.catch_up()
            self._channel.close()

    def end(self) -> None:
        """Take nothing more from the broker, and settle nothing more."""
        self._ended = True
        self._post.end()

    def _settle(self, say: Callable[[], None]) -> None:
        if self._ended or not self._channel.open:
            return
        self._session.host.catch_up()
        try:
            say()
        except AmqpError as error:
            self._session.cut(reply_codes.refusal(error.code, error.text))

    def _take(self, sent: Sent) -> None:
        match sent:
            case Deliver():
                self._on_delivery(
                    Delivery(received(sent), sent.exchange, sent.routing_key, sent.delivery_tag, sent.redelivered, self)
                )
            case Cancelled():
                self._session.cut(reply_codes.cancelled(self.queue, deleted=True))


def received(sent: Deliver | Got) -> Message:
    """Return a message that one of this room's publishers has sent, with all that the broker has written on it."""
    properties = sent.properties
    assert isinstance(properties, BasicProperties), "every publisher of this room writes them"
    return Message(
        body=sent.body,
        headers=dict(properties.headers or {}),
        content_type=properties.content_type,
        content_encoding=properties.content_encoding,
        message_id=properties.message_id,
        correlation_id=properties.correlation_id,
        type=properties.type,
        app_id=properties.app_id,
        reply_to=properties.reply_to,
        priority=properties.priority,
        timestamp=properties.timestamp,
    )


def look(host: Host, queue: str) -> list[Message]:
    """Return what is ready in `queue`, the oldest first; all of it goes back to its place."""
    host.catch_up()
    connection = host.broker.connect()
    channel, found = connection.open_channel(1, _ignore), []
    while (got := channel.get(queue)) is not None:
        found.append(received(got))
    connection.close()
    return found


def _ignore(_: Sent) -> None:
    """Hear nothing: what is asked for on this channel is answered by the call."""
