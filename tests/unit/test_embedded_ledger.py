"""Whatever happens in whatever order, every message is in exactly one place, and no consumer has more than it may."""

from __future__ import annotations

from collections import Counter
from itertools import count
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from choreo.broker.core import (
    Ack,
    AmqpError,
    BasicProperties,
    Broker,
    Change,
    Channel,
    Deliver,
    Nack,
    Sent,
    Settled,
    Stored,
)

TAGS = st.integers(min_value=0, max_value=40)
WORK: dict[str, dict[str, Any]] = {
    "classic": {},
    "expiring": {"x-message-ttl": 3000},
    "short": {"x-max-length": 3},
    "full": {"x-max-length": 3, "x-overflow": "reject-publish"},
    "quorum": {"x-queue-type": "quorum", "x-delivery-limit": 3},
    "careful": {
        "x-queue-type": "quorum",
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
        "x-max-length": 5,
        "x-message-ttl": 5000,
    },
}


class Ledger(RuleBasedStateMachine):
    """One work queue of any kind, its dead-letter queue, and clients that do what comes to their minds."""

    @initialize(kind=st.sampled_from(sorted(WORK)), dead=st.sampled_from(["classic", "quorum"]))
    def start(self, kind: str, dead: str) -> None:
        names, self.numbers, self.bodies = count(), count(1), count()
        self.stored: dict[tuple[str, int], Stored] = {}
        self.broker = Broker(0.0, lambda: str(next(names)), journal=self.note)
        self.connection = self.broker.connect()
        self.arrived: list[str] = []  # confirmed
        self.acked: Counter[str] = Counter()
        self.sent: list[Sent] = []
        self.publisher = self.open()
        self.publisher.confirm_select()
        self.publisher.queue_declare("dead", durable=True, arguments={"x-queue-type": dead})
        letters = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"}
        self.publisher.queue_declare("work", durable=True, arguments=letters | WORK[kind])
        self.kind = kind
        self.queues: dict[Channel, str] = {}
        self.clients: list[tuple[Channel, dict[int, Deliver]]] = []

    def note(self, change: Change) -> None:
        match change:
            case Stored():
                assert (change.queue, change.number) not in self.stored
                self.stored[change.queue, change.number] = change
            case Settled():
                del self.stored[change.queue, change.number]

    def open(self) -> Channel:
        return self.connection.open_channel(next(self.numbers), self.sent.append)

    @rule(ttl=st.sampled_from([None, None, "1000", "0"]), priority=st.sampled_from([None, 9]))
    def publish(self, ttl: str | None, priority: int | None) -> None:
        self.sent.clear()
        body = str(next(self.bodies))
        properties = BasicProperties(delivery_mode=2, expiration=ttl, priority=priority)
        self.publisher.publish("", "work", properties, body.encode())
        answer = next(each for each in self.sent if isinstance(each, Ack | Nack))
        if isinstance(answer, Ack):
            self.arrived.append(body)

    @rule(prefetch=st.integers(min_value=1, max_value=4), queue=st.sampled_from(["work", "work", "dead"]))
    def consume(self, prefetch: int, queue: str) -> None:
        if len(self.clients) == 4:
            return
        held: dict[int, Deliver] = {}

        def take(sent: Sent) -> None:
            if isinstance(sent, Deliver):
                held[sent.delivery_tag] = sent
                assert len(held) <= prefetch

        channel = self.connection.open_channel(next(self.numbers), take)
        self.queues[channel] = queue
        channel.qos(prefetch)
        self.clients.append((channel, held))
        channel.consume(queue, "tag")

    @rule(
        which=st.integers(min_value=0, max_value=3),
        at=TAGS,
        multiple=st.booleans(),
        way=st.sampled_from(["ack", "ack", "nack", "reject", "requeue", "requeue"]),
    )
    def settle(self, which: int, at: int, multiple: bool, way: str) -> None:
        if which >= len(self.clients) or not self.clients[which][1]:
            return
        channel, held = self.clients[which]
        tag = list(held)[at % len(held)]
        multiple = multiple and way != "reject"
        taken = [held.pop(each) for each in list(held) if each == tag or (multiple and each < tag)]
        dropped = way in ("nack", "reject") and self.queues[channel] == "dead"  # which has no dead-letter exchange
        if way == "ack" or dropped:
            self.acked.update(each.body.decode() for each in taken)
        if way == "ack":
            channel.ack(tag, multiple=multiple)
        elif way == "reject":
            channel.reject(tag, requeue=False)
        else:
            channel.nack(tag, multiple=multiple, requeue=way == "requeue")

    @rule(which=st.integers(min_value=0, max_value=3), way=st.sampled_from(["close", "cancel", "recover", "error"]))
    def leave(self, which: int, way: str) -> None:
        if which >= len(self.clients):
            return
        channel, held = self.clients[which]
        if way == "cancel":
            channel.cancel("tag")
            return
        held.clear()
        if way == "recover":
            channel.recover()
            return
        del self.clients[which]
        if way == "close":
            channel.close()
            return
        with pytest.raises(AmqpError) as refused:
            channel.ack(10_000)
        assert (refused.value.code, refused.value.method, channel.open) == (406, (60, 80), False)

    @rule(seconds=st.sampled_from([0.5, 1.0, 10.0, 400.0]))
    def wait(self, seconds: float) -> None:
        self.broker.advance(self.broker.now + seconds)
        due = self.broker.next_due()
        assert due is None or due > self.broker.now

    @rule()
    def restart(self) -> None:
        """A broker made of what is durable has every message, all of them in line."""
        names = count()
        other = Broker(self.broker.now, lambda: str(next(names)))
        other.restore(self.broker.changes())
        before, after = (self.inside(each, "work") + self.inside(each, "dead") for each in (self.broker, other))
        assert sorted(before) == sorted(after)
        assert other.unsettled("work") == other.unsettled("dead") == 0

    def inside(self, broker: Broker, queue: str) -> list[str]:
        return [
            each.message.body.decode() for each in broker.changes() if isinstance(each, Stored) and each.queue == queue
        ]

    @invariant()
    def every_message_is_somewhere(self) -> None:
        if not hasattr(self, "broker"):
            return
        there = Counter(self.inside(self.broker, "work") + self.inside(self.broker, "dead"))
        assert there + self.acked == Counter(self.arrived)

    @invariant()
    def the_journal_says_the_same(self) -> None:
        if hasattr(self, "broker"):
            changes = [each for each in self.broker.changes() if isinstance(each, Stored)]
            assert {(each.queue, each.number) for each in changes} == set(self.stored)

    @invariant()
    def what_is_unsettled_is_counted(self) -> None:
        if hasattr(self, "broker"):
            held = sum(len(held) for _, held in self.clients)
            assert self.broker.unsettled("work") + self.broker.unsettled("dead") == held

    @invariant()
    def nobody_waits_beside_a_message(self) -> None:
        """Where messages are ready, every consumer has all it may have."""
        if not hasattr(self, "broker"):
            return
        for channel, held in self.clients:
            for consumer in channel.consumers.values():
                if consumer.queue.ready and not consumer.cancelled:
                    assert len(held) == consumer.credit


Ledger.TestCase.settings = settings(max_examples=300, stateful_step_count=50)
test_ledger = Ledger.TestCase
