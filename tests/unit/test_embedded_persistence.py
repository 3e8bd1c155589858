"""What outlasts a restart of the embedded broker."""

from __future__ import annotations

from itertools import count
from typing import Any

from choreo.broker.core import BasicProperties, Broker, Change, Channel, Counted, Deliver, Sent, Settled, Stored

DURABLE = BasicProperties(delivery_mode=2)


def new_broker(journal: list[Change] | None = None, now: float = 0.0) -> Broker:
    names = count()
    return Broker(now, lambda: str(next(names)), journal=None if journal is None else journal.append)


def restarted(changes: list[Change], now: float = 0.0) -> Broker:
    broker = new_broker(now=now)
    broker.restore(changes)
    return broker


def work(broker: Broker) -> Channel:
    """Declare, publish, settle, delete: a bit of everything."""
    channel = broker.connect().open_channel(1, lambda _: None)
    channel.exchange_declare("x", "topic", durable=True, arguments={"alternate-exchange": "y"})
    channel.exchange_declare("y", "fanout", durable=True)
    channel.exchange_declare("gone", "fanout", durable=True, auto_delete=True)
    channel.exchange_declare("transient", "fanout")
    quorum = {"x-queue-type": "quorum", "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "q"}
    channel.queue_declare("q", durable=True)
    channel.queue_declare("quorum", durable=True, arguments=quorum)
    channel.queue_declare("s", durable=True, arguments={"x-queue-type": "stream"})
    channel.queue_declare("deleted", durable=True)
    channel.queue_declare("mine", durable=True, exclusive=True)
    for queue, exchange in (("q", "x"), ("s", "x"), ("q", "transient"), ("deleted", "gone"), ("mine", "x")):
        channel.queue_bind(queue, exchange, "#")
    channel.exchange_bind("y", "x", "a.*")
    channel.queue_bind("quorum", "y", "")
    channel.queue_bind("quorum", "x", "removed")
    channel.queue_unbind("quorum", "x", "removed")
    for number in range(6):
        channel.publish("x", "a.b", DURABLE, str(number).encode())
    channel.publish("x", "a.b", BasicProperties(), b"transient")
    for queue in ("q", "quorum"):
        for _ in range(4):
            channel.get(queue)
    channel.ack(1)
    channel.ack(5)
    channel.reject(6)
    channel.reject(7, requeue=False)
    channel.queue_delete("deleted")
    return channel


def test_the_journal_and_the_shortest_list_say_the_same() -> None:
    journal: list[Change] = []
    broker = new_broker(journal)
    work(broker)
    shortest = list(broker.changes())
    assert list(restarted(journal).changes()) == shortest
    assert list(restarted(shortest).changes()) == shortest
    assert not any(isinstance(each, Settled | Counted) for each in shortest)


def test_what_is_there_after_a_restart() -> None:
    broker = new_broker()
    work(broker)
    after = restarted(list(broker.changes()))
    assert [(queue.queue, queue.messages) for queue in after.queues()] == [("q", 6), ("quorum", 5), ("s", 7)]
    channel = after.connect().open_channel(1, lambda _: None)
    bodies = []
    while (got := channel.get("quorum", no_ack=True)) is not None:
        bodies.append((got.body, got.redelivered))
    assert bodies == [(b"1", True), *((each, False) for each in (b"3", b"4", b"5", b"transient"))]
    channel.publish("x", "a.b", DURABLE, b"new")
    assert [queue.messages for queue in after.queues()] == [7, 1, 8]


def test_numbers_go_on() -> None:
    """A message stored after a restart never has the number of one that was there before."""
    journal: list[Change] = []
    broker = new_broker()
    work(broker)
    other = new_broker(journal)
    other.restore(broker.changes())
    assert journal == []
    channel = other.connect().open_channel(1, lambda _: None)
    channel.publish("x", "a.b", DURABLE, b"new")
    before = {(each.queue, each.number) for each in broker.changes() if isinstance(each, Stored)}
    assert {(each.queue, each.number) for each in journal if isinstance(each, Stored)}.isdisjoint(before)


def test_time_goes_on_while_the_broker_is_away() -> None:
    broker = new_broker()
    channel = broker.connect().open_channel(1, lambda _: None)
    given: dict[str, Any] = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead", "x-message-ttl": 5000}
    channel.queue_declare("dead", durable=True)
    channel.queue_declare("q", durable=True, arguments=given)
    channel.publish("", "q", DURABLE, b"1")
    changes = list(broker.changes())
    assert [queue.messages for queue in restarted(changes, now=4.0).queues()] == [0, 1]
    assert [queue.messages for queue in restarted(changes, now=6.0).queues()] == [1, 0]
    assert restarted(changes, now=4.0).next_due() == 5.0


def test_a_dead_letter_that_has_not_arrived_is_tried_again() -> None:
    journal: list[Change] = []
    broker = new_broker(journal)
    channel = broker.connect().open_channel(1, lambda _: None)
    given = {"x-queue-type": "quorum", "x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}
    channel.queue_declare("q", durable=True, arguments=given | {"x-dead-letter-exchange": "amq.fanout"})
    channel.publish("", "q", DURABLE, b"1")
    channel.get("q")
    channel.nack(1, requeue=False)
    for changes in (journal, list(broker.changes())):
        after = restarted(changes)
        assert [queue.messages for queue in after.queues()] == [0]
        other = after.connect().open_channel(1, lambda _: None)
        other.queue_declare("dead", durable=True)
        other.queue_bind("dead", "amq.fanout")
        after.advance(200.0)
        got = other.get("dead")
        assert got is not None
        assert (got.properties.headers or {})["x-death"][0]["reason"] == "rejected"


def test_a_stream_keeps_its_offsets() -> None:
    broker = new_broker()
    work(broker)
    got: list[Sent] = []
    channel = restarted(list(broker.changes())).connect().open_channel(1, got.append)
    channel.qos(10)
    channel.consume("s", arguments={"x-stream-offset": 5})
    channel.publish("", "s", DURABLE, b"new")
    arrived = [(each.body, dict(each.properties.headers or {})) for each in got if isinstance(each, Deliver)]
    assert arrived == [
        (b"5", {"x-stream-offset": 5}),
        (b"transient", {"x-stream-offset": 6}),
        (b"new", {"x-stream-offset": 7}),
    ]


def test_a_message_is_stored_before_its_confirm() -> None:
    events: list[object] = []
    names = count()
    broker = Broker(0.0, lambda: str(next(names)), journal=events.append)
    channel = broker.connect().open_channel(1, events.append)
    channel.confirm_select()
    channel.queue_declare("q", durable=True)
    channel.consume("q")
    channel.publish("", "q", DURABLE, b"1")
    assert [type(each).__name__ for each in events] == ["QueueDeclared", "Consuming", "Stored", "Deliver", "Ack"]


def test_a_transaction_outlasts_no_restart() -> None:
    """What it published is not there, what it acknowledged is; after the commit it is the other way round."""
    journal: list[Change] = []
    broker = new_broker(journal)
    channel = broker.connect().open_channel(1, lambda _: None)
    channel.queue_declare("q", durable=True)
    channel.publish("", "q", DURABLE, b"old")
    channel.tx_select()
    got = channel.get("q")
    assert got is not None
    channel.publish("", "q", DURABLE, b"new")
    channel.ack(got.delivery_tag)

    def bodies(changes: list[Change]) -> list[bytes]:
        channel = restarted(changes).connect().open_channel(1, lambda _: None)
        found = channel.get("q", no_ack=True)
        assert found is not None
        assert channel.get("q") is None
        return [found.body]

    assert bodies(journal) == bodies(list(broker.changes())) == [b"old"]
    channel.tx_commit()
    assert bodies(journal) == bodies(list(broker.changes())) == [b"new"]
