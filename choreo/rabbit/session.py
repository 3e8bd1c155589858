"""A session with RabbitMQ over plain aio-pika connections: one for consuming, one for publishing and everything else.

Two, because a broker that runs out of memory or disk stops reading from connections that publish: acknowledgements must
not wait behind them. A session that has lost either connection, or a channel that consumes, or a consumer, says so in
`lost`, and a new one takes its place. Only the channel that publishes is opened again: the broker closes it over a
single message that it rejects, which must not cost the deliveries under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import ssl
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, cast

import aio_pika
from aiormq import exceptions as amqp
from aiormq.abc import AbstractChannel
from pamqp import commands
from yarl import URL

from choreo.amqp import reply_codes
from choreo.config.broker_url import BrokerUrl
from choreo.errors import BrokerUnreachable, ChoreoError, TopologyMismatch
from choreo.message import Message
from choreo.rabbit import calls, fast_path, translate
from choreo.rabbit.consumer import RabbitConsumer
from choreo.rabbit.fast_path import FastPath
from choreo.rabbit.sender import Sender
from choreo.topology import Exchange, Queue, Topology
from choreo.transport import (
    FRAME_MAX,
    OnDelivery,
    OnTimeout,
    Publication,
    QueueStats,
    Server,
    diversion,
)

# Without it, a program that has not set up logging gets aiormq's account of each refusal beside the error itself.
logging.getLogger("aiormq").addHandler(logging.NullHandler())

_DELETION: Final = 2.0  # seconds that a queue may show after its consumers were cancelled
_POLL: Final = 0.02  # seconds between two looks at it


class Connector:
    """Opens sessions, one after the other, with the first broker that lets us in. `name` is what they show.

    `brokers` is asked at each call, since a password that stands in a file may be another one by then. Each call begins
    behind the node that was found last: one that a session was lost to comes last, though it may still let clients in,
    as a node that is cut off from the others does.
    """

    def __init__(self, brokers: Callable[[], Sequence[BrokerUrl]], *, name: str) -> None:
        self._brokers = brokers
        self._next = 0
        self._name = name

    async def __call__(self) -> RabbitSession:
        """Raise what the last one answered: BrokerUnreachable, AccessRefused."""
        if (elsewhere := diversion()) is not None:
            return cast("RabbitSession", await elsewhere.connect())  # a rehearsal's: nothing of it gets outside
        brokers = self._brokers()
        failure: ChoreoError | None = None
        for _ in range(len(brokers)):
            broker = brokers[self._next % len(brokers)]
            self._next += 1
            try:
                return await _open(broker, self._name)
            except ChoreoError as error:
                failure = error
        assert failure is not None, "there is at least one broker"
        raise failure


async def connect(brokers: Sequence[BrokerUrl], *, name: str) -> RabbitSession:
    """Open one session; see Connector."""
    return await Connector(lambda: brokers, name=name)()


async def _open(broker: BrokerUrl, name: str) -> RabbitSession:
    context = _tls(broker)
    receiver, sender = FastPath(broker.heartbeat), FastPath(broker.heartbeat)
    consuming = await _connection(broker, context, f"{name} (consuming)", receiver)
    opened = [consuming]
    try:
        publishing = await _connection(broker, context, f"{name} (publishing)", sender)
        opened.append(publishing)
        session = RabbitSession(consuming, publishing, receiver, sender)
        await session.prepare()
    except BaseException:
        await asyncio.gather(*(calls.quietly(each.close()) for each in opened))
        raise
    return session


async def _connection(
    broker: BrokerUrl, context: ssl.SSLContext | None, name: str, under: FastPath
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
    connection.kwargs["transport_factory"] = under  # its constructor drops what it does not know
    try:
        await calls.answer(connection.connect(), broker.connection_timeout)
    except Exception as error:  # noqa: BLE001 - it is raised again, as what it means
        told = translate.connecting(error, broker, under.ended)
        # Eighty lines of how the client tried say less than the message; of what is no answer of a broker's, they help.
        raise told from None if isinstance(error, OSError | amqp.AMQPError) else error
    return connection


class RabbitSession:
    """A live session; made by `connect`, with a fast path under each connection."""

    def __init__(
        self,
        consuming: aio_pika.Connection,
        publishing: aio_pika.Connection,
        receiver: FastPath,
        sender: FastPath,
    ) -> None:
        self._consuming = consuming
        self._publishing = publishing
        self._receiver = receiver
        self._sender = Sender(publishing, sender, self._end)
        self._consumers: set[RabbitConsumer] = set()
        self._asking = asyncio.Lock()
        self._background: set[asyncio.Task[None]] = set()
        self._left: set[AbstractChannel] = set()  # channels that we close ourselves: the session goes on without them
        self._gone: set[str] = set()  # queues that were missed since they were last subscribed to
        self.lost: asyncio.Future[ChoreoError] = asyncio.get_running_loop().create_future()
        properties = calls.underlay(consuming).server_properties
        product, version = (str(properties.get(each, "unknown")) for each in ("product", "version"))
        frame_max = calls.underlay(publishing).connection_tune.frame_max or FRAME_MAX
        self.server = Server(product, version, frame_max)

    async def prepare(self) -> None:
        """Open the channel that publishes, and watch both connections."""
        await self._sender.open()
        self._consuming.close_callbacks.add(self._on_connection_closed)
        self._publishing.close_callbacks.add(self._on_publishing_closed)

    async def declare(self, topology: Topology) -> tuple[str, ...]:
        """Declare `topology`, idempotently."""
        older: list[str] = []
        await self._require_at_least_once(topology)
        channel = await calls.channel(self._publishing)
        try:
            for exchange in topology.exchanges:
                arguments: Any = {"alternate-exchange": exchange.alternate} if exchange.alternate else None
                await calls.rpc(
                    channel.exchange_declare(
                        exchange.name, exchange_type=exchange.type, durable=True, arguments=arguments
                    )
                )
            for queue in topology.queues:
                try:
                    await calls.rpc(channel.queue_declare(queue.name, durable=True, arguments=dict(queue.arguments)))
                except TopologyMismatch:
                    if queue.before is None:
                        raise
                    channel = await calls.channel(self._publishing)  # the refusal has closed the other one
                    await calls.rpc(channel.queue_declare(queue.name, durable=True, arguments=dict(queue.before)))
                    older.append(queue.name)
            for binding in topology.bindings:
                if binding.to == "queue":
                    await calls.rpc(channel.queue_bind(binding.destination, binding.source, binding.pattern))
                else:
                    await calls.rpc(channel.exchange_bind(binding.destination, binding.source, binding.pattern))
        finally:
            await calls.quietly(channel.close())
        return tuple(older)

    async def _require_at_least_once(self, topology: Topology) -> None:
        """Raise ConfigurationError where the broker would drop dead letters that it is told to keep; see `flag_off`."""
        asking = next((each for each in topology.queues if "x-dead-letter-strategy" in each.arguments), None)
        if asking is None or not re.match(r"3\.([0-9]|1[01])\.", self.server.version):
            return
        declare = (await calls.channel(self._publishing)).queue_declare
        try:
            stream = declare(f"{asking.name}.probe", durable=False, arguments={"x-queue-type": "stream"})
            await calls.answer(stream, calls.RPC_TIMEOUT)
        except amqp.ChannelPreconditionFailed:
            return
        except Exception as error:
            raise translate.flag_off(f"{error} {self._sender.ended}") or translate.declaring(error) from error

    async def remove(self, topology: Topology) -> None:
        """Delete the queues of `topology`, with all that they hold, and its exchanges. What is gone is not an error."""
        channel = await calls.channel(self._publishing)
        try:
            for queue in topology.queues:
                await calls.rpc(channel.queue_delete(queue.name))
            for exchange in topology.exchanges:
                await calls.rpc(channel.exchange_delete(exchange.name))
        finally:
            await calls.quietly(channel.close())

    async def consume(
        self,
        queue: str,
        *,
        prefetch: int,
        on_delivery: OnDelivery,
        hold: float | None = None,
        on_timeout: OnTimeout | None = None,
        looking: bool = False,
    ) -> RabbitConsumer:
        """Subscribe to `queue` on a channel of its own."""
        channel = await calls.channel(self._consuming)
        channel.closing.add_done_callback(partial(self._on_channel_closed, channel, on_timeout))
        channel.on_consumer_cancel_callbacks.add(partial(self._on_consumer_cancelled, queue, on_timeout))
        await calls.rpc(channel.basic_qos(prefetch_count=prefetch))
        # Its own word goes before every policy and setting of the broker's, from 4.3 on; older ones pass over it.
        arguments = {"x-consumer-timeout": int(hold * 1000)} if hold is not None else None
        # From 4.3 on a nack counts as no failure, and the end of a channel does. Before, everything counts, and of a
        # few hundred requeued by one nack some change places [measured: 3.10.8, 4.0.5, 4.3.6].
        nacks_rest = looking and not self.server.counts_returns
        consumer = RabbitConsumer(queue, channel, leave=self._leave, arguments=arguments, nacks_rest=nacks_rest)
        await consumer.start(
            fast_path.Consuming(self._receiver, channel.number, consumer, on_delivery, self._cannot_settle)
        )
        self._gone.discard(queue)
        self._consumers.add(consumer)
        return consumer

    def publish(
        self, message: Message, *, exchange: str, routing_key: str, timeout: float, mandatory: bool = True
    ) -> Awaitable[Publication]:
        """Publish with confirm; see transport.Session."""
        return self._sender.publisher.publish(
            message, exchange=exchange, routing_key=routing_key, timeout=timeout, mandatory=mandatory
        )

    def watch_blocked(self, callback: Callable[[str | None], None]) -> None:
        """Call `callback` when the broker blocks publishers, and when it stops to."""
        self._sender.watch_blocked(callback)

    async def stats(self, queue: str) -> QueueStats | None:
        """Ask for `queue` without declaring it; one at a time, as aiormq reuses the number of a closing channel."""
        async with self._asking:
            return await self._stats(queue)

    async def _stats(self, queue: str) -> QueueStats | None:
        # A broker that is short of memory or disk reads nothing from a connection that publishes.
        channel = await calls.channel(self._consuming)
        try:
            found = await calls.answer(channel.queue_declare(queue, passive=True), calls.RPC_TIMEOUT)
        except amqp.ChannelNotFoundEntity:
            self._gone.add(queue)
            return None
        except Exception as error:
            raise translate.declaring(error) from error
        finally:
            await calls.quietly(channel.close())
        return QueueStats(queue, found.message_count or 0, found.consumer_count or 0)

    async def missing(self, topology: Topology) -> tuple[str, ...]:
        """Ask for everything without declaring it; whoever else asks meanwhile waits for one answer, not for all."""
        missing: list[str] = []
        channel: AbstractChannel | None = None
        everything: tuple[Exchange | Queue, ...] = (*topology.exchanges, *topology.queues)
        for each in everything:
            async with self._asking:
                channel = channel or await calls.channel(self._consuming)
                declare = channel.exchange_declare if isinstance(each, Exchange) else channel.queue_declare
                try:
                    await calls.answer(declare(each.name, passive=True), calls.RPC_TIMEOUT)
                    if each is not everything[-1]:
                        continue
                except amqp.ChannelNotFoundEntity:
                    missing.append(each.name)
                    self._gone.add(each.name)
                except Exception as error:
                    raise translate.declaring(error) from error
                await calls.quietly(channel.close())
                channel = None
        return tuple(dict.fromkeys(missing))

    async def close(self) -> None:
        """Say goodbye, first on the channels: what is acknowledged goes out before the answer to that comes in."""
        await asyncio.gather(*(consumer.close() for consumer in self._consumers))
        await asyncio.gather(calls.quietly(self._consuming.close()), calls.quietly(self._publishing.close()))
        self._sender.end()
        self._end(BrokerUnreachable("the session was closed"))

    def _on_connection_closed(self, _: Any, error: BaseException | None = None) -> None:
        self._end(translate.lost(error))

    def _on_publishing_closed(self, connection: Any, error: BaseException | None = None) -> None:
        self._sender.end()
        self._on_connection_closed(connection, error)

    def _leave(self, consumer: RabbitConsumer) -> None:
        self._consumers.discard(consumer)
        if not consumer.channel.is_closed:
            self._left.add(consumer.channel)

    def _on_channel_closed(
        self, channel: AbstractChannel, on_timeout: OnTimeout | None, closing: asyncio.Future[Any]
    ) -> None:
        if channel in self._left:
            self._left.discard(channel)
            return
        error = None if closing.cancelled() else closing.exception()
        if on_timeout is not None and (timeout := translate.timeout(error)) is not None:
            on_timeout(timeout)  # as releases before 4.3 say it; the connection has nothing to do with it
        else:
            self._end(translate.lost(error))

    def _on_consumer_cancelled(self, queue: str, on_timeout: OnTimeout | None, _: commands.Basic.Cancel) -> None:
        asking = asyncio.create_task(self._cancelled(queue, on_timeout))
        self._background.add(asking)
        asking.add_done_callback(self._background.discard)

    async def _cancelled(self, queue: str, on_timeout: OnTimeout | None) -> None:
        """Find out why the broker has cancelled a consumer, which it does not say."""
        # Until 4.3 a consumer timeout closes the channel: there it is always the queue's end, or its leader's.
        if on_timeout is not None and not self.server.counts_returns:
            with contextlib.suppress(ChoreoError):
                if await self._survives(queue):
                    on_timeout(translate.timed_out(queue), guessed=True)
                    return
        self._end(reply_codes.cancelled(queue, deleted=queue in self._gone))

    async def _survives(self, queue: str) -> bool:
        """Whether `queue` is there, and was since it was subscribed to.

        One that is being deleted shows for a moment longer, empty and without consumers [measured: 30 ms; 4.3.6]. What
        a consumer held that was too slow is ready again, or another consumer has it.
        """
        clock = asyncio.get_running_loop().time
        deadline = clock() + _DELETION
        while (found := await self.stats(queue)) is not None and queue not in self._gone and not self.lost.done():
            if found.ready or found.consumers or clock() > deadline:
                return True
            await asyncio.sleep(_POLL)
        return False

    def _cannot_settle(self, error: Exception) -> None:
        self._end(BrokerUnreachable(f"what is settled cannot be written: {error!r}"))

    def _end(self, error: ChoreoError) -> None:
        if not self.lost.done():
            self.lost.set_result(error)


def _tls(broker: BrokerUrl) -> ssl.SSLContext | None:
    if not broker.tls:
        return None
    try:
        context = ssl.create_default_context(cafile=broker.cafile)
        if broker.certfile:
            context.load_cert_chain(broker.certfile, broker.keyfile, password=_no_passphrase)
    except OSError as error:
        raise translate.tls_files(error, broker) from error
    return context


def _no_passphrase() -> str:
    """Refuse: OpenSSL would ask on the terminal, and wait there for ever."""
    raise translate.KeyEncrypted("the key is encrypted")
