"""Looking into a queue and leaving it as it was: nothing lost, nothing out of order. AMQP alone, on a quorum queue.

AMQP knows no looking without taking. Messages are taken by the *hand*: so many from the head of the queue and no more.
What a hand has not settled goes back when it is closed, in the order in which it came. (Closing a channel keeps that
order; of 300 messages requeued one by one some changed places [measured: 3.10.8].) Until RabbitMQ 4.3 every way back
counts towards a delivery limit that a policy may have set [measured: 3.10.8, 4.0.5]; `choreo.runtime.policies` says so.

What was requeued lies before what has never been taken, and goes out again first in, first out. To look at fewer of
those would put these few behind the others [measured: 3.10.8, 4.3.6]. So before anything goes back, hands are taken
until one ends with a message that was never taken before; then all goes back in order. A first look thus takes no more
than what was asked for, a later one at least what was taken earlier.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

from choreo.errors import ChoreoError
from choreo.transport import Consumer, Delivery, QueueStats, Session

MOST_AT_ONCE: Final = 65_535  # the largest prefetch that AMQP can say
SILENCE: Final = 3.0  # seconds without a message although there were some: somebody else has taken them
PATIENCE: Final = 2.0  # seconds until what was acknowledged or requeued shows in the queue's figures
POLL: Final = 0.005  # seconds between two looks at them
# RabbitMQ hands a quorum queue 32 settlements at a time. Those that wait for their turn are lost when the channel is
# closed, and their messages come back [measured: 117 of 150 acknowledged one by one; 3.10.8, 4.3.6]. So never so many
# at once, and a hand that holds nothing is closed only when the queue no longer counts its consumer.
UNHURRIED: Final = 25  # acknowledgements between two pauses


class Hand:
    """A subscription that takes `size` messages at most, and holds them until they are settled."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.taken = 0
        self.settled = 0
        self.seen_before = False  # its last one had been taken and requeued at some time
        self.full = asyncio.Event()
        self.consumer: Consumer | None = None

    def arrived(self, delivery: Delivery) -> None:
        """Count one more."""
        self.taken += 1
        self.seen_before = delivery.redelivered
        if self.taken == self.size:
            self.full.set()


class Hands:
    """All hands of one look at `queue`; as a context manager, what they hold goes back in order at the end.

    `others`: consumers that the queue has already.
    """

    def __init__(self, session: Session, queue: str, others: int) -> None:
        self.taken = 0
        self._others = others
        self._session = session
        self._queue = queue
        self._open: list[Hand] = []
        self._last: Hand | None = None
        self._patient = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._take_what_was_seen_before()
        finally:
            while self._open:
                await self._give_back(self._open.pop(0))

    async def search(
        self, ready: int, first: int, see: Callable[[Hand, Delivery], None], found: Callable[[], bool]
    ) -> None:
        """Let `see` have the `first` messages of `ready`, and further ones until all is `found`.

        Raises what ended the session.
        """
        size = min(first, ready)
        while size > 0:
            hand = await self.take(size, see)
            if hand.taken < hand.size or found():
                break
            size = min(self._stride(), ready - self.taken)

    async def take(self, size: int, see: Callable[[Hand, Delivery], None]) -> Hand:
        """Take up to `size` messages, fewer when no more come, and let `see` have each as it arrives.

        Raises what ended the session.
        """
        hand = Hand(min(size, MOST_AT_ONCE))

        def on_delivery(delivery: Delivery) -> None:
            see(hand, delivery)
            hand.arrived(delivery)

        hand.consumer = await self._session.consume(
            self._queue, prefetch=hand.size, on_delivery=on_delivery, looking=True
        )
        self._open.append(hand)
        self._last = hand
        await self._fill(hand)
        await hand.consumer.cancel()
        self.taken += hand.taken
        return hand

    async def settle(self, hand: Hand, delivery: Delivery) -> None:
        """Acknowledge one of the messages of `hand`, which is then gone."""
        delivery.consumer.acknowledge(delivery)
        hand.settled += 1
        if hand.settled % UNHURRIED == 0:
            await self._stats()

    async def close_empty(self) -> None:
        """Close the hands that hold nothing any more."""
        for hand in [each for each in self._open if each.settled == each.taken]:
            self._open.remove(hand)
            await self._give_back(hand)

    async def _take_what_was_seen_before(self) -> None:
        """Take on until those that are held can go back without changing places with others; see above."""
        with suppress(ChoreoError):
            while self._last is not None and self._last.seen_before and self._last.taken == self._last.size:
                stats = await self._stats() if any(hand.taken > hand.settled for hand in self._open) else None
                if stats is None or not stats.ready:
                    return
                await self.take(min(self._stride(), stats.ready), lambda _hand, _delivery: None)

    def _stride(self) -> int:
        """Return the size of a further hand: few hands even for a long way, and not much further than needed."""
        return max(10, self.taken // 4)

    async def _fill(self, hand: Hand) -> None:
        """Wait until `hand` is full, or nothing has come for a while."""
        full = asyncio.ensure_future(hand.full.wait())
        try:
            before = -1
            while not full.done() and before < hand.taken:
                before = hand.taken
                await asyncio.wait((full, self._session.lost), timeout=SILENCE, return_when=asyncio.FIRST_COMPLETED)
                if self._session.lost.done() and not full.done():
                    raise self._session.lost.result()
        finally:
            full.cancel()

    async def _give_back(self, hand: Hand) -> None:
        """Close `hand`, and see its messages back in the queue: those of the next one have to lie behind them."""
        assert hand.consumer is not None
        held = hand.taken - hand.settled
        if not held:
            await self._until(lambda stats: stats.consumers <= self._others + len(self._open))
        before = await self._stats() if held else None
        await hand.consumer.close()
        if before is not None:
            await self._until(lambda stats: stats.ready >= before.ready + held)

    async def _until(self, done: Callable[[QueueStats], bool]) -> None:
        """Wait a little for the queue to be as it should; once in vain is enough, somebody else is busy with it."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + PATIENCE
        while self._patient and (stats := await self._stats()) is not None and not done(stats):
            self._patient = loop.time() < deadline
            await asyncio.sleep(POLL)

    async def _stats(self) -> QueueStats | None:
        """Return how the queue is, None when nobody tells."""
        if self._session.lost.done():
            return None
        with suppress(ChoreoError):
            return await self._session.stats(self._queue)
        return None
