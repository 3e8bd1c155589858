"""What a session publishes with: a channel, opened again when the broker closes it, and replaced after a nack."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final

import aio_pika
from aiormq.abc import AbstractChannel

from choreo.errors import BrokerUnreachable, ChoreoError
from choreo.rabbit import calls
from choreo.rabbit.fast_path import FastPath, Publishing

RENEWAL: Final = 1.0  # seconds, at least, between two channels that publish
_GONE: Final = "the connection was lost before the confirmation"


class Sender:
    """Publishes on `connection`, through the fast path `under` it. `lost` is told what ends the session.

    `publisher` is what to publish with; another one takes its place after a nack.
    """

    def __init__(self, connection: aio_pika.Connection, under: FastPath, lost: Callable[[ChoreoError], None]) -> None:
        self._connection = connection
        self._fast_path = under
        self._lost = lost
        self._publishers: set[Publishing] = set()  # the present one, and those that still have answers to come
        self._left: set[AbstractChannel] = set()  # channels that we close ourselves
        self._background: set[asyncio.Task[None]] = set()
        self._renewed = -RENEWAL
        self._unblocked = asyncio.Event()
        self._unblocked.set()
        self._on_blocked: Callable[[str | None], None] = lambda _: None
        self.publisher = self._new()
        under.on_blocked = self._blocked

    async def open(self) -> None:
        """Open the first channel."""
        await self._open(self.publisher)

    def watch_blocked(self, callback: Callable[[str | None], None]) -> None:
        """Call `callback` when the broker blocks publishers, and when it stops to."""
        self._on_blocked = callback

    @property
    def ended(self) -> str | None:
        """What the broker said when it closed the connection."""
        return self._fast_path.ended[1] if self._fast_path.ended is not None else None

    def end(self) -> None:
        """Answer whatever has no answer: the connection is gone."""
        self._unblocked.set()
        for publisher in self._publishers:
            publisher.end(_GONE)

    def _new(self) -> Publishing:
        frame_max = calls.underlay(self._connection).connection_tune.frame_max
        publisher = Publishing(self._fast_path, frame_max, self._renew_soon, self._unanswered)
        self._publishers.add(publisher)
        return publisher

    async def _open(self, publisher: Publishing, number: int | None = None) -> None:
        channel = await calls.channel(self._connection, number, confirms=True)
        publisher.use(channel)
        channel.closing.add_done_callback(partial(self._closed, publisher, channel))

    def _closed(self, publisher: Publishing, channel: AbstractChannel, _: asyncio.Future[Any]) -> None:
        if channel in self._left:
            self._left.discard(channel)
        elif self._connection.transport is not None:
            self._in_background(self._open_again(publisher, channel.number))

    async def _open_again(self, publisher: Publishing, number: int) -> None:
        await self._unblocked.wait()  # a broker that reads nothing opens no channel either
        if self._connection.transport is not None:
            await self._open(publisher, number)

    def _blocked(self, reason: str | None) -> None:
        if reason is None:
            self._unblocked.set()
        else:
            self._unblocked.clear()
        self._on_blocked(reason)

    def _unanswered(self, seconds: float) -> None:
        self._lost(BrokerUnreachable(f"the broker has answered no publish for {seconds:.0f} s"))

    def _renew_soon(self) -> None:
        """Publish on another channel after a nack.

        RabbitMQ 3.10: a channel whose first publish finds a quorum queue without a leader, its node being down, refuses
        all later ones too, long after the election [measured: 3.10.8; 4.0.5 and 4.3.6 do not].
        """
        now = asyncio.get_running_loop().time()
        if now - self._renewed >= RENEWAL and self._unblocked.is_set():
            self._renewed = now
            self._in_background(self._renew())

    async def _renew(self) -> None:
        before, publisher = self.publisher, self._new()
        await self._open(publisher)
        self.publisher = publisher
        await before.settled()
        self._publishers.discard(before)
        self._left.add(before.channel)
        await calls.quietly(before.channel.close())

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Do `work` on the connection; that it cannot be done is the end of the session."""

        async def do() -> None:
            try:
                await work
            except ChoreoError as error:
                self._lost(error)
            except Exception as error:  # noqa: BLE001 - whatever it is: without its channel the session publishes nothing
                self._lost(BrokerUnreachable(f"no channel to publish on: {error!r}"))

        task = asyncio.create_task(do())
        self._background.add(task)
        task.add_done_callback(self._background.discard)
