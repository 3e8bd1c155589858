"""Time in the embedded core: it passes when it is told to, and everything happens at its own moment."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from itertools import count
from typing import Any

import pytest

from choreo.agent import Agent
from choreo.broker.core import BasicProperties, Broker, Channel, Deliver, Sent
from choreo.event import Event
from choreo.topology import Names, Topology, return_key, schedule_key

DURABLE = BasicProperties(delivery_mode=2)


class Paid(Event, topic="order.paid"):
    order: str


class Clocked:
    """A broker, a channel, and when each delivery arrived."""

    def __init__(self) -> None:
        names = count()
        self.broker = Broker(0.0, lambda: str(next(names)))
        self.got: list[tuple[float, Deliver]] = []
        self.channel: Channel = self.broker.connect().open_channel(1, self.take)

    def take(self, sent: Sent) -> None:
        if isinstance(sent, Deliver):
            self.got.append((self.broker.now, sent))

    def queue(self, name: str, **arguments: Any) -> None:
        given = {key.replace("_", "-"): value for key, value in arguments.items()}
        self.channel.queue_declare(name, durable=True, arguments=given)

    @property
    def times(self) -> list[float]:
        return [round(time, 3) for time, _ in self.got]


@pytest.fixture
def clocked() -> Clocked:
    return Clocked()


@pytest.fixture
def ladder(clocked: Clocked) -> Clocked:
    """The topology of one agent, as choreo declares it."""
    agent = Agent("bank")

    @agent.on()
    def take(paid: Paid) -> None: ...

    topology = Topology.of([agent])
    for exchange in topology.exchanges:
        arguments = {"alternate-exchange": exchange.alternate} if exchange.alternate else {}
        clocked.channel.exchange_declare(exchange.name, exchange.type, durable=True, arguments=arguments)
    for queue in topology.queues:
        clocked.channel.queue_declare(queue.name, durable=True, arguments=queue.arguments)
    for binding in topology.bindings:
        bind = clocked.channel.queue_bind if binding.to == "queue" else clocked.channel.exchange_bind
        bind(binding.destination, binding.source, binding.pattern)
    clocked.channel.consume(Names().retries("bank"), no_ack=True)
    clocked.channel.consume(Names().due, no_ack=True)
    return clocked


@pytest.mark.parametrize("seconds", [0, 1, 3, 86_400, 2**20 - 1])
@pytest.mark.parametrize("key", [return_key, schedule_key])
def test_a_delay_of_any_length_comes_back_to_the_second(
    ladder: Clocked, seconds: int, key: Callable[[str, int], str]
) -> None:
    to = "bank" if key is return_key else "order.paid"
    ladder.channel.publish(Names().delay, key(to, seconds), DURABLE, b"1", mandatory=True)
    ladder.broker.advance(10_000_000.0)
    assert ladder.times == [seconds]
    assert all(queue.messages == 0 for queue in ladder.broker.queues())
    assert ladder.broker.next_due() is None


def test_a_retry_whose_agent_is_gone_is_dead_lettered(ladder: Clocked) -> None:
    ladder.channel.publish(Names().delay, return_key("bank", 5), DURABLE, b"1")
    ladder.channel.queue_delete(Names().retries("bank"))
    ladder.broker.advance(60.0)
    got = ladder.channel.get(Names().dlq("bank"))
    assert got is not None
    assert [table["queue"] for table in (got.properties.headers or {})["x-death"]] == [
        Names().level(0),
        Names().level(2),
    ]


def test_everything_happens_at_its_own_time_and_in_that_order(clocked: Clocked) -> None:
    """However far time leaps at once."""
    clocked.queue("late")
    for name, ttl in (("b", 2000), ("a", 1000), ("c", 3000)):
        clocked.queue(name, x_message_ttl=ttl, x_dead_letter_exchange="", x_dead_letter_routing_key="late")
        clocked.channel.publish("", name, DURABLE, name.encode())
    clocked.channel.consume("late", no_ack=True)
    assert clocked.broker.next_due() == 1.0
    clocked.broker.advance(99.0)
    assert [(time, sent.body) for time, sent in clocked.got] == [(1.0, b"a"), (2.0, b"b"), (3.0, b"c")]
    assert clocked.broker.now == 99.0
    clocked.broker.advance(50.0)
    assert clocked.broker.now == 99.0


def test_the_time_of_a_death(clocked: Clocked) -> None:
    clocked.queue("dead")
    clocked.queue("q", x_message_ttl=1500, x_dead_letter_exchange="", x_dead_letter_routing_key="dead")
    clocked.channel.publish("", "q", DURABLE, b"")
    clocked.broker.advance(10.0)
    got = clocked.channel.get("dead")
    assert got is not None
    assert (got.properties.headers or {})["x-death"][0]["time"] == datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)


def test_nothing_is_due_where_nothing_waits_any_more(clocked: Clocked) -> None:
    clocked.queue("q", x_message_ttl=1000)
    clocked.channel.publish("", "q", DURABLE, b"")
    clocked.channel.get("q")
    assert clocked.broker.next_due() is None
    clocked.channel.nack(1)
    assert clocked.broker.next_due() == 1.0
    clocked.channel.queue_delete("q")
    assert clocked.broker.next_due() is None


def test_a_message_that_comes_back_too_late_expires_at_once(clocked: Clocked) -> None:
    clocked.queue("q", x_message_ttl=1000)
    clocked.channel.publish("", "q", DURABLE, b"")
    clocked.channel.get("q")
    clocked.broker.advance(5.0)
    clocked.channel.nack(1)
    assert clocked.channel.get("q") is None


LEAST = {"x_queue_type": "quorum", "x_overflow": "reject-publish", "x_dead_letter_strategy": "at-least-once"}


def test_at_least_once_tries_again_every_three_minutes(clocked: Clocked) -> None:
    """Source: rabbit_fifo_dlx_worker, its settle timeout."""
    clocked.queue("q", x_message_ttl=1000, x_dead_letter_exchange="", x_dead_letter_routing_key="dead", **LEAST)
    clocked.channel.publish("", "q", DURABLE, b"")
    clocked.broker.advance(100.0)
    clocked.queue("dead")
    clocked.channel.consume("dead", no_ack=True)
    clocked.broker.advance(1000.0)
    assert clocked.times == [181.0]
    assert clocked.broker.next_due() is None


def test_at_least_once_waits_for_the_queue_that_is_full(clocked: Clocked) -> None:
    """And gives nothing twice to the one that is not."""
    for name, given in (("full", {"x_max_length": 1, "x_overflow": "reject-publish"}), ("free", {})):
        clocked.queue(name, **given)
        clocked.channel.queue_bind(name, "amq.fanout")
    clocked.queue("q", x_message_ttl=1000, x_dead_letter_exchange="amq.fanout", **LEAST)
    clocked.channel.publish("", "full", DURABLE, b"")
    clocked.channel.publish("", "q", DURABLE, b"")
    clocked.broker.advance(500.0)
    assert [queue.messages for queue in clocked.broker.queues()] == [1, 1, 0]
    clocked.channel.consume("full", no_ack=True)
    clocked.broker.advance(1000.0)
    assert clocked.times == [500.0, 541.0]
    assert [queue.messages for queue in clocked.broker.queues()] == [0, 1, 0]


def test_at_least_once_has_a_few_dozen_under_way(clocked: Clocked) -> None:
    """What cannot arrive keeps the rest from being tried."""
    clocked.queue("q", x_message_ttl=1000, x_dead_letter_exchange="amq.direct", **LEAST)
    for number in range(32):
        clocked.channel.publish("", "q", DURABLE, str(number).encode())
    clocked.broker.advance(2.0)
    clocked.queue("dead")
    clocked.channel.queue_bind("dead", "amq.direct", "q")
    clocked.channel.publish("", "q", DURABLE, b"last")
    clocked.channel.consume("dead", no_ack=True)
    clocked.broker.advance(180.0)
    assert clocked.got == []
    clocked.broker.advance(200.0)
    assert len(clocked.got) == 33


def test_a_stream_drops_whole_segments(clocked: Clocked) -> None:
    clocked.queue("s", x_queue_type="stream", x_max_age="1m", x_stream_max_segment_size_bytes=100)
    for _ in range(10):
        clocked.channel.publish("", "s", DURABLE, b"x" * 50)
        clocked.broker.advance(clocked.broker.now + 20.0)
    clocked.channel.qos(100)
    clocked.channel.consume("s", arguments={"x-stream-offset": "first"})
    offsets = [(sent.properties.headers or {})["x-stream-offset"] for _, sent in clocked.got]
    assert offsets == [4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize(("at", "offsets"), [(0, [0, 1, 2]), (15, [2]), (20, [2]), (99, [])])
def test_a_stream_from_a_time_on(clocked: Clocked, at: int, offsets: list[int]) -> None:
    clocked.queue("s", x_queue_type="stream")
    for _ in range(3):
        clocked.channel.publish("", "s", DURABLE, b"x")
        clocked.broker.advance(clocked.broker.now + 10.0)
    clocked.channel.qos(100)
    clocked.channel.consume("s", arguments={"x-stream-offset": datetime.fromtimestamp(at, UTC)})
    assert [(sent.properties.headers or {})["x-stream-offset"] for _, sent in clocked.got] == offsets
