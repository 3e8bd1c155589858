"""Windows under a broker that takes deliveries back in random order: all is settled, and nothing runs beside itself.

Seeded: a run that fails is played again by its number.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from choreo.errors import ChoreoError
from choreo.message import DELIVERY_COUNT, Message
from choreo.runtime.subscription import Subscription
from choreo.runtime.suspects import Turns
from choreo.transport import Delivery, OnDelivery, OnTimeout
from tests.waiting import in_virtual_time

SEEDS = 40
STEPS = 120


class Consumer:
    """A channel with one consumer, as a broker sees it."""

    def __init__(self, queue: Queue, prefetch: int, on_delivery: OnDelivery, on_timeout: OnTimeout) -> None:
        self.queue = "queue"
        self.receiving = self.open = True
        self.unsettled: dict[int, Delivery] = {}
        self.here: set[int] = set()  # tags of what has arrived: nothing else is held for long
        self.on_timeout = on_timeout
        self._queue, self._prefetch, self._on_delivery = queue, prefetch, on_delivery
        self._tag = 0

    @property
    def hungry(self) -> bool:
        return self.open and self.receiving and len(self.unsettled) < self._prefetch

    def take(self, message: Message, *, redelivered: bool) -> None:
        self._tag += 1
        delivery = Delivery(message, "", "", self._tag, redelivered=redelivered, consumer=self)
        self.unsettled[self._tag] = delivery
        asyncio.get_running_loop().call_soon(self._arrive, delivery)

    def _arrive(self, delivery: Delivery) -> None:
        if self.open and delivery.tag in self.unsettled:
            self.here.add(delivery.tag)
            self._on_delivery(delivery)

    def _settled(self, delivery: Delivery) -> bool:
        if self.open and self.unsettled.pop(delivery.tag, None) is not None:
            return True
        assert not self.open or delivery.tag in self._queue.taken[self], "settled twice on an open channel"
        return False

    def acknowledge(self, delivery: Delivery) -> None:
        if self._settled(delivery):
            self._queue.acknowledged(delivery)

    def requeue(self, delivery: Delivery) -> None:
        if self._settled(delivery):
            self._queue.back(delivery, counts=False)

    async def cancel(self) -> None:
        await asyncio.sleep(random.random() / 10)
        self.receiving = False
        await asyncio.sleep(0.001)  # what is on its way comes before the answer

    async def close(self) -> None:
        await asyncio.sleep(random.random() / 10)
        if self.open:
            self._queue.end(self, counts=False)


class Queue:
    """A quorum queue and its session. `strict`: a timeout closes the channel and counts, as before 4.3."""

    def __init__(self, *, strict: bool) -> None:
        self.strict = strict
        self.ready: list[tuple[Message, bool]] = []
        self.consumers: list[Consumer] = []
        self.taken: dict[Consumer, set[int]] = {}
        self.gone: list[str] = []

    async def consume(
        self, queue: str, *, prefetch: int, on_delivery: OnDelivery, hold: float, on_timeout: OnTimeout
    ) -> Consumer:
        await asyncio.sleep(random.random() / 10)
        consumer = Consumer(self, prefetch, on_delivery, on_timeout)
        self.consumers.append(consumer)
        self.taken[consumer] = set()
        self.deliver()
        return consumer

    def put(self, name: str, count: int) -> None:
        self.ready.append(
            (Message(name.encode(), {DELIVERY_COUNT: count} if count else {}, message_id=name), count > 0)
        )
        self.deliver()

    def deliver(self) -> None:
        for consumer in self.consumers:
            while self.ready and consumer.hungry:
                message, redelivered = self.ready.pop(0)
                consumer.take(message, redelivered=redelivered)

    def acknowledged(self, delivery: Delivery) -> None:
        self.gone.append(delivery.message.body.decode())
        self.deliver()

    def back(self, delivery: Delivery, *, counts: bool) -> None:
        count = delivery.message.headers.get(DELIVERY_COUNT, 0) + counts
        message = Message(delivery.message.body, {DELIVERY_COUNT: count}, message_id=delivery.message.message_id)
        self.ready.insert(0, (message, True))
        asyncio.get_running_loop().call_soon(self.deliver)

    def end(self, consumer: Consumer, *, counts: bool) -> None:
        consumer.open = False
        for delivery in consumer.unsettled.values():
            self.back(delivery, counts=counts)
        consumer.unsettled.clear()

    def time_out(self) -> None:
        """Take something back from somebody, as the consumer timeout does."""
        late = [each for each in self.consumers if each.open and each.unsettled.keys() & each.here]
        if not late:
            return
        consumer = random.choice(late)
        error = ChoreoError("a delivery was held for too long", "raise it")
        if self.strict:
            self.end(consumer, counts=True)
        elif not consumer.receiving:
            # One that was cancelled has its channel closed, and hears of it after others have got what it held [4.3.6].
            self.end(consumer, counts=False)
            asyncio.get_running_loop().call_later(0.01, consumer.on_timeout, error)
            return
        else:
            tags = sorted(consumer.unsettled.keys() & consumer.here)
            for tag in random.sample(tags, random.randint(1, len(tags))):
                self.taken[consumer].add(tag)
                self.back(consumer.unsettled.pop(tag), counts=False)
            consumer.receiving = False
        consumer.on_timeout(error, guessed=not self.strict)


class Agent:
    """What runs, each until it is told to end."""

    def __init__(self) -> None:
        self.running: dict[str, Delivery] = {}
        self.ended: list[str] = []

    def begin(self, delivery: Delivery) -> None:
        name = delivery.message.body.decode()
        assert name not in self.running, f"{name} runs beside itself"
        self.running[name] = delivery

    def end(self, name: str) -> None:
        delivery = self.running.pop(name)
        if random.random() < 0.1:
            delivery.consumer.requeue(delivery)
        else:
            self.ended.append(name)
            delivery.consumer.acknowledge(delivery)


class Play:
    """One window, what it is given and what becomes of it."""

    def __init__(self, seed: str, prefetch: int, *, strict: bool) -> None:
        random.seed(seed)
        self.seed = seed
        self.queue, self.agent = Queue(strict=strict), Agent()
        self.sent: list[str] = []
        session: Any = self.queue
        self.subscription = Subscription(
            session, "queue", prefetch, Turns(1), self.agent.begin, end=lambda delivery, _: None
        )

    async def begin(self) -> None:
        """Let all kinds of things happen."""
        await self.subscription.open()
        for _ in range(STEPS):
            match random.randrange(8):
                case 0 | 1:
                    self.sent.append(str(len(self.sent)))
                    self.queue.put(self.sent[-1], random.choice((0, 0, 0, 1, 2, 3)))
                case 2 | 3 | 4 if self.agent.running:
                    self.agent.end(random.choice(sorted(self.agent.running)))
                case 5:
                    self.queue.time_out()
                case _:
                    await asyncio.sleep(random.choice((0, 0, 0.05, 0.2, 1, 70)))
            assert not self.subscription.failed.done(), self.seed

    def end_runs(self) -> None:
        for name in sorted(self.agent.running):
            self.agent.end(name)

    def check(self) -> None:
        """What is gone has run, and is gone once."""
        assert set(self.queue.gone) <= set(self.agent.ended), self.seed
        assert len(self.queue.gone) == len(set(self.queue.gone)), f"{self.seed}: settled twice"


@pytest.mark.parametrize("strict", [True, False], ids=["3.10", "4.3"])
@pytest.mark.parametrize("prefetch", [1, 2, 8])
@in_virtual_time
async def test_everything_is_settled_once_it_has_run(prefetch: int, strict: bool) -> None:
    """Whatever the broker takes back, and whenever: what it is told is done has run, and in the end nothing is left."""
    for number in range(SEEDS):
        play = Play(f"{number}/{prefetch}/{strict}", prefetch, strict=strict)
        await play.begin()
        for _ in range(10 * len(play.sent) + 100):
            play.end_runs()
            await asyncio.sleep(0.3)
            if len(play.queue.gone) >= len(play.sent):
                break
        play.check()
        assert sorted(play.queue.gone) == sorted(play.sent), f"{play.seed}: {play.queue.ready}"
        await asyncio.sleep(1)
        assert not play.subscription._overdue._runs, play.seed
        play.subscription.abandon()


@pytest.mark.parametrize("strict", [True, False], ids=["3.10", "4.3"])
@pytest.mark.parametrize("prefetch", [1, 2, 8])
@in_virtual_time
async def test_a_drain_at_any_time_leaves_each_delivery_done_or_in_the_queue(prefetch: int, strict: bool) -> None:
    """What runs is finished and settled, the rest is back: nothing is held any more, and nothing is in both places."""
    for number in range(SEEDS):
        play = Play(f"{number}/{prefetch}/{strict}/drain", prefetch, strict=strict)
        await play.begin()
        draining = asyncio.ensure_future(play.subscription.cancel())
        for _ in range(20):
            if play.agent.running and random.random() < 0.3:
                play.agent.end(random.choice(sorted(play.agent.running)))
            await asyncio.sleep(random.choice((0, 0.05)))
        await draining
        play.end_runs()
        await asyncio.sleep(1)
        held = [each.message.body for consumer in play.queue.consumers for each in consumer.unsettled.values()]
        assert not held, f"{play.seed}: {held}"
        play.check()
        assert sorted(play.queue.gone + [each.body.decode() for each, _ in play.queue.ready]) == sorted(play.sent)
