"""The surface of the embedded core: what is sent in which order, and what an error ends."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

from choreo.broker.core import (
    Ack,
    AmqpError,
    BasicProperties,
    Broker,
    Cancelled,
    Channel,
    Connection,
    Consuming,
    Deliver,
    Nack,
    QueueOk,
    Returned,
    Sent,
)

PLAIN = BasicProperties()


def new_broker(**options: Any) -> Broker:
    names = count()
    return Broker(0.0, lambda: f"n{next(names)}", **options)


@pytest.fixture
def sent() -> list[Sent]:
    return []


@pytest.fixture
def broker() -> Broker:
    return new_broker()


@pytest.fixture
def connection(broker: Broker) -> Connection:
    return broker.connect()


@pytest.fixture
def channel(connection: Connection, sent: list[Sent]) -> Channel:
    return connection.open_channel(1, sent.append)


def kinds(sent: list[Sent]) -> list[str]:
    return [type(each).__name__ for each in sent]


def test_consume_ok_stands_before_the_deliveries(channel: Channel, sent: list[Sent]) -> None:
    channel.queue_declare("q")
    channel.publish("", "q", PLAIN, b"1")
    channel.consume("q", "tag")
    assert sent == [Consuming("tag"), Deliver("tag", 1, False, "", "q", PLAIN, b"1")]


def test_a_return_stands_before_its_confirm(channel: Channel, sent: list[Sent]) -> None:
    channel.confirm_select()
    channel.publish("amq.topic", "k", PLAIN, b"1", mandatory=True)
    assert sent == [Returned(312, "NO_ROUTE", "amq.topic", "k", PLAIN, b"1"), Ack(1)]


def test_without_confirms_nothing_is_said(channel: Channel, sent: list[Sent]) -> None:
    channel.publish("amq.topic", "k", PLAIN, b"1")
    channel.confirm_select()
    channel.publish("amq.topic", "k", PLAIN, b"1")
    assert sent == [Ack(1)]


def test_confirms_are_numbered_and_say_no(channel: Channel, sent: list[Sent]) -> None:
    channel.queue_declare("q", arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    channel.confirm_select()
    for _ in range(2):
        channel.publish("", "q", PLAIN, b"1")
    assert sent == [Ack(1), Nack(2)]


def test_a_message_that_goes_straight_through_keeps_the_publishers_properties(
    channel: Channel, sent: list[Sent]
) -> None:
    """A front may keep bytes in them that nobody has decoded."""

    class Raw(BasicProperties):
        def with_headers(self, headers: object, *, expires: bool) -> Any:
            raise AssertionError

    raw = Raw()
    channel.queue_declare("q", arguments={"x-queue-type": "quorum"}, durable=True)
    channel.consume("q", no_ack=True)
    channel.publish("", "q", raw, b"1")
    assert isinstance(sent[-1], Deliver)
    assert sent[-1].properties is raw


def test_a_deleted_queue_tells_its_consumers(channel: Channel, sent: list[Sent]) -> None:
    channel.queue_declare("q")
    channel.consume("q", "tag")
    channel.publish("", "q", PLAIN, b"1")
    assert channel.queue_delete("q") == 0
    assert kinds(sent) == ["Consuming", "Deliver", "Cancelled"]
    assert sent[-1] == Cancelled("tag")
    channel.ack(1)  # of a queue that is gone
    channel.consume(channel.queue_declare("q").queue, "tag")


def test_the_broker_makes_names(channel: Channel) -> None:
    assert channel.queue_declare(exclusive=True) == QueueOk("amq.gen-n0", 0, 0)
    assert channel.consume("") == "amq.ctag-n1"
    assert channel.host.queues() == [QueueOk("amq.gen-n0", 0, 1)]


def test_a_soft_error_ends_the_channel(broker: Broker, connection: Connection, channel: Channel) -> None:
    other = connection.open_channel(2, lambda _: None)
    channel.queue_declare("q")
    channel.publish("", "q", PLAIN, b"1")
    channel.get("q")
    assert broker.unsettled("q") == 1
    with pytest.raises(AmqpError) as error:
        channel.queue_declare("missing", passive=True)
    assert (error.value.code, error.value.method, error.value.closes_connection) == (404, (50, 10), False)
    assert str(error.value) == "NOT_FOUND - no queue 'missing' in vhost '/'"
    assert not channel.open
    assert broker.unsettled("q") == 0
    assert other.get("q") is not None


def test_a_hard_error_ends_the_connection(connection: Connection, channel: Channel) -> None:
    other = connection.open_channel(2, lambda _: None)
    channel.queue_declare("mine", exclusive=True)
    with pytest.raises(AmqpError) as error:
        other.qos(1, prefetch_size=1)
    assert (error.value.method, error.value.closes_connection) == ((60, 10), True)
    assert not channel.open
    assert not other.open
    assert connection.host.queues() == []


def test_a_closed_channel_knows_no_method(connection: Connection, channel: Channel) -> None:
    channel.close()
    channel.close()
    with pytest.raises(AmqpError) as error:
        channel.publish("", "q", PLAIN, b"")
    assert (error.value.code, error.value.text) == (504, "CHANNEL_ERROR - expected 'channel.open'")


def test_a_channel_is_opened_once(connection: Connection, channel: Channel) -> None:
    with pytest.raises(AmqpError, match=r"second 'channel\.open' seen"):
        connection.open_channel(1, lambda _: None)
    channel.close()
    connection.open_channel(1, lambda _: None)


def test_a_consumer_tag_is_used_once(channel: Channel) -> None:
    channel.queue_declare("q")
    channel.consume("q", "tag")
    with pytest.raises(AmqpError) as error:
        channel.consume("q", "tag")
    assert (error.value.code, error.value.text) == (530, "NOT_ALLOWED - attempt to reuse consumer tag 'tag'")


def test_the_largest_body() -> None:
    channel = new_broker(limit=3).connect().open_channel(1, lambda _: None)
    channel.publish("amq.topic", "", PLAIN, b"123")
    with pytest.raises(AmqpError) as error:
        channel.publish("amq.topic", "", PLAIN, b"1234")
    assert error.value.text == "PRECONDITION_FAILED - message size 4 is larger than configured max size 3"


def test_a_user_says_who_it_is(broker: Broker) -> None:
    channel = broker.connect(user="anna").open_channel(1, lambda _: None)
    channel.publish("amq.topic", "", BasicProperties(user_id="anna"), b"")
    with pytest.raises(AmqpError, match="user_id property set to 'bert' but authenticated user was 'anna'"):
        channel.publish("amq.topic", "", BasicProperties(user_id="bert"), b"")


@pytest.mark.parametrize(
    "change",
    [
        lambda channel: channel.queue_bind("b", "x", "k"),
        lambda channel: channel.queue_unbind("a", "x", "k"),
        lambda channel: channel.queue_delete("a"),
        lambda channel: channel.exchange_bind("y", "x", "k"),
        lambda channel: channel.exchange_delete("x2"),
    ],
)
def test_routes_are_found_anew_when_something_changes(channel: Channel, change: Callable[[Channel], object]) -> None:
    """What is remembered of routes is what a broker finds that never published."""
    for name in ("x", "x2", "y"):
        channel.exchange_declare(name, "topic")
    for name in ("a", "b", "c"):
        channel.queue_declare(name)
    channel.queue_bind("a", "x", "k")
    channel.queue_bind("b", "x2", "#")
    channel.exchange_bind("x2", "x", "*")
    channel.queue_bind("c", "y", "#")

    def there() -> dict[str, int]:
        for each in channel.host.queues():
            channel.queue_purge(each.queue)
        channel.publish("x", "k", PLAIN, b"")
        return {each.queue: each.messages for each in channel.host.queues()}

    assert there() == there() == {"a": 1, "b": 1, "c": 0}
    change(channel)
    remembered = there()
    channel.host._routes.clear()
    assert there() == remembered


def test_a_sink_that_is_full_of_work_does_not_change_the_order() -> None:
    """Dead letters are published after the call that they come from, the first first."""
    seen: list[bytes] = []
    broker = new_broker()
    channel = broker.connect().open_channel(
        1, lambda sent: seen.append(sent.body) if isinstance(sent, Deliver) else None
    )
    channel.queue_declare("dead")
    channel.queue_declare("q", arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"})
    for body in (b"1", b"2", b"3"):
        channel.publish("", "q", PLAIN, body)
    channel.consume("dead", no_ack=True)
    channel.consume("q")
    channel.nack(0, multiple=True, requeue=False)
    assert seen == [b"1", b"2", b"3"] * 2


def test_what_is_not_supported_is_refused(channel: Channel) -> None:
    with pytest.raises(AmqpError) as error:
        channel.queue_declare("q", durable=True, arguments={"x-queue-type": "quorum", "x-delayed-retry-type": "all"})
    assert error.value.code == 540


# -- a client that does not take what it is sent -----------------------------------------------------------------------


def bodies(sent: list[Sent]) -> bytes:
    return b"".join(each.body for each in sent if isinstance(each, Deliver))


@pytest.mark.parametrize("kind", ["classic", "quorum"])
@pytest.mark.parametrize("no_ack", [True, False])
def test_others_get_what_a_full_connection_does_not(
    broker: Broker, connection: Connection, channel: Channel, sent: list[Sent], *, kind: str, no_ack: bool
) -> None:
    other: list[Sent] = []
    second = broker.connect().open_channel(1, other.append)
    channel.queue_declare("q", durable=True, arguments={"x-queue-type": kind})
    channel.qos(3)
    channel.consume("q", "slow", no_ack=no_ack)
    channel.publish("", "q", PLAIN, b"1")
    connection.hold()
    second.consume("q", "quick", no_ack=True)
    for body in (b"2", b"3", b"4"):
        channel.publish("", "q", PLAIN, body)
    assert (bodies(sent), bodies(other)) == (b"1", b"234")
    second.cancel("quick")
    channel.publish("", "q", PLAIN, b"5")
    assert bodies(sent) == b"1"
    connection.go_on()
    assert bodies(sent) == b"15"


@pytest.mark.parametrize("arguments", [{}, {"x-queue-type": "stream"}, {"x-single-active-consumer": True}])
def test_a_connection_that_becomes_full_in_the_middle_goes_on_where_it_was(
    connection: Connection, sent: list[Sent], *, arguments: dict[str, Any]
) -> None:
    """Its client is full after every second delivery; a consumer that comes meanwhile waits as well."""

    def sink(each: Sent) -> None:
        sent.append(each)
        if len(bodies(sent)) % 2 == 0 and isinstance(each, Deliver):
            connection.hold()

    channel = connection.open_channel(1, sink)
    channel.queue_declare("q", durable=True, arguments=arguments)
    for body in (b"1", b"2", b"3", b"4", b"5"):
        channel.publish("", "q", PLAIN, body)
    channel.qos(10)
    connection.hold()
    channel.consume("q", "tag", arguments={"x-stream-offset": "first"} if "x-queue-type" in arguments else {})
    seen = [bodies(sent)]
    for _ in range(3):
        connection.go_on()
        seen.append(bodies(sent))
    assert seen == [b"", b"12", b"1234", b"12345"]


def test_a_settlement_on_a_full_connection_brings_nothing(connection: Connection, channel: Channel, sent: list[Sent]):
    channel.queue_declare("q")
    channel.qos(1)
    channel.consume("q", "tag")
    for body in (b"1", b"2", b"3"):
        channel.publish("", "q", PLAIN, body)
    connection.hold()
    channel.ack(1)
    assert bodies(sent) == b"1"
    connection.go_on()
    assert bodies(sent) == b"12"


def test_a_full_connection_keeps_its_consumers_place_in_the_line(
    broker: Broker, connection: Connection, channel: Channel, sent: list[Sent]
) -> None:
    """Of those that wait to be the single active one, the highest prefetch comes first, whoever is full just then."""
    first, other = (broker.connect().open_channel(1, lambda _: None) for _ in range(2))
    alone = {"x-queue-type": "quorum", "x-single-active-consumer": True}
    first.queue_declare("q", durable=True, arguments=alone)
    first.consume("q", "active")
    for each, prefetch in ((other, 1), (channel, 10)):
        each.qos(prefetch)
        each.consume("q", str(prefetch))
    connection.hold()
    first.close()
    other.publish("", "q", PLAIN, b"1")
    connection.go_on()
    assert bodies(sent) == b"1"


def test_deletion_of_a_queue_looks_at_its_own_bindings_alone() -> None:
    """However many there are from the same exchange and from others."""

    class Watched(dict[Any, Any]):
        def values(self) -> Any:
            raise AssertionError("all bindings were looked through")

        items = __iter__ = values

    broker = new_broker()
    channel = broker.connect().open_channel(1, lambda _: None)
    for x in ("x", "y"):
        channel.exchange_declare(x, "direct")
    for number in range(20):
        channel.queue_declare(f"q{number}")
        channel.queue_bind(f"q{number}", "x" if number % 2 else "y", "k")
    for x in ("x", "y"):
        broker.exchanges[x].bindings = Watched(broker.exchanges[x].bindings)
    channel.queue_delete("q3")
    assert len(broker.exchanges["x"].bindings) == 9
