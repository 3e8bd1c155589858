"""How much of its queue an agent holds at a time, so that a delivery that ends the process takes no other with it.

Whatever a process holds when it ends counts as delivered once more, and beyond its delivery limit the broker
dead-letters a message, whoever was to blame. So a suspect (see `suspects`) runs while nothing else of its queue is
held. RabbitMQ delivers what came back before what is new. A subscription therefore begins narrow, with one delivery at
a time, and gets its whole window when the next one is not a suspect.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Iterable
from functools import partial
from itertools import chain
from typing import Final

from choreo.errors import BrokerUnreachable, ChoreoError
from choreo.logger import get_logger
from choreo.runtime.holding import BROKERS_OWN
from choreo.runtime.overdue import End, Overdue, is_sure
from choreo.runtime.suspects import PATIENCE, SUSPECT, Turns
from choreo.runtime.tasks import owned
from choreo.transport import Consumer, Delivery, OnDelivery, OnTimeout, Session, came_back

_QUIET: Final = 0.1  # seconds without a delivery, after which nothing in the queue has come back
_GOODBYE: Final = 3.0  # seconds for a subscription that is being made or closed when the worker stops

_logger = get_logger()


def _nothing(_delivery: Delivery, _error: ChoreoError) -> None:
    """Let a run go on, whatever it costs."""


class _Consumer:
    """A consumer that knows what it holds. Suspects are set aside; everything else is handed on as it comes."""

    def __init__(self, on_delivery: OnDelivery, overdue: Overdue) -> None:
        self.suspects: list[Delivery] = []
        self.held: dict[int, Delivery] = {}  # by tag: handed on, or waiting for a run that goes on; not settled
        self.arrivals = 0
        self.heard = asyncio.Event()  # something has arrived
        self.suspected = asyncio.Event()  # a suspect has arrived
        self.idle = asyncio.Event()  # everything that was handed on is settled
        self.idle.set()
        self.ended: ChoreoError | None = None  # why the broker has ended it
        self._on_delivery = on_delivery
        self._overdue = overdue
        self._consumer: Consumer | None = None
        self._cancelled = False
        self._prefetch = 0

    @property
    def hungry(self) -> bool:
        return not self._cancelled and self.ended is None and len(self.held) + len(self.suspects) < self._prefetch

    async def open(self, session: Session, queue: str, prefetch: int, hold: float, on_timeout: OnTimeout) -> None:
        self.queue, self._prefetch = queue, prefetch
        self._consumer = await session.consume(
            queue, prefetch=prefetch, on_delivery=self._arrived, hold=hold, on_timeout=on_timeout
        )

    def hand_on(self, delivery: Delivery) -> None:
        self._hold(delivery)
        self._on_delivery(delivery)

    def acknowledge(self, delivery: Delivery) -> None:
        assert self._consumer is not None
        self._consumer.acknowledge(delivery)
        self._settled(delivery)
        if self._overdue.any:
            self._acknowledge_copies(delivery)

    def _acknowledge_copies(self, delivery: Delivery) -> None:
        newest: Delivery = delivery
        for copy in self._overdue.ended(delivery):
            newest = copy
            if is_sure(copy):
                copy.consumer.acknowledge(copy)
            elif isinstance(copy.consumer, _Consumer) and copy.consumer.ended is None:
                self._on_delivery(copy)  # it may be another message with the same text
            else:
                copy.consumer.requeue(copy)
        if isinstance(newest.consumer, _Consumer) and newest.consumer.ended is not None:
            self._overdue.expect(newest)  # the broker has taken it back, and nothing said here reaches it

    def requeue(self, delivery: Delivery) -> None:
        assert self._consumer is not None
        self._consumer.requeue(delivery)
        self._settled(delivery)
        if self._overdue.any:
            for copy in self._overdue.ended(delivery):
                copy.consumer.requeue(copy)

    def give_back(self) -> None:
        """Requeue the suspects that have not run."""
        assert self._consumer is not None
        while self.suspects:
            self._consumer.requeue(self.suspects.pop())

    async def cancel(self) -> None:
        if self._consumer is not None and not self._cancelled:
            self._cancelled = True
            await self._consumer.cancel()

    async def close(self) -> None:
        if self._consumer is not None:
            await self._consumer.close()

    def _arrived(self, delivery: Delivery) -> None:
        self._consumer, delivery.consumer = delivery.consumer, self  # the first one may come before `consume` returns
        self.arrivals += 1
        if delivery.redelivered:
            self._came_back(delivery)
        else:
            self.hand_on(delivery)
        self.heard.set()

    def _came_back(self, delivery: Delivery) -> None:
        if self._overdue.is_done(delivery):
            delivery.consumer.acknowledge(delivery)
        elif self._overdue.wait(delivery):
            self._hold(delivery)
        elif came_back(delivery) >= SUSPECT:
            self.suspects.append(delivery)
            self.suspected.set()
        else:
            self.hand_on(delivery)

    def _hold(self, delivery: Delivery) -> None:
        if not self.held:
            self.idle.clear()
        self.held[delivery.tag] = delivery

    def _settled(self, delivery: Delivery) -> None:
        self.held.pop(delivery.tag, None)
        if not self.held:
            self.idle.set()


class Subscription:
    """The subscription of one agent in one session: narrow while suspects come, else `prefetch` deliveries wide.

    `on_delivery` gets what is to run. A wide window that meets a suspect, from the crash of another worker, takes
    nothing more, waits until everything else is settled, runs it, and is narrow again. It does not requeue suspects
    to find them again: brokers before 4.3 count that too, and among many workers it would add up.

    `hold`: seconds that the broker is asked to wait for a delivery. When it ends the subscription because one took
    longer, another one takes its place, and what runs goes on; `end` ends a run that costs too many of them.
    """

    def __init__(
        self,
        session: Session,
        queue: str,
        prefetch: int,
        turns: Turns,
        on_delivery: OnDelivery,
        *,
        hold: float = BROKERS_OWN,
        end: End = _nothing,
    ) -> None:
        self.queue = queue
        self.prefetch = prefetch
        self._hold = hold
        self._overdue = Overdue(end, self._held_beside)
        self._ended = asyncio.Event()  # the broker has ended the subscription that receives
        self._heard = False
        self._session = session
        self._turns = turns
        self._on_delivery = on_delivery
        self._consumers: list[_Consumer] = []  # the last one receives, what the others hold is being finished
        self._changing = asyncio.Lock()
        self._closing: set[asyncio.Task[None]] = set()
        self._work: asyncio.Task[None] | None = None
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done, with its exception, when a task of the window has ended; the session is of no use then."""

    async def open(self) -> None:
        """Subscribe, narrowly. Raises what the session raises."""
        narrow = await self._subscribe(1)
        self._work = owned(self._keep(narrow), f"window of {self.queue}", self._fail)

    @property
    def mark(self) -> object:
        """Something that changes with each delivery; None while none can come: the window is full, or changing."""
        if self._changing.locked() or not self._consumers or not self._consumers[-1].hungry:
            return None
        return self._consumers[-1], self._consumers[-1].arrivals

    async def cancel(self) -> None:
        """Ask for no more deliveries, and requeue those that were set aside. The others stay to be settled."""
        with contextlib.suppress(TimeoutError):  # the broker does not answer: the end of the session does the rest
            # One that is just being made would be nobody's; and a request that is cut off may cost the connection. Who
            # waits to change something next must not get to it either.
            async with asyncio.timeout(_GOODBYE), self._changing:
                self._stop()
                if self._work is not None:
                    await asyncio.wait((self._work,))
        self._stop()
        for consumer in self._consumers:
            goodbye = asyncio.ensure_future(consumer.cancel())
            await asyncio.wait((goodbye,), timeout=_GOODBYE)
            consumer.give_back()

    def abandon(self) -> None:
        """Forget everything: the session is gone or going, and what is unsettled is delivered again."""
        self._stop()
        self._consumers.clear()
        self._overdue.clear()

    def _fail(self, _task: str, error: BaseException) -> None:
        if not self.failed.done():
            self.failed.set_exception(error)
            self.failed.exception()  # looked at: where a window is given up, nobody else may do it

    def _stop(self) -> None:
        for task in (self._work, *self._closing):
            if task is not None:
                task.cancel()

    async def _keep(self, narrow: _Consumer) -> None:
        """Receive, and begin again whenever the broker has ended the subscription; the session goes on."""
        while True:
            receiving = asyncio.create_task(self._run(narrow), name=f"subscriptions of {self.queue}")
            ended = asyncio.create_task(self._ended.wait())
            try:
                await asyncio.wait((receiving, ended), return_when=asyncio.FIRST_COMPLETED)
                if receiving.done():
                    await receiving
                async with self._changing:  # one that is just being made would be nobody's
                    receiving.cancel()
                    self._ended.clear()
                    old = self._consumers[-1]
                    await old.cancel()
                    old.give_back()
                    narrow = await self._subscribe(1)
                self._close_later(old)
            finally:
                receiving.cancel()
                ended.cancel()

    def _held_beside(self, delivery: Delivery) -> Iterable[Delivery]:
        return chain.from_iterable(each.held.values() for each in self._consumers if each is not delivery.consumer)

    def _timed_out(self, consumer: _Consumer, error: ChoreoError, *, guessed: bool = False) -> None:
        if consumer.ended is not None:
            return
        if guessed and not consumer.held and not consumer.suspects:
            # Nothing was held, so nothing for too long: its queue was deleted, and another has its name by now. That
            # also goes for a consumer that was replaced meanwhile: its successor receives from that other queue.
            reason = "the queue was deleted, and what it held is gone; somebody has declared it again"
            self._fail("", BrokerUnreachable(f"the broker cancelled the consumer of {self.queue!r}: {reason}"))
            return
        if consumer not in self._consumers:
            return
        consumer.ended = error
        self._overdue.taken_back(consumer.held.values(), error)
        _logger.error(
            "consumer timeout",
            queue=self.queue,
            error=error.message,
            way_out=error.way_out,
            held=len(consumer.held),
            next="what runs goes on; what comes back meanwhile waits for it",
        )
        if consumer is self._consumers[-1]:
            self._ended.set()

    async def _run(self, narrow: _Consumer) -> None:
        await self._first(narrow)
        if not self._heard:
            self._heard = True
            self._turns.heard()
        while True:
            while narrow.suspects or self.prefetch == 1:
                narrow.heard.clear()
                await self._alone(narrow)
                await (self._first(narrow) if self.prefetch > 1 else narrow.heard.wait())
            wide = await self._replace(narrow, self.prefetch)
            await wide.suspected.wait()
            narrow = await self._replace(wide, 1)
            await self._first(narrow)

    @staticmethod
    async def _first(narrow: _Consumer) -> None:
        """Wait for the next delivery; none at all is an answer too."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_QUIET):
                await narrow.heard.wait()

    async def _alone(self, consumer: _Consumer) -> None:
        """Run what `consumer` has set aside, one by one, while nothing else of this queue runs."""
        if not consumer.suspects:
            return
        for each in tuple(self._consumers):
            await each.idle.wait()
        random.shuffle(consumer.suspects)
        consumer.suspects.sort(key=came_back, reverse=True)
        while consumer.suspects:
            async with self._turns.take(consumer.suspects[-1]):
                consumer.hand_on(consumer.suspects.pop())
                await consumer.idle.wait()

    async def _replace(self, old: _Consumer, prefetch: int) -> _Consumer:
        """Subscribe anew, when `old` takes nothing more and its suspects have run.

        One after the other: side by side the two would change the order of deliveries.
        """
        async with self._changing:
            await old.cancel()
        try:
            async with asyncio.timeout(PATIENCE):
                await self._alone(old)
        except TimeoutError:
            old.give_back()
        async with self._changing:
            new = await self._subscribe(prefetch)
        self._close_later(old)
        return new

    async def _subscribe(self, prefetch: int) -> _Consumer:
        consumer = _Consumer(self._on_delivery, self._overdue)
        on_timeout = partial(self._timed_out, consumer)
        await consumer.open(self._session, self.queue, prefetch, self._hold, on_timeout)
        self._consumers.append(consumer)
        return consumer

    def _close_later(self, old: _Consumer) -> None:
        task = owned(self._close(old), f"closing a window of {self.queue}", self._fail)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _close(self, old: _Consumer) -> None:
        """Close `old` when all that it holds is settled."""
        await old.idle.wait()
        async with self._changing:
            self._consumers.remove(old)
            await old.close()
