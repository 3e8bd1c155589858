"""Delays on a real node: scheduled events reach whoever is bound, and an installation is updated in place."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from itertools import chain
from typing import Any

import aio_pika
import pytest
import tenacity
from pydantic import SecretStr

from choreo import dead_letter
from choreo.agent import Agent
from choreo.config.settings import Settings
from choreo.envelope import seal
from choreo.event import Event
from choreo.message import ATTEMPT, TOPIC, Message
from choreo.rabbit import session as rabbit
from choreo.reaction import Context
from choreo.retry import Retry
from choreo.runtime.publisher import Publisher
from choreo.runtime.worker import Worker
from choreo.testing.rabbitmq.node import Node
from choreo.topology import Binding, Exchange, Names, Queue, Topology
from choreo.transport import Confirmed, Delivery, Session
from tests.waiting import eventually


class Placed(Event, topic="test-scheduled.placed"):
    order: str


class Shipped(Event, topic="test-scheduled.shipped"):
    order: str


PLACED = "test-scheduled.placed"


class Shop:
    """An agent that notes what it gets, and fails once for orders that begin with "again"."""

    def __init__(self, url: str, namespace: str, session: Session) -> None:
        self.names = Names(namespace)
        self.session = session
        self.settings = Settings(url=SecretStr(url), namespace=namespace)
        self.got: list[tuple[str, int, float]] = []
        self.agent = Agent("desk", retry=Retry(on=OSError, stop=tenacity.stop_after_attempt(3), first="1s"))

        @self.agent.on
        async def take(placed: Placed, ctx: Context) -> None:
            self.got.append((placed.order, ctx.attempt, time.monotonic()))
            if placed.order.startswith("again") and ctx.attempt == 1:
                raise OSError

    @property
    def connect(self) -> Callable[[], Awaitable[Session]]:
        return partial(rabbit.connect, self.settings.brokers(), name="test")

    @contextlib.asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        worker = Worker([self.agent], self.settings, self.connect)
        run = asyncio.ensure_future(worker.run())
        await eventually(lambda: worker.ready or run.done(), what="the worker being ready")
        yield
        worker.stop()
        await run

    async def put(self, order: str, exchange: str, key: str, **headers: Any) -> None:
        message = seal(Placed(order=order), source="test")
        message.headers |= headers
        assert await self.session.publish(message, exchange=exchange, routing_key=key, timeout=10) == Confirmed()

    async def letters(self, agent: str) -> list[dead_letter.DeadLetter]:
        """Return what lies in a dead-letter queue, and leave it there."""
        found, got = await self.session.stats(self.names.dlq(agent)), list[Delivery]()
        assert found is not None
        consumer = await self.session.consume(found.name, prefetch=100, on_delivery=got.append)
        await eventually(lambda: len(got) >= found.ready)
        await consumer.close()
        return [dead_letter.read(each.message, agent=agent) for each in got]

    def orders(self) -> list[str]:
        return sorted(order for order, _, _ in self.got)


@pytest.fixture
async def shop(broker_url: str, namespace: str) -> AsyncIterator[Shop]:
    settings = Settings(url=SecretStr(broker_url), namespace=namespace)
    session = await rabbit.connect(settings.brokers(), name="test")
    yield Shop(broker_url, namespace, session)
    await session.close()


async def test_a_scheduled_event_reaches_agents_and_queues_of_others(shop: Shop, broker_url: str) -> None:
    """A queue that somebody else has bound to the events gets it as agents do, under its topic, and without a trace of
    the way; also a topic that no agent takes. What nobody is bound to is a dead letter when it is due."""
    heard: list[tuple[str, aio_pika.abc.AbstractIncomingMessage]] = []

    async def note(queue: str, message: aio_pika.abc.AbstractIncomingMessage) -> None:
        heard.append((queue, message))

    async with (
        shop.working(),
        await aio_pika.connect(broker_url) as connection,
        connection.channel() as channel,
        Publisher(shop.settings, shop.connect) as publisher,
    ):
        for pattern in (PLACED, "test-scheduled.shipped"):
            queue = await channel.declare_queue(exclusive=True)
            await queue.bind(shop.names.events, pattern)
            await queue.consume(partial(note, pattern), no_ack=True)
        receipt = await publisher.publish(Placed(order="1"), delay="1s")
        await publisher.publish(Shipped(order="2"), delay="1s")
        await publisher.send(
            Message(b"{}", message_id="lost", type="test-scheduled.lost"), "test-scheduled.lost", delay=1
        )
        began = time.monotonic()
        await eventually(lambda: len(heard) == 2 and len(shop.got) == 1, what="everybody having it")
        assert time.monotonic() - began > 0.5

        async def unclaimed() -> bool:
            return len(await shop.letters("unclaimed")) == 1

        await eventually(unclaimed, what="a dead letter")
    assert shop.orders() == ["1"]
    by_topic = dict(heard)
    assert by_topic.keys() == {PLACED, "test-scheduled.shipped"}
    message = by_topic[PLACED]
    assert (message.exchange, message.routing_key, message.message_id) == (shop.names.events, PLACED, receipt.id)
    assert not [name for name in message.headers if name.startswith("x-")]
    (letter,) = await shop.letters("unclaimed")
    assert (letter.id, letter.topic, letter.reason) == ("lost", "test-scheduled.lost", "unclaimed")


async def test_an_event_that_expired_unread_is_a_dead_letter_that_says_so(shop: Shop, broker_url: str) -> None:
    """Its publisher may give an event a time to live. When that is over before its agent has come to it, the letter is
    in the agent's own dead-letter queue with the reason `expired`, and names the queue that it waited in."""
    await shop.session.declare(Topology.of([shop.agent], shop.names.namespace))
    async with await aio_pika.connect(broker_url) as connection, connection.channel() as channel:
        exchange = await channel.get_exchange(shop.names.events, ensure=False)
        await exchange.publish(aio_pika.Message(b"{}", message_id="m", expiration=0.2), PLACED)
    await expired(shop)


@pytest.mark.real_node("policies")
async def test_a_retry_that_expired_by_a_policy_is_no_unclaimed_one(shop: Shop, node: Node) -> None:
    """It was in a delay before, where time is over too: what counts is where it was last."""
    await shop.session.declare(Topology.of([shop.agent], shop.names.namespace))
    pattern = f"^{shop.names.queue('desk')}$".replace(".", r"\.")
    namespace = shop.names.namespace
    await asyncio.to_thread(node.ctl, "set_policy", namespace, pattern, '{"message-ttl": 200}', "--apply-to", "queues")
    message = Message(b"{}", {TOPIC: PLACED, ATTEMPT: 1}, message_id="m")
    key = older_key("agent.desk", 1)
    assert await shop.session.publish(message, exchange=shop.names.delay, routing_key=key, timeout=10) == Confirmed()
    await expired(shop)
    await asyncio.to_thread(node.ctl, "clear_policy", namespace)


async def expired(shop: Shop) -> None:
    async def buried() -> bool:
        found = await shop.session.stats(shop.names.dlq("desk"))
        return found is not None and found.ready > 0

    await eventually(buried, what="a dead letter")
    (letter,) = await shop.letters("desk")
    assert (letter.id, letter.topic, letter.reason, letter.agent) == ("m", PLACED, "expired", "desk")
    assert shop.names.queue("desk") in str(letter.error)


def older_key(end: str, seconds: int) -> str:
    """Return a key as workers made it before there were queues for retries."""
    return ".".join([*f"{seconds:020b}", end])


def older_topology(namespace: str, agent: str, topic: str) -> Topology:
    """Return what such a worker has declared. A copy: it is what stands on brokers, and changes no more."""
    ns, stars = namespace, "*." * 20
    keeping = {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000_000}
    passing = {"x-queue-type": "quorum", "x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}

    def below(level: int) -> str:
        return f"{ns}.delay.{level - 1}" if level else f"{ns}.retry"

    def delay(level: int) -> Queue:
        arguments = {"x-delivery-limit": 1_000_000_000, "x-dead-letter-exchange": below(level)}
        return Queue(f"{ns}.delay.{level}", "delay", None, passing | arguments | {"x-message-ttl": 1000 * 2**level})

    def rungs(level: int) -> list[Binding]:
        name, before = f"{ns}.delay.{level}", "*." * (19 - level)
        return [Binding(name, name, f"{before}1.#"), Binding(name, below(level), f"{before}0.#", "exchange")]

    dead = {"x-delivery-limit": 20, "x-dead-letter-exchange": f"{ns}.dead", "x-dead-letter-routing-key": agent}
    home, event, first = f"{stars}agent.{agent}", f"{stars}event.{topic}", f"{ns}.delay.19"
    return Topology(
        (
            Exchange(f"{ns}.events", "topic"),
            Exchange(f"{ns}.dead", "direct"),
            Exchange(f"{ns}.unclaimed", "topic"),
            Exchange(f"{ns}.retry", "topic", f"{ns}.unclaimed"),
            Exchange(f"{ns}.delay", "topic"),
            *(Exchange(f"{ns}.delay.{level}", "topic") for level in range(20)),
        ),
        (
            Queue(f"{ns}.unclaimed.dlq", "dlq", None, keeping),
            *map(delay, range(20)),
            Queue(f"{ns}.{agent}", "work", agent, passing | dead),
            Queue(f"{ns}.{agent}.dlq", "dlq", agent, keeping),
        ),
        (
            Binding(f"{ns}.unclaimed", f"{ns}.unclaimed.dlq", f"{stars}event.#"),
            *chain.from_iterable(map(rungs, range(20))),
            Binding(f"{ns}.dead", f"{ns}.{agent}.dlq", agent),
            Binding(f"{ns}.retry", f"{ns}.{agent}", home),
            Binding(f"{ns}.unclaimed", f"{ns}.{agent}.dlq", home),
            Binding(f"{ns}.delay", first, home, "exchange"),
            Binding(f"{ns}.events", f"{ns}.{agent}", topic),
            Binding(f"{ns}.retry", f"{ns}.{agent}", event),
            Binding(f"{ns}.delay", first, event, "exchange"),
        ),
    )


async def test_an_installation_is_updated_while_retries_and_scheduled_events_wait(shop: Shop) -> None:
    """What older workers have put on the ladder before, and what those that still run put on it afterwards, arrives
    once, beside what comes by the new ways; a new publisher is understood before the first new worker has run."""
    await shop.session.declare(older_topology(shop.names.namespace, "desk", PLACED))
    retry, event = partial(older_key, "agent.desk"), partial(older_key, f"event.{PLACED}")
    tried = {TOPIC: PLACED, ATTEMPT: 1}
    for number in range(40):  # more than a level lets out at a time
        await shop.put(f"retry {number}", shop.names.delay, retry(1 + number % 4), **tried)
        await shop.put(f"event {number}", shop.names.delay, event(1 + number % 4))
    await shop.put("again, soon", shop.names.events, PLACED)
    async with Publisher(shop.settings, shop.connect) as publisher:
        await publisher.publish(Placed(order="early"), delay="2s")
        async with shop.working():
            await publisher.publish(Placed(order="late"), delay="2s")
            await shop.put("retry beside", shop.names.delay, retry(3), **tried)
            await shop.put("event beside", shop.names.delay, event(3))
            await eventually(lambda: len(shop.got) >= 40 + 40 + 2 + 2 + 2, what="all deliveries")
            await asyncio.sleep(1.5)  # for what might come a second time
    numbered = [f"{kind} {number}" for kind in ("retry", "event") for number in range(40)]
    expected = [*numbered, "again, soon", "again, soon", "early", "late", "retry beside", "event beside"]
    assert shop.orders() == sorted(expected)
    attempts = {order: attempt for order, attempt, _ in shop.got}
    assert (attempts["retry 0"], attempts["event 0"], attempts["again, soon"]) == (2, 1, 2)
    assert await shop.letters("desk") == []
    assert await shop.letters("unclaimed") == []
