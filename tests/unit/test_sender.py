"""Channels that publish come and go; every publish is answered whichever of them it was given to."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import aio_pika
from pamqp import commands, frame

from choreo.errors import ChoreoError
from choreo.message import Message
from choreo.rabbit.fast_path import FastPath
from choreo.rabbit.sender import Sender
from choreo.transport import Unknown
from tests.waiting import eventually


class Connection:
    """As much of a connection as opens channels, one number after the other."""

    def __init__(self) -> None:
        self.numbers: list[int | None] = []
        self.connection_tune = SimpleNamespace(frame_max=4096)
        self.transport = SimpleNamespace(connection=self)

    async def channel(self, channel_number: int | None, publisher_confirms: bool) -> Any:
        assert publisher_confirms
        self.numbers.append(channel_number)
        number = channel_number or len(self.numbers)
        return SimpleNamespace(number=number, closing=asyncio.get_running_loop().create_future(), close=self._nothing)

    async def _nothing(self) -> None:
        return


class Desk:
    """A sender on a fast path without a socket."""

    def __init__(self) -> None:
        self.fast_path = FastPath(heartbeat=0)
        self.fast_path.write = self._written  # type: ignore[method-assign]
        self.connection = Connection()
        self.lost: list[ChoreoError] = []
        self.sender = Sender(cast("aio_pika.Connection", self.connection), self.fast_path, self.lost.append)

    def _written(self, frames: bytes) -> None:
        """Take it, and say nothing."""

    def publish(self, key: str) -> asyncio.Future[Any]:
        message = Message(b"x", message_id=key)
        answer = self.sender.publisher.publish(message, exchange="e", routing_key=key, timeout=60, mandatory=True)
        return asyncio.ensure_future(answer)

    def nack(self, channel: int) -> None:
        payload = frame.marshal(commands.Basic.Nack(1), channel)[11:-1]
        self.fast_path.owners[channel].method(60 << 16 | 120, payload)


async def test_publishes_of_a_channel_that_was_replaced_are_answered_when_the_connection_goes() -> None:
    """One was nacked, which brings another channel; what waited for the socket still belongs to the first."""
    desk = Desk()
    await desk.sender.open()
    nacked = desk.publish("a")
    await asyncio.sleep(0)
    desk.fast_path.fill(full=True)
    waiting = [desk.publish(key) for key in "bcd"]
    desk.nack(1)
    await nacked
    await eventually(lambda: len(desk.connection.numbers) == 2)
    later = desk.publish("e")
    desk.sender.end()
    results = await asyncio.wait_for(asyncio.gather(*waiting, later), 2)
    assert all(isinstance(each, Unknown) for each in results)


async def test_no_channel_is_asked_for_while_the_broker_reads_nothing() -> None:
    """It would not answer, and the session would be given up for it."""
    desk = Desk()
    await desk.sender.open()
    answer = desk.publish("a")
    await asyncio.sleep(0)
    desk.fast_path.block("low on memory")
    desk.nack(1)
    await answer
    await asyncio.sleep(0.05)
    assert len(desk.connection.numbers) == 1
    assert desk.lost == []


async def test_a_channel_that_cannot_be_had_ends_the_session_whatever_the_reason() -> None:
    """Without one it would look alive, and every publish would wait for its deadline."""
    desk = Desk()
    await desk.sender.open()
    answer = desk.publish("a")
    await asyncio.sleep(0)

    def broken() -> Any:
        raise RuntimeError("no channel")

    desk.sender._new = broken  # type: ignore[method-assign]
    desk.nack(1)
    await answer
    await eventually(lambda: desk.lost)
