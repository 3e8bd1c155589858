"""A channel that receives: deliveries as they come, what is settled once per turn of the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from aiormq.abc import DeliveredMessage

from choreo.amqp import decode, frames
from choreo.rabbit.fast_path.protocol import FastPath
from choreo.rabbit.settlements import Settlements
from choreo.transport import Consumer, Delivery, OnDelivery

_MAX_PLACES: Final = 4096


class Consuming:
    """Takes over `channel`, on which nothing is consumed yet. `consumer` is what its deliveries are settled with.

    `failed` is told what keeps settlements from being written: the session is of no use then.
    """

    def __init__(
        self,
        fast_path: FastPath,
        channel: int,
        consumer: Consumer,
        on_delivery: OnDelivery,
        failed: Callable[[Exception], None],
    ) -> None:
        self._fast_path = fast_path
        self._channel = channel
        self._consumer = consumer
        self._on_delivery = on_delivery
        self._failed = failed
        self._settlements = Settlements()
        self._loop = asyncio.get_running_loop()
        self._soon: Callable[..., object] = self._loop.call_soon
        self._writing = False
        self._open = True
        self._places: dict[bytes, tuple[str, str]] = {}  # exchange and routing key repeat from delivery to delivery
        fast_path.take(channel, self)

    def acknowledge(self, tag: int) -> None:
        """Acknowledge, at the end of this turn of the loop. Nothing happens on a channel that is closed."""
        self._settlements.acknowledge(tag)
        if not self._writing:
            self._write_soon()

    def give_back(self, tag: int) -> None:
        """Requeue with basic.nack, at the end of this turn of the loop."""
        self._settlements.give_back(tag)
        if not self._writing:
            self._write_soon()

    def give_back_rest(self) -> None:
        """Give everything back that is not settled, with one basic.nack, at the end of this turn of the loop."""
        self._settlements.give_back_rest()
        self._write_soon()

    async def arrived(self, _: DeliveredMessage) -> None:
        """Do nothing: what aiormq would call this with does not reach it."""

    async def end(self) -> None:
        """Write what is settled. What still comes is not handed on, what is settled later is not written."""
        self._write()
        self._open = False

    def method(self, *_: object) -> bool:
        """Leave everything without content to aiormq."""
        return False

    def content(self, payload: bytes, properties: bytes, body: bytes) -> None:
        """Hand a delivery on."""
        if not self._open:
            return
        behind_tag = 1 + payload[0]
        tag, redelivered = frames.TAG.unpack_from(payload, behind_tag)
        place = payload[behind_tag + 9 :]
        exchange, routing_key = self._places.get(place) or self._place(place)
        message = decode.message(properties, body)
        try:
            self._on_delivery(Delivery(message, exchange, routing_key, tag, bool(redelivered), self._consumer))
        except Exception as error:  # noqa: BLE001 - it is shown, and must not take the connection with it
            # A defect of choreo's, over this one delivery: it stays unsettled, and comes back when the session ends.
            told = {"message": f"choreo failed to take delivery {tag} of {self._consumer.queue}", "exception": error}
            self._loop.call_exception_handler(told)

    def closed(self, *_: object) -> None:
        """Write nothing more: the broker takes back what is not settled."""
        self._open = False

    def writable(self) -> None:
        """Go on: settlements are small, and never held back."""

    def _place(self, place: bytes) -> tuple[str, str]:
        if len(self._places) >= _MAX_PLACES:
            self._places.clear()
        exchange, behind = decode.short(place, 0)
        return self._places.setdefault(place, (exchange, decode.short(place, behind)[0]))

    def _write_soon(self) -> None:
        self._writing = True
        self._soon(self._write)

    def _write(self) -> None:
        self._writing = False
        try:
            if self._open and (settled := self._settlements.frames()):
                self._fast_path.write(
                    b"".join(
                        frames.nack(self._channel, each.tag, multiple=each.multiple, requeue=True)
                        if each.back
                        else frames.ack(self._channel, each.tag, multiple=each.multiple)
                        for each in settled
                    )
                )
        except Exception as error:  # noqa: BLE001 - what was to be written stays unsettled for as long as the session lasts
            self._failed(error)
