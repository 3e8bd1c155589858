"""Consuming and publishing through aiormq's own channels, in place of the lane: slower, and on the trodden path.

A message that aiormq cannot read (a text that is not UTF-8, a wild timestamp, a deep table) ends the session here.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiormq import exceptions as amqp
from aiormq.abc import AbstractChannel, DeliveredMessage
from aiormq.connection import TCPTransportFactory, TLSTransportFactory, TransportFactory
from pamqp import commands
from yarl import URL

from choreo import forks
from choreo.amqp import encode
from choreo.envelope import new_id
from choreo.message import Message
from choreo.rabbit.settlements import Settlements
from choreo.transport import Confirmed, Consumer, Delivery, OnDelivery, Publication, Refused, Unknown, nacked

_CONFIRMED: Final = Confirmed()


class Transports(TransportFactory):
    """Makes what aiormq would make for itself, and keeps it from children that are forked."""

    async def create(self, url: URL, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect."""
        factory = TLSTransportFactory() if url.scheme == "amqps" else TCPTransportFactory()
        reader, writer = await factory.create(url, **options)
        forks.keep_transport_private(writer.transport)
        return reader, writer


class Consuming:
    """Deliveries and settlements of `channel`; the same surface as the lane's."""

    def __init__(
        self,
        channel: AbstractChannel,
        consumer: Consumer,
        on_delivery: OnDelivery,
        failed: Callable[[Exception], None],
    ) -> None:
        self._channel = channel
        self._failed = failed
        self._consumer = consumer
        self._on_delivery = on_delivery
        self._settlements = Settlements()
        self._writing: asyncio.Task[None] | None = None

    def acknowledge(self, tag: int) -> None:
        """Acknowledge, with all others of this turn of the loop."""
        self._settlements.acknowledge(tag)
        self._write_soon()

    def give_back(self, tag: int) -> None:
        """Give back with basic.nack."""
        self._settlements.give_back(tag)
        self._write_soon()

    async def end(self) -> None:
        """Return when everything that is settled is written."""
        if self._writing is not None:
            await self._writing

    async def arrived(self, message: DeliveredMessage) -> None:
        """Hand a delivery on."""
        frame = message.delivery
        assert isinstance(frame, commands.Basic.Deliver)
        self._on_delivery(
            Delivery(
                message=_message(message),
                exchange=frame.exchange or "",
                routing_key=frame.routing_key or "",
                tag=frame.delivery_tag or 0,
                redelivered=bool(frame.redelivered),
                consumer=self._consumer,
            )
        )

    def _write_soon(self) -> None:
        if self._writing is None:
            self._writing = asyncio.create_task(self._write())

    async def _write(self) -> None:
        try:
            await self._write_all()
        except Exception as error:  # noqa: BLE001 - what was to be written stays unsettled for as long as the session lasts
            self._failed(error)
        finally:
            self._writing = None

    async def _write_all(self) -> None:
        while frames := self._settlements.frames():
            for tag, multiple, back in frames:
                if back:
                    await _if_open(self._channel.basic_nack(tag, requeue=True, wait=False))
                else:
                    await _if_open(self._channel.basic_ack(tag, multiple=multiple, wait=False))


class Publishing:
    """Publishes on `channel`; the same surface as the lane's."""

    def __init__(self, on_nack: Callable[[], None]) -> None:
        self._on_nack = on_nack
        self._in_flight: dict[str, asyncio.Future[None]] = {}
        self._count = 0

    def use(self, channel: AbstractChannel) -> None:
        """Publish on `channel` from now on."""
        self.channel = channel

    async def settled(self) -> None:
        """Return when everything that was asked for has its answer."""
        await asyncio.gather(*self._in_flight.values())

    def end(self, reason: str) -> None:
        """Do nothing: aiormq ends what waits on a connection that ends."""

    async def publish(
        self, message: Message, *, exchange: str, routing_key: str, timeout: float, mandatory: bool
    ) -> Publication:
        """Publish and wait for the answer, at most `timeout` seconds."""
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

    async def _publish(self, message: Message, exchange: str, routing_key: str, *, mandatory: bool) -> Publication:
        # aiormq knows a returned message by its id alone: two in flight with one id would get each other's answer.
        name = message.message_id or new_id()
        while (before := self._in_flight.get(name)) is not None:
            await asyncio.shield(before)
        properties = _Properties(message, name)
        try:
            properties.marshal()
        except (ValueError, TypeError, RecursionError, struct.error) as error:
            return Refused("rejected", f"it cannot be written: {error}")
        alone, number = not self._in_flight, self._count + 1
        self._count = number
        done = self._in_flight[name] = asyncio.get_running_loop().create_future()
        try:
            await self.channel.basic_publish(
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
                return Refused("missing", f"there is no exchange {exchange!r}")
            raise
        except amqp.DeliveryError:
            self._on_nack()
            return nacked(exchange, routing_key)
        finally:
            del self._in_flight[name]
            done.set_result(None)
        return _CONFIRMED


class _Properties(commands.Basic.Properties):
    """The properties of a message, written by this room instead of by pamqp."""

    def __init__(self, message: Message, message_id: str) -> None:
        super().__init__(message_id=message_id)  # aiormq tells returned messages by it
        self._message = message

    def marshal(self) -> bytes:
        """Return flags and values."""
        return encode.properties(self._message, self.message_id)


def _message(delivered: DeliveredMessage) -> Message:
    properties = delivered.header.properties
    return Message(
        body=delivered.body,
        headers=properties.headers or {},
        content_type=properties.content_type,
        content_encoding=properties.content_encoding,
        message_id=properties.message_id,
        correlation_id=properties.correlation_id,
        type=properties.message_type,
        app_id=properties.app_id,
        reply_to=properties.reply_to,
        priority=properties.priority,
        timestamp=properties.timestamp,
    )


async def _if_open(settle: Awaitable[None]) -> None:
    try:
        await settle
    except (amqp.ChannelInvalidStateError, amqp.AMQPError):
        return
