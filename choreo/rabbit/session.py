"""A session with RabbitMQ over plain aio-pika connections: one for consuming, one for publishing and everything else.

Two, because a broker that runs out of memory or disk stops reading from connections that publish: acknowledgements must
not wait behind them. A session that has lost either connection, or a channel that consumes, or a consumer, says so in
`lost`, and a new one takes its place. Only the channel that publishes is opened again: the broker closes it over a
single message that it rejects, which must not cost the deliveries under way.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final, TypeVar

import aio_pika
from aiormq import exceptions as amqp
from aiormq.abc import AbstractChannel
from pamqp import commands
from yarl import URL

from choreo.broker_url import BrokerUrl
from choreo.errors import BrokerUnreachable, ChoreoError, ConfigurationError
from choreo.message import Message
from choreo.rabbit import lane, plain, translate
from choreo.rabbit.lane import Lane
from choreo.topology import Topology
from choreo.transport import (
    Delivery,
    OnDelivery,
    Publication,
    QueueStats,
    Server,
)

RPC_TIMEOUT: Final = 30.0  # seconds that a declaration may take; a busy cluster elects a quorum queue's leader slowly
_GONE: Final = "the connection was lost before the confirmation"
RENEWAL: Final = 1.0  # seconds, at least, between two channels that publish
CLOSE_TIMEOUT: Final = 3.0  # seconds for the goodbye; a broker that is gone does not answer it

T = TypeVar("T")


class Connector:
    """Opens sessions, one after the other, with the first of `brokers` that lets us in. `name` is what they show.

    Each call begins behind the node that it found last: one that a session was lost to comes last, though it may still
    let clients in, as a node that is cut off from the others does. `fast`: through the lane, otherwise through aiormq's
    own channels.
    """

    def __init__(self, brokers: Sequence[BrokerUrl], *, name: str, fast: bool = True) -> None:
        self._brokers = deque(brokers)
        self._name = name
        self._fast = fast

    async def __call__(self) -> RabbitSession:
        """Raise what the last one answered: BrokerUnreachable, AccessRefused, ConfigurationError."""
        failure: ChoreoError | None = None
        for _ in range(len(self._brokers)):
            broker = self._brokers[0]
            self._brokers.rotate(-1)
            try:
                return await _open(broker, self._name, fast=self._fast)
            except ChoreoError as error:
                failure = error
        assert failure is not None, "there is at least one broker"
        raise failure


async def connect(brokers: Sequence[BrokerUrl], *, name: str, fast: bool = True) -> RabbitSession:
    """Open one session; see Connector."""
    return await Connector(brokers, name=name, fast=fast)()


async def _open(broker: BrokerUrl, name: str, *, fast: bool) -> RabbitSession:
    context = _tls(broker)
    receiver, sender = (Lane(broker.heartbeat), Lane(broker.heartbeat)) if fast else (None, None)
    consuming = await _connection(broker, context, f"{name} (consuming)", receiver)
    opened = [consuming]
    try:
        publishing = await _connection(broker, context, f"{name} (publishing)", sender)
        opened.append(publishing)
        session = RabbitSession(consuming, publishing, receiver, sender)
        await session.prepare()
    except BaseException:
        await asyncio.gather(*(_quietly(each.close()) for each in opened))
        raise
    return session


async def _connection(
    broker: BrokerUrl, context: ssl.SSLContext | None, name: str, lane: Lane | None
) -> aio_pika.Connection:
    url = URL.build(
        scheme=broker.scheme,
        host=broker.host,
        port=broker.port,
        user=broker.user,
        password=broker.password,
        path="/" + broker.vhost.replace("/", "%2F") if broker.vhost != "/" else "/",
        query={"heartbeat": str(broker.heartbeat)},
        encoded=False,
    )
    connection = aio_pika.Connection(url, ssl_context=context, client_properties={"connection_name": name})
    if lane is not None:
        connection.kwargs["transport_factory"] = lane  # its constructor drops what it does not know
    try:
        await asyncio.wait_for(connection.connect(), broker.connection_timeout)
    except Exception as error:
        raise translate.connecting(error, broker) from error
    return connection


class RabbitSession:
    """A live session; made by `connect`. With a lane under each connection it is fast, without them it is plain."""

    def __init__(
        self,
        consuming: aio_pika.Connection,
        publishing: aio_pika.Connection,
        receiver: Lane | None,
        sender: Lane | None,
    ) -> None:
        self._consuming = consuming
        self._publishing = publishing
        self._receiver = receiver
        self._sender = sender
        self._publisher = self._new_publisher()
        self._consumers: set[RabbitConsumer] = set()
        self._asking = asyncio.Lock()
        self._left: set[AbstractChannel] = set()  # channels that we close ourselves: the session goes on without them
        self._background: set[asyncio.Task[None]] = set()
        self._renewed = -RENEWAL
        self.lost: asyncio.Future[ChoreoError] = asyncio.get_running_loop().create_future()
        properties = _underlay(consuming).server_properties
        self.server = Server(str(properties.get("product", "unknown")), str(properties.get("version", "unknown")))

    async def prepare(self) -> None:
        """Open the channel that publishes, and watch both connections."""
        await self._open_publisher(self._publisher)
        self._consuming.close_callbacks.add(self._on_connection_closed)
        self._publishing.close_callbacks.add(self._on_publishing_closed)

    async def declare(self, topology: Topology) -> None:
        """Declare `topology`, idempotently."""
        channel = await self._channel(self._publishing)
        try:
            for exchange in topology.exchanges:
                arguments: Any = {"alternate-exchange": exchange.alternate} if exchange.alternate else None
                await _rpc(
                    channel.exchange_declare(
                        exchange.name, exchange_type=exchange.type, durable=True, arguments=arguments
                    )
                )
            for queue in topology.queues:
                await _rpc(channel.queue_declare(queue.name, durable=True, arguments=dict(queue.arguments)))
            for binding in topology.bindings:
                if binding.to == "queue":
                    await _rpc(channel.queue_bind(binding.destination, binding.source, binding.pattern))
                else:
                    await _rpc(channel.exchange_bind(binding.destination, binding.source, binding.pattern))
        finally:
            await _quietly(channel.close())

    async def consume(self, queue: str, *, prefetch: int, on_delivery: OnDelivery) -> RabbitConsumer:
        """Subscribe to `queue` on a channel of its own."""
        channel = await self._channel(self._consuming)
        channel.closing.add_done_callback(partial(self._on_channel_closed, channel))
        channel.on_consumer_cancel_callbacks.add(partial(self._on_consumer_cancelled, queue))
        await _rpc(channel.basic_qos(prefetch_count=prefetch))
        consumer = RabbitConsumer(queue, channel, leave=self._leave)
        if self._receiver is not None:
            await consumer.start(lane.Consuming(self._receiver, channel.number, consumer, on_delivery))
        else:
            await consumer.start(plain.Consuming(channel, consumer, on_delivery))
        self._consumers.add(consumer)
        return consumer

    def publish(
        self, message: Message, *, exchange: str, routing_key: str, timeout: float, mandatory: bool = True
    ) -> Awaitable[Publication]:
        """Publish with confirm; see transport.Session."""
        return self._publisher.publish(
            message, exchange=exchange, routing_key=routing_key, timeout=timeout, mandatory=mandatory
        )

    def watch_blocked(self, callback: Callable[[str | None], None]) -> None:
        """Call `callback` when the broker blocks publishers, and when it stops to; a plain session does not know."""
        if self._sender is not None:
            self._sender.on_blocked = callback

    async def stats(self, queue: str) -> QueueStats | None:
        """Ask for `queue` without declaring it; one at a time, as aiormq reuses the number of a closing channel."""
        async with self._asking:
            return await self._stats(queue)

    async def _stats(self, queue: str) -> QueueStats | None:
        channel = await self._channel(self._publishing)
        try:
            found = await asyncio.wait_for(channel.queue_declare(queue, passive=True), RPC_TIMEOUT)
        except amqp.ChannelNotFoundEntity:
            return None
        except Exception as error:
            raise translate.declaring(error) from error
        finally:
            await _quietly(channel.close())
        return QueueStats(queue, found.message_count or 0, found.consumer_count or 0)

    async def close(self) -> None:
        """Say goodbye, first on the channels: what is acknowledged goes out before the answer to that comes in."""
        await asyncio.gather(*(consumer.close() for consumer in self._consumers))
        await asyncio.gather(_quietly(self._consuming.close()), _quietly(self._publishing.close()))
        self._publisher.end(_GONE)
        self._end(BrokerUnreachable("the session was closed"))

    def _new_publisher(self) -> lane.Publishing | plain.Publishing:
        if self._sender is None:
            return plain.Publishing(self._renew_publisher_soon)
        frame_max = _underlay(self._publishing).connection_tune.frame_max
        return lane.Publishing(self._sender, frame_max, self._renew_publisher_soon, self._unanswered)

    async def _open_publisher(
        self, publisher: lane.Publishing | plain.Publishing, number: int | None = None
    ) -> AbstractChannel:
        channel = await self._channel(self._publishing, number, confirms=True)
        publisher.use(channel)
        channel.closing.add_done_callback(partial(self._on_publisher_closed, publisher, channel))
        return channel

    def _on_publisher_closed(
        self, publisher: lane.Publishing | plain.Publishing, channel: AbstractChannel, _: asyncio.Future[Any]
    ) -> None:
        if channel in self._left:
            self._left.discard(channel)
        elif self._publishing.transport is not None:
            self._in_background(self._open_publisher(publisher, channel.number))

    def _renew_publisher_soon(self) -> None:
        """Publish on another channel after a nack.

        RabbitMQ 3.10: a channel whose first publish finds a quorum queue without a leader, its node being down, refuses
        all later ones too, long after the election [measured: 3.10.8; 4.0.5 and 4.3.6 do not].
        """
        now = asyncio.get_running_loop().time()
        if now - self._renewed >= RENEWAL and not self.lost.done():
            self._renewed = now
            self._in_background(self._renew_publisher())

    def _unanswered(self, seconds: float) -> None:
        self._end(BrokerUnreachable(f"the broker has answered no publish for {seconds:.0f} s"))

    async def _renew_publisher(self) -> None:
        before, publisher = self._publisher, self._new_publisher()
        await self._open_publisher(publisher)
        self._publisher = publisher
        await before.settled()
        self._left.add(before.channel)
        await _quietly(before.channel.close())

    def _in_background(self, work: Coroutine[Any, Any, Any]) -> None:
        """Do `work` on the publishing channel; that it cannot be done is the end of the session."""

        async def do() -> None:
            try:
                await work
            except ChoreoError as error:
                self._end(error)

        task = asyncio.create_task(do())
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _channel(
        self, connection: aio_pika.Connection, number: int | None = None, *, confirms: bool = False
    ) -> AbstractChannel:
        try:
            channel: AbstractChannel = await asyncio.wait_for(
                _underlay(connection).channel(channel_number=number, publisher_confirms=confirms), RPC_TIMEOUT
            )
        except Exception as error:
            raise translate.lost(error) from error
        return channel

    def _on_connection_closed(self, _: Any, error: BaseException | None = None) -> None:
        self._end(translate.lost(error))

    def _on_publishing_closed(self, connection: Any, error: BaseException | None = None) -> None:
        self._publisher.end(_GONE)
        self._on_connection_closed(connection, error)

    def _leave(self, consumer: RabbitConsumer) -> None:
        self._consumers.discard(consumer)
        self._left.add(consumer.channel)

    def _on_channel_closed(self, channel: AbstractChannel, closing: asyncio.Future[Any]) -> None:
        if channel in self._left:
            self._left.discard(channel)
            return
        self._end(translate.lost(None if closing.cancelled() else closing.exception()))

    def _on_consumer_cancelled(self, queue: str, _: commands.Basic.Cancel) -> None:
        reason = "the queue was deleted, and what it held is gone, or its leader moved"
        self._end(BrokerUnreachable(f"the broker cancelled the consumer of {queue!r}: {reason}"))

    def _end(self, error: ChoreoError) -> None:
        if not self.lost.done():
            self.lost.set_result(error)


class RabbitConsumer:
    """A subscription on a channel of its own."""

    def __init__(self, queue: str, channel: AbstractChannel, leave: Callable[[RabbitConsumer], None]) -> None:
        self.queue = queue
        self.channel = channel
        self._leave = leave
        self._tag = ""

    async def start(self, receiving: lane.Consuming | plain.Consuming) -> None:
        """Begin to receive."""
        self._receiving = receiving
        self._settle, self._give_back = receiving.acknowledge, receiving.give_back
        reply = await _rpc(self.channel.basic_consume(self.queue, receiving.arrived))
        self._tag = reply.consumer_tag or ""

    def acknowledge(self, delivery: Delivery) -> None:
        """Acknowledge, with all others of this turn of the loop.

        If the channel is gone, nothing happens: the broker has taken the delivery back already.
        """
        self._settle(delivery.tag)

    def requeue(self, delivery: Delivery) -> None:
        """Give back with basic.nack, which from RabbitMQ 4.3 on does not count towards the delivery limit."""
        self._give_back(delivery.tag)

    async def cancel(self) -> None:
        """Stop receiving."""
        await _quietly(self.channel.basic_cancel(self._tag, timeout=CLOSE_TIMEOUT))

    async def close(self) -> None:
        """Close the channel."""
        if not self.channel.is_closed:
            await self._receiving.end()
            self._leave(self)
            await _quietly(self.channel.close())


def _tls(broker: BrokerUrl) -> ssl.SSLContext | None:
    if not broker.tls:
        return None
    try:
        context = ssl.create_default_context(cafile=broker.cafile)
        if broker.certfile:
            context.load_cert_chain(broker.certfile, broker.keyfile)
    except (OSError, ssl.SSLError) as error:
        files = ", ".join(filter(None, (broker.cafile, broker.certfile, broker.keyfile)))
        raise ConfigurationError(
            f"the TLS files of the broker URL cannot be used: {error}", f"look at {files}"
        ) from error
    return context


def _underlay(connection: aio_pika.Connection) -> Any:
    assert connection.transport is not None
    return connection.transport.connection


async def _rpc(call: Awaitable[T]) -> T:
    try:
        return await asyncio.wait_for(call, RPC_TIMEOUT)
    except Exception as error:
        raise translate.declaring(error) from error


async def _quietly(goodbye: Awaitable[Any]) -> None:
    """Await a goodbye that nobody may answer any more."""
    try:
        await asyncio.wait_for(goodbye, CLOSE_TIMEOUT)
    except (Exception, asyncio.CancelledError) as error:
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise
