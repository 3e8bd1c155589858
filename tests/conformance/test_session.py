"""The contract of transport.Session: on a wire, and in process without any RabbitMQ.

What needs an address, a user or the death of a node is asked of the first two only.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing, suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from socket import create_server
from typing import Any

import aio_pika
import pytest

from choreo.agent import Agent
from choreo.broker import in_process
from choreo.broker.in_process import Host
from choreo.config.broker_url import BrokerUrl
from choreo.errors import AccessRefused, BrokerUnreachable, ChoreoError, TopologyMismatch
from choreo.event import Event
from choreo.message import Message
from choreo.rabbit import session as rabbit
from choreo.testing.rabbitmq.node import Node
from choreo.topology import Binding, Exchange, Names, Queue, Topology, return_key, schedule_key
from choreo.transport import Confirmed, Consumer, Delivery, Publication, Refused, Session, Unknown
from tests.waiting import eventually

Open = Callable[..., Awaitable[Session]]

QUORUM = {"x-queue-type": "quorum", "x-delivery-limit": 20}


IN_PROCESS = "in process"
ON_A_WIRE = [pytest.param("wire", marks=pytest.mark.broker)]

on_a_wire = pytest.mark.parametrize("transport", ON_A_WIRE, indirect=True)


@pytest.fixture(params=[*ON_A_WIRE, IN_PROCESS])
def transport(request: pytest.FixtureRequest) -> str:
    """Which transport is under test."""
    return str(request.param)


@pytest.fixture
def host(transport: str) -> Host | None:
    """The broker of the transport in process."""
    return Host() if transport == IN_PROCESS else None


@pytest.fixture
async def open_session(transport: str, host: Host | None, request: pytest.FixtureRequest) -> AsyncIterator[Open]:
    """Opens sessions: open_session(url=broker_url). They are closed with the test."""
    opened: list[Session] = []
    broker_url = request.getfixturevalue("broker_url") if host is None else None

    async def open_one(url: str | None = broker_url) -> Session:
        if url is None:
            assert host is not None
            opened.append(await in_process.connect(host))
        else:
            opened.append(await rabbit.connect([BrokerUrl.parse(url)], name="conformance"))
        return opened[-1]

    yield open_one
    for each in opened:
        await each.close()


@pytest.fixture
async def delete_queue(host: Host | None, request: pytest.FixtureRequest) -> Callable[[str], Awaitable[None]]:
    """Deletes a queue behind the back of the session."""
    broker_url = request.getfixturevalue("broker_url") if host is None else ""

    async def delete(queue: str) -> None:
        if host is not None:
            host.broker.connect().open_channel(1, lambda _: None).queue_delete(queue)
            return
        async with await aio_pika.connect(broker_url) as connection, connection.channel() as channel:
            await channel.queue_delete(queue)

    return delete


@pytest.fixture
async def session(open_session: Open) -> Session:
    return await open_session()


class Box:
    """One topic exchange, one quorum queue bound to `here`, and what a consumer of it has got so far."""

    def __init__(self, namespace: str, **arguments: Any) -> None:
        self.exchange = f"{namespace}.events"
        self.queue = f"{namespace}.box"
        self.topology = Topology(
            (Exchange(self.exchange, "topic"),),
            (Queue(self.queue, "work", "box", QUORUM | arguments),),
            (Binding(self.exchange, self.queue, "here"),),
        )
        self.got: list[Delivery] = []

    @property
    def bodies(self) -> list[bytes]:
        return [delivery.message.body for delivery in self.got]

    def has(self, count: int) -> bool:
        return len(self.got) == count

    async def fill(self, session: Session, *bodies: bytes) -> None:
        for body in bodies:
            assert await self.put(session, Message(body)) == Confirmed()

    async def put(self, session: Session, message: Message, key: str = "here") -> Confirmed | Refused | Unknown:
        return await session.publish(message, exchange=self.exchange, routing_key=key, timeout=10)

    async def consume(self, session: Session, prefetch: int = 100) -> Consumer:
        return await session.consume(self.queue, prefetch=prefetch, on_delivery=self.got.append)

    async def holds(self, session: Session, ready: int, consumers: int) -> bool:
        found = await session.stats(self.queue)
        return found is not None and (found.ready, found.consumers) == (ready, consumers)


@pytest.fixture
async def box(session: Session, namespace: str) -> Box:
    box = Box(namespace)
    await session.declare(box.topology)
    return box


async def refused(opening: Awaitable[Any]) -> ChoreoError:
    """Return the error of something that must not succeed. Every one has a way out and hides passwords."""
    with pytest.raises(ChoreoError) as caught:
        await opening
    assert caught.value.way_out
    assert "s3cret" not in f"{caught.value} {caught.value!r}"
    return caught.value


# Publishing: confirmed, refused or unknown, and never one as another.


async def test_stored_message_is_confirmed_and_arrives_as_it_was(session: Session, box: Box) -> None:
    """Body, headers and every property that the message has come out of the queue unchanged."""
    message = Message(
        b'{"a": "\xc3\xa9"}',
        headers={
            "text": "Grüße",
            "number": 2**40,
            "yes": True,
            "list": ["a", 1],
            "table": {"b": bytearray(b"\x00\xff")},
        },
        content_type="application/json",
        content_encoding="utf-8",
        message_id="m-1",
        correlation_id="c-1",
        type="order.placed",
        app_id="shop",
        reply_to="somewhere",
        priority=3,
        timestamp=datetime(2026, 1, 31, 12, tzinfo=UTC),
    )
    assert await box.put(session, message) == Confirmed()
    await box.consume(session)
    await eventually(lambda: box.got)
    (delivery,) = box.got
    assert delivery.message == message
    assert (delivery.exchange, delivery.routing_key, delivery.redelivered) == (box.exchange, "here", False)


@pytest.mark.parametrize("size", [0, 1, 131_064, 131_065, 1_000_000])
async def test_body_of_any_size_arrives_whole(session: Session, box: Box, size: int) -> None:
    """Also the empty one, and those around the size of one frame."""
    await box.fill(session, b"x" * size)
    await box.consume(session)
    await eventually(lambda: box.got)
    assert box.bodies == [b"x" * size]


async def test_confirmed_message_survives_the_session(open_session: Open, session: Session, box: Box) -> None:
    """It is persistent and waits for whoever comes next."""
    await box.fill(session, b"kept")
    await session.close()
    await box.consume(await open_session())
    await eventually(lambda: box.bodies == [b"kept"])


async def test_message_that_nobody_is_bound_for_is_returned(session: Session, box: Box) -> None:
    """A returned message is refused with the reason, and the session goes on."""
    result = await box.put(session, Message(b"1"), key="nowhere")
    assert isinstance(result, Refused)
    assert result.reason == "returned"
    assert "nowhere" in result.detail
    await box.fill(session, b"2")


async def test_message_that_need_not_arrive_is_confirmed(session: Session, box: Box) -> None:
    """Without `mandatory` the broker confirms that nobody wanted it."""
    message = Message(b"1")
    result = await session.publish(message, exchange=box.exchange, routing_key="nowhere", timeout=10, mandatory=False)
    assert result == Confirmed()


@pytest.mark.parametrize("kind", ["classic", "quorum"])
async def test_message_that_one_of_two_queues_does_not_take_may_be_stored(
    session: Session, namespace: str, kind: str
) -> None:
    """A full queue refuses it, and the other that it is routed to has it: nobody may say that it is not stored."""
    box = Box(namespace)
    await session.declare(box.topology)
    full = Queue(
        f"{namespace}.full",
        "work",
        "full",
        {"x-queue-type": kind, "x-max-length": 1, "x-overflow": "reject-publish"},
    )
    await session.declare(Topology((), (full,), (Binding(box.exchange, full.name, "here"),)))
    results: list[Publication] = []

    async def nacked() -> bool:  # a quorum queue takes a few more than its length
        results.append(await box.put(session, Message(b"%d" % len(results))))
        return results[-1] != Confirmed()

    await eventually(nacked)
    refused = results[-1]
    assert isinstance(refused, Unknown)
    assert refused.nacked
    assert box.exchange in refused.detail
    await eventually(partial(box.holds, session, ready=len(results), consumers=0))
    assert not session.lost.done()


async def test_publishes_that_share_an_id_each_get_their_own_answer(session: Session, box: Box) -> None:
    """Two messages in flight with one id, one of them returned: neither gets the other's answer."""
    keys = ["here", "nowhere"] * 25
    results = await asyncio.gather(*(box.put(session, Message(b"x", message_id="same"), key) for key in keys))
    assert [type(each) for each in results] == [Confirmed, Refused] * 25
    assert await box.holds(session, ready=25, consumers=0)


async def test_many_publishes_in_flight_are_all_confirmed(session: Session, box: Box) -> None:
    """The broker answers many at once with one frame; every waiting publish hears of it."""
    results = await asyncio.gather(*(box.put(session, Message(b"%d" % n)) for n in range(1_000)))
    assert set(map(type, results)) == {Confirmed}
    assert await box.holds(session, ready=1_000, consumers=0)


async def test_publish_to_a_missing_exchange_is_never_confirmed(session: Session, box: Box, namespace: str) -> None:
    """The broker closes the channel for it, which is opened again: the next publish is none the worse, and neither is a
    consumer of the session."""
    await box.consume(session)
    missing = f"{namespace}.missing"
    result = await session.publish(Message(b"x"), exchange=missing, routing_key="here", timeout=5)
    assert isinstance(result, Refused)
    assert result.reason == "missing"
    assert missing in result.detail
    await eventually_stored(session, box)
    await eventually(partial(box.has, 1))
    assert not session.lost.done()


async def eventually_stored(session: Session, box: Box) -> None:
    """A publish that comes while the channel is opened again may be lost with it, a later one is stored."""

    async def stored() -> bool:
        return await box.put(session, Message(b"x")) == Confirmed()

    await eventually(stored)


async def test_publishes_beside_one_to_a_missing_exchange_are_not_refused(
    open_session: Open, session: Session, box: Box, namespace: str
) -> None:
    """The channel ends under all that are in flight: none of them is reported as stored or refused when it is not."""
    exchanges = [box.exchange, f"{namespace}.missing", box.exchange]
    results = await asyncio.gather(
        *(
            session.publish(Message(b"x", message_id=f"{number}"), exchange=each, routing_key="here", timeout=5)
            for number, each in enumerate(exchanges)
        )
    )
    assert not isinstance(results[0], Refused)
    assert not isinstance(results[1], Confirmed)
    assert not isinstance(results[2], Refused)
    other = await open_session()
    found = await other.stats(box.queue)
    assert found is not None
    assert found.ready >= sum(isinstance(each, Confirmed) for each in results)


async def test_publish_on_a_closed_session_is_unknown(session: Session, box: Box) -> None:
    """Nothing is raised and nothing waits: the caller learns that there was no answer."""
    await session.close()
    assert isinstance(await box.put(session, Message(b"x")), Unknown)
    assert session.lost.done()


async def test_cancelled_publish_is_cancelled(session: Session, box: Box) -> None:
    """Whoever is cancelled while waiting for a confirmation sees the cancellation; the next publish is not harmed."""
    waiting = asyncio.ensure_future(box.put(session, Message(b"x", message_id="same")))
    await asyncio.wait((waiting,), timeout=0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await box.put(session, Message(b"x", message_id="same")) == Confirmed()


# Consuming and settling.


async def test_no_more_than_the_prefetch_is_delivered(session: Session, box: Box) -> None:
    """Three of ten come, and the next one when one of them is settled."""
    await box.fill(session, *(b"%d" % n for n in range(10)))
    consumer = await box.consume(session, prefetch=3)
    await eventually(lambda: box.holds(session, ready=7, consumers=1))
    await eventually(lambda: len(box.got) == 3)
    consumer.acknowledge(box.got[0])
    await eventually(lambda: len(box.got) == 4)
    assert await box.holds(session, ready=6, consumers=1)
    assert box.bodies == [b"0", b"1", b"2", b"3"]


async def test_two_consumers_have_a_prefetch_each(session: Session, box: Box, namespace: str) -> None:
    """One agent that holds its fill does not keep another one from working."""
    other = Box(f"{namespace}.other")
    await session.declare(other.topology)
    await box.fill(session, b"1", b"2")
    await other.fill(session, b"1", b"2")
    await box.consume(session, prefetch=1)
    await other.consume(session, prefetch=2)
    await eventually(lambda: (len(box.got), len(other.got)) == (1, 2))


async def test_requeued_messages_come_again_in_their_order(session: Session, box: Box) -> None:
    """What is handed back is redelivered before what was never delivered, and says so."""
    await box.fill(session, b"a", b"b", b"c", b"d")
    consumer = await box.consume(session, prefetch=3)
    await eventually(lambda: len(box.got) == 3)
    await consumer.cancel()
    for delivery in list(box.got):
        consumer.requeue(delivery)
    await eventually(lambda: box.holds(session, ready=4, consumers=0))
    box.got.clear()
    await box.consume(session)
    await eventually(lambda: len(box.got) == 4)
    assert box.bodies == [b"a", b"b", b"c", b"d"]
    assert [delivery.redelivered for delivery in box.got] == [True, True, True, False]


async def test_message_handed_back_often_is_still_there(session: Session, box: Box) -> None:
    """Handing back is no failure of the message: thirty rolling restarts leave it in the queue, or where the broker's
    delivery limit says (20 here; before RabbitMQ 4.3 a nack counts)."""
    await box.fill(session, b"a")
    consumer = await box.consume(session, prefetch=1)
    for times in range(1, 20):
        await eventually(partial(box.has, times))
        consumer.requeue(box.got[-1])
    await eventually(partial(box.has, 20))
    assert set(box.bodies) == {b"a"}


async def test_cancelled_consumer_keeps_what_it_has(session: Session, box: Box) -> None:
    """After `cancel` nothing new comes, and what came before can still be settled either way."""
    await box.fill(session, b"1", b"2")
    consumer = await box.consume(session)
    await eventually(lambda: len(box.got) == 2)
    await consumer.cancel()
    await box.fill(session, b"3")
    consumer.acknowledge(box.got[0])
    consumer.requeue(box.got[1])
    # A quorum queue counts the consumer for as long as it has something to settle.
    await eventually(lambda: box.holds(session, ready=2, consumers=0))
    await consumer.close()
    assert await box.holds(session, ready=2, consumers=0)
    assert len(box.got) == 2


async def test_closed_consumer_gives_everything_back(session: Session, box: Box) -> None:
    """What is not settled when the subscription ends is ready again; the session lives on."""
    await box.fill(session, b"1", b"2", b"3")
    consumer = await box.consume(session)
    await eventually(lambda: len(box.got) == 3)
    consumer.acknowledge(box.got[1])
    await consumer.close()
    await eventually(lambda: box.holds(session, ready=2, consumers=0))


async def test_acknowledged_before_close_is_acknowledged(open_session: Open, session: Session, box: Box) -> None:
    """Acknowledgements that were given before the session was closed have reached the broker."""
    other = await open_session()
    await box.fill(other, *(b"%d" % n for n in range(300)))
    consumer = await box.consume(session, prefetch=300)
    await eventually(lambda: len(box.got) == 300)
    for delivery in box.got[:299]:
        consumer.acknowledge(delivery)
    await session.close()
    await eventually(lambda: box.holds(other, ready=1, consumers=0))


@pytest.mark.parametrize("which", ["the first ones", "some"])
async def test_each_delivery_is_settled_as_was_said_of_it(
    open_session: Open, session: Session, box: Box, which: str
) -> None:
    """Of a thousand deliveries, settled all at once, the acknowledged ones are gone and exactly the others come again:
    no acknowledgement covers one that is still on its way back."""
    await asyncio.gather(*(box.fill(session, b"%d" % n) for n in range(1_000)))
    consumer = await box.consume(session, prefetch=1_000)
    await eventually(partial(box.has, 1_000))
    await consumer.cancel()
    back = set(box.bodies[:300] if which == "the first ones" else random.Random(1).sample(box.bodies, 300))
    for each in box.got:
        (consumer.requeue if each.message.body in back else consumer.acknowledge)(each)
    # The session stays open meanwhile: a broker forgets what a closed channel acknowledged and it has not got round to.
    other = await open_session()
    box.got.clear()
    await box.consume(other, prefetch=1_000)
    await eventually(lambda: len(box.got) >= 300, what="all that were given back coming again")
    await session.close()
    await eventually(lambda: box.holds(other, ready=0, consumers=1))
    assert sorted(box.bodies) == sorted(back)


async def test_settling_after_the_end_does_nothing(open_session: Open, session: Session, box: Box) -> None:
    """A reaction that ends after its session was lost settles into the void; the message is delivered again."""
    await box.fill(session, b"1", b"2")
    consumer = await box.consume(session)
    await eventually(lambda: len(box.got) == 2)
    await session.close()
    consumer.acknowledge(box.got[0])
    consumer.requeue(box.got[1])
    await consumer.cancel()
    await consumer.close()
    other = await open_session()
    await eventually(lambda: box.holds(other, ready=2, consumers=0))


async def test_consuming_from_a_missing_queue_is_refused(session: Session, namespace: str) -> None:
    """Whoever subscribes has declared it before, so it was deleted; a worker begins anew, and no setting is wrong."""
    error = await refused(session.consume(f"{namespace}.missing", prefetch=1, on_delivery=print))
    assert isinstance(error, BrokerUnreachable)
    assert f"no queue '{namespace}.missing': the queue was deleted, and what it held is gone" in error.message


# Looking and declaring.


async def test_what_is_removed_is_gone_with_what_it_held(session: Session, namespace: str) -> None:
    """Queues and exchanges; to remove them once more is no error."""
    topology = Topology.of(agents(), namespace)
    await session.declare(topology)
    names = {each.name for each in topology.exchanges} | {each.name for each in topology.queues}
    await session.remove(topology)
    assert set(await session.missing(topology)) == names
    await session.remove(topology)


async def test_stats_of_a_queue(session: Session, box: Box) -> None:
    """Ready messages and consumers, without the management API."""
    await box.fill(session, b"1", b"2")
    assert await box.holds(session, ready=2, consumers=0)
    await box.consume(session, prefetch=1)
    await eventually(lambda: box.holds(session, ready=1, consumers=1))


async def test_missing_queue_has_no_stats(session: Session, box: Box, namespace: str) -> None:
    """There being no such queue is an answer, and does not harm the session."""
    for _ in range(3):
        assert await session.stats(f"{namespace}.missing") is None
    await box.fill(session, b"1")
    assert not session.lost.done()


async def test_one_question_is_answered_while_many_are_asked(session: Session, ladder: Names) -> None:
    """Who looks whether everything is still there, over a slow connection for seconds, keeps nobody waiting: whoever
    asks for one queue meanwhile would take the broker for deaf."""
    topology = Topology.of(agents(), ladder.namespace)
    gone = Topology((*topology.exchanges, Exchange("gone", "topic")), topology.queues, ())
    looking = asyncio.ensure_future(session.missing(gone))
    await asyncio.sleep(0)
    for _ in range(3):
        assert await session.stats(ladder.queue("payment")) is not None
    assert not looking.done() or session.server.product.startswith("choreo"), "in process nothing takes time"
    assert await looking == ("gone",)


async def test_declaring_again_changes_nothing(open_session: Open, session: Session, box: Box) -> None:
    """The same topology may be declared any number of times, by many at once, and messages stay where they are."""
    await box.fill(session, b"1")
    await session.declare(box.topology)
    sessions = [await open_session() for _ in range(3)]
    await asyncio.gather(*(each.declare(box.topology) for each in sessions))
    assert await box.holds(session, ready=1, consumers=0)


async def test_queue_with_other_arguments_is_named(session: Session, box: Box) -> None:
    """The error names the queue, the argument, both values and the way out; nothing else has suffered."""
    await box.fill(session, b"1")
    queue = replace(box.topology.queues[0], arguments=QUORUM | {"x-delivery-limit": 7})
    error = await refused(session.declare(replace(box.topology, queues=(queue,))))
    assert isinstance(error, TopologyMismatch)
    for part in (box.queue, "queue", "x-delivery-limit", "20", "7"):
        assert part in error.message
    assert f"delete_queue {box.queue}" in error.way_out
    assert "CHOREO_NAMESPACE" in error.way_out
    assert await box.holds(session, ready=1, consumers=0)
    await session.declare(box.topology)


async def test_argument_that_only_one_side_has_is_named(session: Session, box: Box) -> None:
    """Also when the queue there lacks it, or has one that choreo does not declare."""
    for arguments in ({"x-queue-type": "quorum"}, QUORUM | {"x-max-length": 9}):
        queue = replace(box.topology.queues[0], arguments=arguments)
        error = await refused(session.declare(replace(box.topology, queues=(queue,))))
        assert isinstance(error, TopologyMismatch)
        argument = next(iter(set(arguments) ^ set(QUORUM)))
        assert argument in error.message
        assert "none" in error.message


async def test_exchange_of_another_type_is_named(session: Session, box: Box) -> None:
    error = await refused(
        session.declare(Topology(exchanges=(Exchange(box.exchange, "direct"),), queues=(), bindings=()))
    )
    assert isinstance(error, TopologyMismatch)
    for part in ("exchange", box.exchange, "type", "direct", "topic"):
        assert part in error.message
    # Not by a command: rabbitmqctl deletes queues only.
    assert "delete_exchange" not in error.way_out


# Being let in.


async def test_wrong_password_is_refused(node: Node) -> None:
    """The message names host and user, the way out where the password comes from; neither shows it."""
    error = await refused(
        rabbit.connect([BrokerUrl.parse(f"amqp://guest:s3cret@127.0.0.1:{node.port}")], name="conformance")
    )
    assert isinstance(error, AccessRefused)
    assert f"127.0.0.1:{node.port}" in error.message
    assert "guest" in error.message
    assert "CHOREO_URL" in error.way_out


async def test_wrong_virtual_host_is_refused(broker_url: str, namespace: str) -> None:
    error = await refused(rabbit.connect([BrokerUrl.parse(broker_url + namespace)], name="conformance"))
    assert isinstance(error, AccessRefused)
    assert repr(namespace) in error.message
    assert "list_vhosts" in error.way_out


@pytest.mark.real_node("permissions")
@on_a_wire
async def test_missing_permission_is_refused(
    node: Node, open_session: Open, session: Session, box: Box, vhost: str
) -> None:
    """A user may log in and be allowed nothing; the error says what is missing, and a message is never confirmed."""
    node.ctl("add_user", vhost, "s3cret")
    url = f"amqp://{vhost}:s3cret@127.0.0.1:{node.port}"
    try:
        # no permission in the virtual host at all
        error = await refused(rabbit.connect([BrokerUrl.parse(f"{url}/{vhost}")], name="conformance"))
        assert isinstance(error, AccessRefused)
        assert vhost in error.message
        # let in, but only to look at what has another name
        node.ctl("set_permissions", "--vhost", "/", vhost, "^other", "^other", "^other")
        limited = await open_session(url)
        for attempt in (
            limited.declare(box.topology),
            limited.consume(box.queue, prefetch=1, on_delivery=box.got.append),
        ):
            error = await refused(attempt)
            assert isinstance(error, AccessRefused)
            assert vhost in error.message
            assert "set_permissions" in error.way_out
        limited = await open_session(url)
        assert not isinstance(await box.put(limited, Message(b"x")), Confirmed)
        assert await box.holds(session, ready=0, consumers=0)
    finally:
        node.ctl("delete_user", vhost)


async def test_nobody_listens(node: Node) -> None:
    """No broker at that port: host, port and the system's reason, and how to name another."""
    with closing(create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
    error = await refused(rabbit.connect([BrokerUrl.parse(f"amqp://127.0.0.1:{port}")], name="conformance"))
    assert isinstance(error, BrokerUnreachable)
    assert f"127.0.0.1:{port}" in error.message
    assert "refused" in error.message.lower()
    assert "CHOREO_URL" in error.way_out


async def test_something_else_listens() -> None:
    """A server that does not speak AMQP is said to be one."""

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        error = await refused(rabbit.connect([BrokerUrl.parse(f"amqp://127.0.0.1:{port}")], name="conformance"))
    assert isinstance(error, BrokerUnreachable)
    assert f"127.0.0.1:{port}" in error.message


async def test_nobody_answers() -> None:
    """A port that accepts and then says nothing costs the connection timeout and no more."""
    began = time.monotonic()
    with closing(create_server(("127.0.0.1", 0))) as server:
        url = f"amqp://127.0.0.1:{server.getsockname()[1]}?connection_timeout=1"
        error = await refused(rabbit.connect([BrokerUrl.parse(url)], name="conformance"))
    assert isinstance(error, BrokerUnreachable)
    assert "no answer within 1 s" in error.message
    assert 1 <= time.monotonic() - began < 4.5  # 5 if the URL says nothing


async def test_next_node_of_the_list_is_tried(broker_url: str, node: Node) -> None:
    """Of several nodes the first that lets us in is taken."""
    with closing(create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
    urls = BrokerUrl.parse_all(f"amqp://127.0.0.1:{port},{broker_url}")
    session = await rabbit.connect(urls, name="conformance")
    assert session.server.version == node.version
    assert session.server.product in ("RabbitMQ", "choreo embedded")
    await session.close()


# The end of a session.


async def test_deleted_queue_ends_the_session(
    session: Session, box: Box, delete_queue: Callable[[str], Awaitable[None]]
) -> None:
    """The broker cancels a consumer whose queue is deleted: nothing would ever arrive again, so it counts as lost."""
    await box.consume(session)
    await delete_queue(box.queue)
    async with asyncio.timeout(5):
        assert "queue was deleted" in str(await session.lost)


@pytest.mark.parametrize("first", ["cancel", "consume", "stats", "missing"])
async def test_deleted_queue_is_named_whichever_request_meets_it_first(
    session: Session, box: Box, delete_queue: Callable[[str], Awaitable[None]], first: str
) -> None:
    """Also to one who is told of consumer timeouts, whose cancel the broker does not explain."""
    timeouts: list[ChoreoError] = []

    def ended(error: ChoreoError, *, guessed: bool = False) -> None:
        timeouts.append(error)

    await session.consume(box.queue, prefetch=1, on_delivery=box.got.append, on_timeout=ended)
    await delete_queue(box.queue)
    match first:
        case "consume":
            with suppress(ChoreoError):
                await session.consume(box.queue, prefetch=1, on_delivery=box.got.append, on_timeout=ended)
        case "stats":
            with suppress(ChoreoError):
                await session.stats(box.queue)
        case "missing":
            with suppress(ChoreoError):
                await session.missing(box.topology)
    async with asyncio.timeout(30):
        lost = await session.lost
    assert isinstance(lost, BrokerUnreachable)
    assert box.queue in lost.message
    assert "the queue was deleted, and what it held is gone" in lost.message
    assert not timeouts


@on_a_wire
async def test_connections_closed_by_the_broker_end_the_session(
    node: Node, open_session: Open, broker_url: str, vhost: str
) -> None:
    """An operator closes the connections: the session says so, and its publishes are unknown."""
    session, box = await open_session(broker_url + vhost), Box(vhost)
    await session.declare(box.topology)
    await box.consume(session)
    node.ctl("close_all_connections", "--vhost", vhost, "for the test")
    async with asyncio.timeout(5):
        lost = await session.lost
    assert isinstance(lost, BrokerUnreachable)
    assert isinstance(await box.put(session, Message(b"x")), Unknown)


async def test_closing_ends_the_session(session: Session) -> None:
    await session.close()
    assert session.lost.done()
    await session.close()


@on_a_wire
async def test_alarm_and_death_of_a_node(fresh_node: Node, open_session: Open, namespace: str) -> None:
    """While the broker has no memory left, publishes are unknown and acknowledgements get through; when it is killed,
    sessions are lost at once; when it is back, what was confirmed is there."""
    session, watcher = await open_session(fresh_node.url), await open_session(fresh_node.url)
    box = Box(namespace)
    await session.declare(box.topology)
    await box.fill(session, b"1", b"2")
    consumer = await box.consume(session)
    await eventually(lambda: len(box.got) == 2)

    fresh_node.ctl("set_vm_memory_high_watermark", "absolute", "1")
    result = await session.publish(Message(b"3"), exchange=box.exchange, routing_key="here", timeout=1)
    assert isinstance(result, Unknown)
    assert "within 1 s" in result.detail
    consumer.acknowledge(box.got[0])
    fresh_node.ctl("set_vm_memory_high_watermark", "0.4")
    await eventually(lambda: len(box.got) == 3)  # the unknown one was stored in the end
    await box.fill(session, b"4")
    await eventually(lambda: len(box.got) == 4)

    async def declare_for_ever() -> None:
        while True:
            await watcher.declare(box.topology)
            await watcher.stats(box.queue)

    declaring = asyncio.ensure_future(declare_for_ever())
    in_flight = [asyncio.ensure_future(box.put(session, Message(b"5", message_id=f"{n}"))) for n in range(50)]
    await asyncio.wait(in_flight, timeout=0)
    fresh_node.kill()
    async with asyncio.timeout(5):
        assert isinstance(await session.lost, BrokerUnreachable)
        assert isinstance(await watcher.lost, BrokerUnreachable)
        results = await asyncio.gather(*in_flight)
        with pytest.raises(ChoreoError):
            await declaring
    assert set(map(type, results)) <= {Confirmed, Unknown}
    assert isinstance(await refused(open_session(fresh_node.url)), BrokerUnreachable)

    await asyncio.to_thread(fresh_node.start_again)
    again = await open_session(fresh_node.url)
    box.got.clear()
    await box.consume(again)
    confirmed = sum(isinstance(each, Confirmed) for each in results)
    await eventually(lambda: len(box.got) >= 3 + confirmed)
    assert {b"2", b"3", b"4"} <= set(box.bodies)
    assert b"1" not in box.bodies


# The ladder of delays.


class Placed(Event, topic="test-session.placed"):
    pass


def agents() -> list[Agent]:
    """Two agents with one topic in common."""
    first, second = Agent("payment"), Agent("shop-payment")
    for agent in (first, second):

        @agent.on
        def react(placed: Placed) -> None:
            raise NotImplementedError

    return [first, second]


@pytest.fixture
async def ladder(session: Session, namespace: str) -> Names:
    await session.declare(Topology.of(agents(), namespace))
    return Names(namespace)


def older_key(end: str, seconds: int) -> str:
    """Return a key of the ladder as it was before there were queues for retries."""
    return ".".join([*f"{seconds:020b}", end])


async def test_delays_come_back_in_time_and_to_one_queue_only(session: Session, ladder: Names) -> None:
    """Delays of 1, 3 and 5 seconds come back to the agent that they are for, not before their time and soon after it; a
    scheduled event comes to where it is published from. What older workers send ends in work queues, as before."""
    arrived: list[tuple[str, bytes, float]] = []
    began = time.monotonic()

    def note(queue: str, delivery: Delivery) -> None:
        arrived.append((queue, delivery.message.body, time.monotonic() - began))

    names = ladder
    retries, due = names.retries("payment"), names.due
    work, sibling = names.queue("payment"), names.queue("shop-payment")
    for queue in (work, sibling, retries, names.retries("shop-payment"), due):
        await session.consume(queue, prefetch=10, on_delivery=partial(note, queue))
    sent = {b"%d" % delay: (return_key("payment", delay), delay, [retries]) for delay in (0, 1, 3, 5)}
    sent |= {b"event": (schedule_key("test-session.placed", 2), 2, [due])}
    sent |= {b"unheard": (schedule_key("test-session.unheard", 1, 7), 1, [due])}
    sent |= {b"older": (older_key("agent.payment", 3), 3, [work])}
    sent |= {b"older event": (older_key("event.test-session.placed", 2), 2, [work, sibling])}
    for body, (key, _, _) in sent.items():
        result = await session.publish(Message(body), exchange=names.delay, routing_key=key, timeout=10)
        assert result == Confirmed()
    await eventually(lambda: len(arrived) == len(sent) + 1)
    expected = [(queue, body) for body, (_, _, queues) in sent.items() for queue in queues]
    assert sorted((queue, body) for queue, body, _ in arrived) == sorted(expected)
    for _, body, after in arrived:
        assert after >= sent[body][1] - 0.05, f"{body!r} came back after {after:.1f} s"
    assert [body for _, body, _ in arrived if body in {b"1", b"3", b"5"}] == [b"1", b"3", b"5"]


@pytest.mark.parametrize("delay", [0, 1, 5, 2**20 - 1])
async def test_delay_towards_nobody_is_returned_at_once(session: Session, ladder: Names, delay: int) -> None:
    """Neither an agent that is not there, nor one whose name ends alike, nor, by an older key, a topic without
    listeners is waited for."""
    for key in (
        return_key("refund", delay),
        return_key("x.payment", delay),
        older_key("agent.refund", delay),
        older_key("event.test-session.unheard", delay),
        older_key("event.agent.payment", delay),
    ):
        result = await session.publish(Message(b"x"), exchange=ladder.delay, routing_key=key, timeout=10)
        assert isinstance(result, Refused)
        assert result.reason == "returned"


async def test_whole_topology_is_idempotent(session: Session, ladder: Names, namespace: str) -> None:
    """Declared again, also with agents that came and went, nothing is refused and nothing moves."""
    key = return_key("payment", 2**19)
    waiting = await session.publish(Message(b"x"), exchange=ladder.delay, routing_key=key, timeout=10)
    assert waiting == Confirmed()
    await session.declare(Topology.of(agents()[:1], namespace))
    await session.declare(Topology.of(agents(), namespace))
    found = await session.stats(ladder.level(19))
    assert found is not None
    assert found.ready == 1


async def test_only_the_subscription_that_held_for_too_long_is_ended(
    session: Session, box: Box, transport: str
) -> None:
    """From 4.3 on a consumer says how long it may hold; what it held comes again, and the session goes on."""
    major, minor, *_ = (int(part) for part in session.server.version.split("."))
    if transport == IN_PROCESS or (major, minor) < (4, 3):
        pytest.skip("this broker lets no consumer say so")
    errors: list[ChoreoError] = []

    def ended(error: ChoreoError, *, guessed: bool = False) -> None:
        assert guessed, "the broker ends the consumer, and does not say why"
        errors.append(error)

    held = await session.consume(box.queue, prefetch=1, on_delivery=box.got.append, hold=0.5, on_timeout=ended)
    await box.fill(session, b"late")
    await eventually(lambda: errors, what="the timeout")
    assert "consumer timeout" in errors[0].message
    assert "consumer-timeout" in errors[0].way_out
    assert not session.lost.done()
    await held.cancel()
    again = await session.consume(box.queue, prefetch=1, on_delivery=box.got.append, hold=60, on_timeout=ended)
    await eventually(lambda: box.has(2), what="the message again")
    assert box.got[1].redelivered
    again.acknowledge(box.got[1])
    held.acknowledge(box.got[0])
    await held.close()
    await again.close()
    await eventually(lambda: box.holds(session, ready=0, consumers=0), what="an empty queue")


async def test_queue_of_an_earlier_release_is_taken_as_it_is(session: Session, namespace: str) -> None:
    """A running installation upgrades without a queue being declared anew; anything else is a mismatch."""
    topology = Topology.of((), namespace)
    queue = next(each for each in topology.queues if each.kind == "dlq")
    assert queue.before is not None
    await session.declare(Topology((), (replace(queue, arguments=queue.before, before=None),), ()))
    await session.declare(topology)
    assert await session.missing(topology) == ()
    other = replace(queue, name=f"{namespace}.other")
    await session.declare(Topology((), (replace(other, arguments=QUORUM | {"x-delivery-limit": 3}),), ()))
    error = await refused(session.declare(Topology((), (other,), ())))
    assert isinstance(error, TopologyMismatch)
