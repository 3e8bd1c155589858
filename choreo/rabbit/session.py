"""A session with RabbitMQ over plain aio-pika connections: one for consuming, one for publishing and everything else.

Two, because a broker that runs out of memory or disk stops reading from connections that publish: acknowledgements must
not wait behind them. Nothing here repairs itself. A session that has lost either connection, or a channel of it, or a
consumer, says so in `lost`, and a new one takes its place.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import struct
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, TypeVar

import aio_pika
from aiormq import exceptions as amqp
from aiormq.abc import AbstractChannel, DeliveredMessage
from pamqp import commands
from yarl import URL

from choreo.broker_url import BrokerUrl
from choreo.envelope import new_id
from choreo.errors import BrokerUnreachable, ChoreoError, ConfigurationError
from choreo.message import Message
from choreo.rabbit import translate
from choreo.rabbit.settlements import Settlements
from choreo.rabbit.wire import Properties, received
from choreo.topology import Topology
from choreo.transport import (
    Confirmed,
    Delivery,
    OnDelivery,
    Publication,
    QueueStats,
    Refused,
    Server,
    Unknown,
)

RPC_TIMEOUT: Final = 30.0  # seconds that a declaration may take; a busy cluster elects a quorum queue's leader slowly
CLOSE_TIMEOUT: Final = 3.0  # seconds for the goodbye; a broker that is gone does not answer it
RENEWAL: Final = 1.0  # seconds between two publishing channels

T = TypeVar("T")


async def connect(brokers: Sequence[BrokerUrl], *, name: str) -> RabbitSession:
    """Open a session with the first of `brokers` that lets us in. `name` is what the broker shows for it.

    Raises what the last one answered: BrokerUnreachable, AccessRefused, ConfigurationError.
    """
    failure: ChoreoError | None = None
    for broker in brokers:
        try:
            return await _open(broker, name)
        except ChoreoError as error:
            failure = error
    assert failure is not None, "there is at least one broker"
    raise failure


async def _open(broker: BrokerUrl, name: str) -> RabbitSession:
    context = _tls(broker)
    opened = [await _connection(broker, context, f"{name} (consuming)")]
    try:
        opened.append(await _connection(broker, context, f"{name} (publishing)"))
        session = RabbitSession(*opened)
        await session.prepare()
    except BaseException:
        await asyncio.gather(*(_quietly(each.close()) for each in opened))
        raise
    return session


async def _connection(broker: BrokerUrl, context: ssl.SSLContext | None, name: str) -> aio_pika.Connection:
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
    try:
        await asyncio.wait_for(connection.connect(), broker.connection_timeout)
    except Exception as error:
        raise translate.connecting(error, broker) from error
    return connection


class RabbitSession:
    """A live session; made by `connect`."""

    def __init__(self, consuming: aio_pika.Connection, publishing: aio_pika.Connection) -> None:
        self._consuming = consuming
        self._publishing = publishing
        self._consumers: list[RabbitConsumer] = []
        self._in_flight: dict[str, asyncio.Future[None]] = {}
        self._count = 0
        self._asking = asyncio.Lock()
        self._left: set[AbstractChannel] = set()  # channels that we close ourselves: the session goes on without them
        self._renewed = 0.0
        self._renewals: set[asyncio.Task[None]] = set()
        self.lost: asyncio.Future[ChoreoError] = asyncio.get_running_loop().create_future()
        properties = _underlay(consuming).server_properties
        self.server = Server(str(properties.get("product", "unknown")), str(properties.get("version", "unknown")))

    async def prepare(self) -> None:
        """Open the channels that live as long as the session."""
        self._publisher = await self._channel(self._publishing, confirms=True)
        for connection in (self._consuming, self._publishing):
            connection.close_callbacks.add(self._on_connection_closed)

    async def declare(self, topology: Topology) -> None:
        """Declare `topology`, idempotently."""
        channel = await self._channel(self._publishing, watch=False)
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
        consumer = RabbitConsumer(channel, queue, on_delivery, leave=self._left.add)
        channel.on_consumer_cancel_callbacks.add(partial(self._on_consumer_cancelled, queue))
        await _rpc(channel.basic_qos(prefetch_count=prefetch))
        await consumer.start()
        self._consumers.append(consumer)
        return consumer

    async def publish(
        self, message: Message, *, exchange: str, routing_key: str, timeout: float, mandatory: bool = True
    ) -> Publication:
        """Publish with confirm; see transport.Session."""
        try:
            async with asyncio.timeout(timeout):
                return await self._publish(message, exchange, routing_key, mandatory=mandatory)
        except TimeoutError:
            return Unknown(f"no confirmation within {timeout:g} s")
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # aiormq cancels what waits on a connection that ends; nobody has cancelled this task.
            return Unknown("the connection was lost before the confirmation")
        except Exception as error:  # noqa: BLE001 - whatever ends a publish without an answer leaves it unknown
            return Unknown(f"the connection was lost before the confirmation: {error}")

    async def stats(self, queue: str) -> QueueStats | None:
        """Ask for `queue` without declaring it; one at a time, as aiormq reuses the number of a closing channel."""
        async with self._asking:
            return await self._stats(queue)

    async def _stats(self, queue: str) -> QueueStats | None:
        channel = await self._channel(self._publishing, watch=False)
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
        self._end(BrokerUnreachable("the session was closed"))

    async def _publish(self, message: Message, exchange: str, routing_key: str, *, mandatory: bool) -> Publication:
        # aiormq knows a returned message by its id alone: two in flight with one id would get each other's answer.
        name = message.message_id or new_id()
        while (before := self._in_flight.get(name)) is not None:
            await asyncio.shield(before)
        properties = Properties(message)
        try:
            properties.marshal()
        except (ValueError, TypeError, RecursionError, struct.error) as error:
            return Refused("rejected", f"it cannot be written: {error}")
        alone, number = not self._in_flight, self._count + 1
        self._count = number
        done = self._in_flight[name] = asyncio.get_running_loop().create_future()
        try:
            await self._publisher.basic_publish(
                message.body,
                exchange=exchange,
                routing_key=routing_key,
                properties=properties,
                mandatory=mandatory,
            )
        except amqp.PublishError as error:
            return Refused("returned", f"{exchange} has no queue bound for {routing_key!r}: {error.args[0]}")
        except amqp.ChannelNotFoundEntity:
            # The broker closes the channel for it, and with it goes the answer of whatever else was in flight.
            if alone and self._count == number:
                return Refused("rejected", f"there is no exchange {exchange!r}")
            raise
        except amqp.DeliveryError:
            if asyncio.get_running_loop().time() - self._renewed > RENEWAL:
                self._renewed = asyncio.get_running_loop().time()
                self._renewals.add(renewal := asyncio.create_task(self._renew_publisher()))
                renewal.add_done_callback(self._renewals.discard)
            return Refused("nacked", f"the broker could not store it for {exchange} {routing_key!r}")
        finally:
            del self._in_flight[name]
            done.set_result(None)
        return Confirmed()

    async def _renew_publisher(self) -> None:
        """Publish on a new channel from now on; the one before is left when all that it was given is answered.

        RabbitMQ 3.10: a channel whose first publish finds a quorum queue without a leader, its node being down, refuses
        all later ones too, long after the election [measured: 3.10.8; 4.0.5 and 4.3.6 do not].
        """
        before = self._publisher
        with contextlib.suppress(ChoreoError):  # the session is lost
            self._publisher = await self._channel(self._publishing, confirms=True)
            await asyncio.gather(*self._in_flight.values())
            self._left.add(before)
            await _quietly(before.close())

    async def _channel(
        self, connection: aio_pika.Connection, *, confirms: bool = False, watch: bool = True
    ) -> AbstractChannel:
        try:
            channel: AbstractChannel = await asyncio.wait_for(
                _underlay(connection).channel(publisher_confirms=confirms), RPC_TIMEOUT
            )
        except Exception as error:
            raise translate.lost(error) from error
        if watch:
            channel.closing.add_done_callback(partial(self._on_channel_closed, channel))
        return channel

    def _on_connection_closed(self, _: Any, error: BaseException | None = None) -> None:
        self._end(translate.lost(error))

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

    def __init__(
        self,
        channel: AbstractChannel,
        queue: str,
        on_delivery: OnDelivery,
        leave: Callable[[AbstractChannel], None],
    ) -> None:
        self.queue = queue
        self._channel = channel
        self._on_delivery = on_delivery
        self._leave = leave
        self._settlements = Settlements()
        self._writing: asyncio.Task[None] | None = None
        self._tag = ""

    async def start(self) -> None:
        """Begin to receive."""
        reply = await _rpc(self._channel.basic_consume(self.queue, self._arrived))
        self._tag = reply.consumer_tag or ""

    def acknowledge(self, delivery: Delivery) -> None:
        """Acknowledge, with all others of this turn of the loop.

        If the channel is gone, nothing happens: the broker has taken the delivery back already.
        """
        self._settlements.acknowledge(delivery.tag)
        self._write_soon()

    def requeue(self, delivery: Delivery) -> None:
        """Give back with basic.nack, which from RabbitMQ 4.3 on does not count towards the delivery limit."""
        self._settlements.give_back(delivery.tag)
        self._write_soon()

    async def cancel(self) -> None:
        """Stop receiving."""
        await _quietly(self._channel.basic_cancel(self._tag, timeout=CLOSE_TIMEOUT))

    async def close(self) -> None:
        """Close the channel."""
        if not self._channel.is_closed:
            if self._writing is not None:
                await self._writing
            self._leave(self._channel)
            await _quietly(self._channel.close())

    def _write_soon(self) -> None:
        if self._writing is None:
            self._writing = asyncio.create_task(self._write())

    async def _write(self) -> None:
        while frames := self._settlements.frames():
            for tag, multiple, back in frames:
                if back:
                    await _if_open(self._channel.basic_nack(tag, requeue=True, wait=False))
                else:
                    await _if_open(self._channel.basic_ack(tag, multiple=multiple, wait=False))
        self._writing = None

    async def _arrived(self, message: DeliveredMessage) -> None:
        frame = message.delivery
        assert isinstance(frame, commands.Basic.Deliver)
        self._on_delivery(
            Delivery(
                message=received(message),
                exchange=frame.exchange or "",
                routing_key=frame.routing_key or "",
                tag=frame.delivery_tag or 0,
                redelivered=bool(frame.redelivered),
                consumer=self,
            )
        )


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


async def _if_open(settle: Awaitable[None]) -> None:
    try:
        await settle
    except (amqp.ChannelInvalidStateError, amqp.AMQPError):
        return


async def _quietly(goodbye: Awaitable[Any]) -> None:
    """Await a goodbye that nobody may answer any more."""
    try:
        await asyncio.wait_for(goodbye, CLOSE_TIMEOUT)
    except (Exception, asyncio.CancelledError) as error:
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise
