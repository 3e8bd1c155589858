"""What a test of broker behaviour needs of a broker: the core, or whoever speaks AMQP, behind the same calls."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Protocol

import aiormq
from aiormq.abc import AbstractChannel, AbstractConnection, DeliveredMessage
from pamqp import commands

from choreo.broker.core import (
    Ack,
    AmqpError,
    BasicProperties,
    Broker,
    Cancelled,
    Channel,
    Connection,
    Deliver,
    Got,
    Nack,
    Returned,
    Sent,
)

SHOWN = ("expiration", "priority", "message_id", "delivery_mode", "reply_to")


@dataclass
class Closed(Exception):
    """The broker has closed the channel or the connection; 0 when it did not say why."""

    code: int
    text: str


@dataclass
class Arrived:
    """A message that a client got."""

    body: str
    tag: int
    redelivered: bool
    exchange: str
    routing_key: str
    headers: dict[str, Any]
    properties: dict[str, Any]
    left: int | None = None  # of basic.get


@dataclass
class Inbox:
    """What a consumer got so far."""

    tag: str
    got: list[Arrived] = field(default_factory=list)
    cancelled: bool = False

    @property
    def bodies(self) -> list[str]:
        return [each.body for each in self.got]


class Client(Protocol):
    """A connection with one channel. Methods raise Closed. `returned`: the bodies that came back."""

    returned: list[str]

    async def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of `choreo.broker.core.Channel`; for queue_declare returns (name, messages, consumers)."""
        ...

    async def publish(
        self, body: str, exchange: str = "", key: str = "", *, mandatory: bool = False, **properties: Any
    ) -> str:
        """Publish and return what became of it: ack, nack or returned; sent where nobody says so."""
        ...

    async def consume(self, queue: str, **options: Any) -> Inbox: ...

    async def get(self, queue: str, *, no_ack: bool = False) -> Arrived | None: ...

    async def close(self) -> None: ...


class Driver(Protocol):
    """A broker."""

    async def client(self, beside: Client | None = None, *, confirms: bool = True) -> Client:
        """Return a client, on a connection of its own or `beside` another one on the same."""
        ...

    async def wait(self, seconds: float) -> None:
        """Let time pass."""
        ...

    async def rest(self) -> None:
        """Return when the broker has nothing more to say."""
        ...


class EmbeddedClient:
    """A client of the embedded core."""

    def __init__(self, driver: EmbeddedDriver, connection: Connection, number: int, *, confirms: bool) -> None:
        self.connection = connection
        self.channel: Channel = connection.open_channel(number, self.take)
        self.inboxes: dict[str, Inbox] = {}
        self.answers: list[str] = []
        self.returned: list[str] = []
        if confirms:
            self.channel.confirm_select()

    def take(self, sent: Sent) -> None:
        match sent:
            case Deliver():
                self.inboxes[sent.consumer_tag].got.append(_arrived(sent))
            case Cancelled(tag):
                self.inboxes[tag].cancelled = True
            case Returned():
                self.answers.append("returned")
                self.returned.append(sent.body.decode())
            case Ack() | Nack():
                self.answers.append(type(sent).__name__.lower())

    async def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._closing(lambda: getattr(self.channel, method)(*args, **kwargs))

    def _closing(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except AmqpError as error:
            raise Closed(error.code, error.text) from error

    async def publish(
        self, body: str, exchange: str = "", key: str = "", *, mandatory: bool = False, **properties: Any
    ) -> str:
        content = BasicProperties(**{"delivery_mode": 2, **properties})
        self.answers.clear()
        self._closing(lambda: self.channel.publish(exchange, key, content, body.encode(), mandatory=mandatory))
        return self.answers[0] if self.answers else "sent"

    async def consume(self, queue: str, **options: Any) -> Inbox:
        tag = options.pop("consumer_tag", f"c{len(self.inboxes)}")
        inbox = self.inboxes[tag] = Inbox(tag)
        self._closing(lambda: self.channel.consume(queue, tag, **options))
        return inbox

    async def get(self, queue: str, *, no_ack: bool = False) -> Arrived | None:
        got = self._closing(lambda: self.channel.get(queue, no_ack=no_ack))
        return got and _arrived(got)

    async def close(self) -> None:
        self.channel.close()


def _arrived(sent: Deliver | Got) -> Arrived:
    content = sent.properties
    assert isinstance(content, BasicProperties)
    properties = {name: getattr(content, name) for name in SHOWN}
    headers = dict(content.headers or {})
    left = sent.messages if isinstance(sent, Got) else None
    where = (sent.delivery_tag, sent.redelivered, sent.exchange, sent.routing_key)
    return Arrived(sent.body.decode(), *where, headers, properties, left)


class EmbeddedDriver:
    """The embedded core."""

    def __init__(self) -> None:
        names, self._numbers = count(), count(1)
        self.broker = Broker(1_700_000_000.0, lambda: f"made-{next(names)}")

    async def client(self, beside: Client | None = None, *, confirms: bool = True) -> Client:
        connection = beside.connection if isinstance(beside, EmbeddedClient) else self.broker.connect()
        return EmbeddedClient(self, connection, next(self._numbers), confirms=confirms)

    async def wait(self, seconds: float) -> None:
        self.broker.advance(self.broker.now + seconds)

    async def rest(self) -> None:
        pass


class AmqpClient:
    """A client over AMQP."""

    def __init__(self, connection: AbstractConnection, channel: AbstractChannel) -> None:
        self.connection = connection
        self.channel = channel
        self.inboxes: dict[str, Inbox] = {}
        assert isinstance(channel, aiormq.Channel)
        self.returned: list[str] = []
        channel.on_return_callbacks.add(lambda message: self.returned.append(message.body.decode()))

    async def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        names = {"cancel": "basic_cancel", "ack": "basic_ack", "nack": "basic_nack", "reject": "basic_reject"}
        names |= {"qos": "basic_qos", "recover": "basic_recover", "confirm_select": "confirm_delivery"}
        if method in ("exchange_bind", "exchange_unbind"):
            kwargs |= dict(zip(("destination", "source", "routing_key"), args, strict=False))
            args = ()
        if method in ("queue_bind", "queue_unbind"):
            kwargs |= dict(zip(("queue", "exchange", "routing_key"), args, strict=False))
            args = ()
        if method == "exchange_declare":
            kwargs |= dict(zip(("exchange", "exchange_type"), args, strict=False))
            args = ()
        if method == "qos" and args:
            kwargs["prefetch_count"], args = args[0], ()
        done = await self._closing(lambda: getattr(self.channel, names.get(method, method))(*args, **kwargs))
        if method in ("ack", "nack", "reject"):
            await self._closing(self.echo)  # they are not answered
        match done:
            case commands.Queue.DeclareOk():
                return done.queue, done.message_count, done.consumer_count
            case commands.Queue.PurgeOk() | commands.Queue.DeleteOk():
                return done.message_count
        return done

    async def echo(self) -> None:
        """Hear what the broker says to all that was said on this channel: it answers in order."""
        await self.channel.flow(active=True)

    async def _closing(self, call: Callable[[], Awaitable[Any]]) -> Any:
        try:
            return await asyncio.wait_for(call(), 10)
        except aiormq.exceptions.DeliveryError:
            raise
        except (aiormq.exceptions.AMQPError, RuntimeError) as error:
            closing = self.channel.closing
            await asyncio.wait({closing}, timeout=10)  # it is told a moment later
            why = closing.exception() if closing.done() and not closing.cancelled() else None
            for text in map(str, (error, why)):
                code = next((code for code, name in NAMES.items() if text.startswith(name)), None)
                if code:
                    raise Closed(code, text) from error
            raise Closed(0, repr(why or error)) from error

    async def publish(
        self, body: str, exchange: str = "", key: str = "", *, mandatory: bool = False, **properties: Any
    ) -> str:
        content = commands.Basic.Properties(**{"delivery_mode": 2, **properties})
        assert isinstance(self.channel, aiormq.Channel)
        if mandatory and not self.channel.publisher_confirms:  # else aiormq drops what is returned
            content.message_id = content.message_id or body
            self.channel.message_id_delivery_tag[content.message_id] = tag = -len(self.channel.confirmations) - 1
            self.channel.confirmations[tag] = asyncio.get_running_loop().create_future()
        try:
            done = await self._closing(
                lambda: self.channel.basic_publish(
                    body.encode(), exchange=exchange, routing_key=key, properties=content, mandatory=mandatory
                )
            )
        except aiormq.exceptions.PublishError:
            return "returned"
        except aiormq.exceptions.DeliveryError:
            return "nack"
        return {"Basic.Ack": "ack", "Basic.Nack": "nack"}[done.name] if done is not None else "sent"

    async def consume(self, queue: str, **options: Any) -> Inbox:
        tag = options.pop("consumer_tag", f"c{len(self.inboxes)}")
        inbox = self.inboxes[tag] = Inbox(tag)

        async def take(message: DeliveredMessage) -> None:
            inbox.got.append(_delivered(message))

        await self._closing(lambda: self.channel.basic_consume(queue, take, consumer_tag=tag, **options))
        return inbox

    async def get(self, queue: str, *, no_ack: bool = False) -> Arrived | None:
        got = await self._closing(lambda: self.channel.basic_get(queue, no_ack=no_ack))
        return None if isinstance(got.delivery, commands.Basic.GetEmpty) else _delivered(got)

    async def close(self) -> None:
        await self.channel.close()


NAMES = {
    403: "ACCESS_REFUSED",
    404: "NOT_FOUND",
    405: "RESOURCE_LOCKED",
    406: "PRECONDITION_FAILED",
    504: "CHANNEL_ERROR",
    530: "NOT_ALLOWED",
    540: "NOT_IMPLEMENTED",
    541: "INTERNAL_ERROR",
}


def _delivered(message: DeliveredMessage) -> Arrived:
    content = message.header.properties
    properties = {name: getattr(content, name) for name in SHOWN}
    frame = message.delivery
    assert isinstance(frame, commands.Basic.Deliver | commands.Basic.GetOk)
    assert frame.delivery_tag is not None
    left = getattr(frame, "message_count", None)
    headers, key = dict(content.headers or {}), frame.routing_key or ""
    redelivered = bool(frame.redelivered)
    body = message.body.decode()
    return Arrived(body, frame.delivery_tag, redelivered, frame.exchange, key, headers, properties, left)


class AmqpDriver:
    """A broker that is reached over AMQP; `pause`: seconds that pass until it has nothing more to say."""

    def __init__(self, url: str, pause: float) -> None:
        self.url = url
        self.pause = pause
        self.clients: list[AmqpClient] = []

    async def client(self, beside: Client | None = None, *, confirms: bool = True) -> Client:
        connection = beside.connection if isinstance(beside, AmqpClient) else await aiormq.connect(self.url)
        client = AmqpClient(
            connection, await connection.channel(publisher_confirms=confirms, on_return_raises=confirms)
        )
        self.clients.append(client)
        return client

    async def wait(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def rest(self) -> None:
        for _ in range(2):  # what one client said may lead to what another one hears
            for client in self.clients:
                if not client.channel.is_closed:
                    await client.echo()
        await asyncio.sleep(self.pause)

    async def close(self) -> None:
        for connection in {client.connection for client in self.clients}:
            await connection.close()
