"""The fast path splits a stream of frames that is cut anywhere, and agrees with pamqp's own decoder about each."""

from __future__ import annotations

import asyncio
import contextlib
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiormq.abc import AbstractChannel
from hypothesis import given
from hypothesis import strategies as st
from pamqp import body as content_body
from pamqp import commands, frame, header, heartbeat
from yarl import URL

from choreo.amqp import frames
from choreo.message import Message
from choreo.rabbit.consumer import RabbitConsumer
from choreo.rabbit.fast_path.consuming import Consuming
from choreo.rabbit.fast_path.protocol import FastPath, _Splitter
from choreo.rabbit.fast_path.publishing import Publishing
from choreo.transport import Confirmed, Consumer, Delivery, Publication, Refused, Unknown
from tests.waiting import eventually, in_virtual_time

FRAME_MAX = 4096


def raised(error: Exception) -> None:
    raise error


class Wire:
    """A fast path without a socket: what is written, and what is left for aiormq."""

    def __init__(self, heartbeat: float = 0) -> None:
        self.fast_path = FastPath(heartbeat)
        self.reader = asyncio.StreamReader()
        self.splitter = _Splitter(self.fast_path, self.reader, asyncio.get_running_loop())
        self.written = b""
        self.fast_path._transport = cast("asyncio.WriteTransport", self)

    def write(self, data: bytes) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return False

    def receive(self, stream: bytes, cuts: list[int] | None = None) -> None:
        """Let `stream` arrive in pieces."""
        edges = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts or ())})
        for start, end in pairwise(edges):
            self.splitter.data_received(stream[start:end])

    def foreign(self) -> list[tuple[int, Any]]:
        """The frames that aiormq gets, as channel and pamqp's object; heartbeats are only the fast path's own."""
        data, found = bytes(self.reader._buffer), []  # type: ignore[attr-defined]
        while data:
            size, channel, each = frame.unmarshal(data)
            data = data[size:]
            if not isinstance(each, heartbeat.Heartbeat):
                found.append((channel, each))
        return found

    def sent(self) -> list[Any]:
        """What was written, as pamqp's objects."""
        data, found = self.written, []
        while data:
            size, _, each = frame.unmarshal(data)
            data = data[size:]
            found.append(each)
        return found


class Channel:
    number = 7


def delivery(tag: int, body: bytes, *, channel: int = 5, key: str = "a.b", headers: Any = None) -> bytes:
    """The frames of a delivery as the broker would send them, the body in pieces of the frame size."""
    properties = commands.Basic.Properties(message_id=str(tag), headers=headers, content_type="application/json")
    parts = [
        frame.marshal(commands.Basic.Deliver("tag", tag, bool(tag % 2), "events", key), channel),
        frame.marshal(header.ContentHeader(0, len(body), properties), channel),
    ]
    room = FRAME_MAX - 8
    parts += [
        frame.marshal(content_body.ContentBody(body[at : at + room]), channel) for at in range(0, len(body), room)
    ]
    return b"".join(parts)


FOREIGN = [
    (0, commands.Connection.UpdateSecretOk()),
    (3, commands.Queue.DeclareOk("q", 1, 2)),
    (5, commands.Basic.ConsumeOk("tag")),
    (5, commands.Basic.QosOk()),
]
BODIES = st.one_of(st.binary(max_size=50), st.binary(min_size=FRAME_MAX - 9, max_size=3 * FRAME_MAX))


@given(
    st.lists(st.one_of(BODIES, st.sampled_from(range(len(FOREIGN)))), max_size=8),
    st.lists(st.integers(0, 2**20), max_size=12),
)
def test_deliveries_and_foreign_frames_arrive_whole_wherever_the_stream_is_cut(
    stream: list[bytes | int], cuts: list[int]
) -> None:
    async def play() -> None:
        wire, got = Wire(), list[Delivery]()
        Consuming(wire.fast_path, 5, cast("Consumer", None), got.append, raised)
        data, tag = b"", 0
        for each in stream:
            if isinstance(each, int):
                channel, command = FOREIGN[each]
                data += frame.marshal(command, channel)
            else:
                tag += 1
                data += delivery(tag, each, headers={"n": tag, "text": "ä"})
        wire.receive(data, cuts)
        bodies = [each for each in stream if isinstance(each, bytes)]
        assert [each.message.body for each in got] == bodies
        assert [each.tag for each in got] == list(range(1, len(bodies) + 1))
        assert all(each.message.headers == {"n": each.tag, "text": "ä"} for each in got)
        assert all((each.exchange, each.routing_key) == ("events", "a.b") for each in got)
        assert [each.redelivered for each in got] == [bool(each.tag % 2) for each in got]
        expected = [FOREIGN[each] for each in stream if isinstance(each, int)]
        assert [(channel, type(each)) for channel, each in wire.foreign()] == [
            (channel, type(each)) for channel, each in expected
        ]

    asyncio.run(play())


@pytest.mark.parametrize("cuts", [[], [100, 4200, 9000]])
@pytest.mark.parametrize("in_turn", [True, False])
@pytest.mark.parametrize("length", [0, 3, 9000])
async def test_contents_of_two_channels_may_be_interleaved(length: int, in_turn: bool, cuts: list[int]) -> None:
    """Frames of one message are in order on its channel; those of other channels may come between them."""
    wire, got = Wire(), list[Delivery]()
    for channel in (5, 6):
        Consuming(wire.fast_path, channel, cast("Consumer", None), got.append, raised)
    first, second = delivery(1, b"x" * length, channel=5), delivery(1, b"y" * length, channel=6)
    pieces: list[list[bytes]] = []
    for data in (first, second):
        split = []
        while data:
            size, _, _ = frame.unmarshal(data)
            split.append(data[:size])
            data = data[size:]  # noqa: PLW2901 - what is left of it
        pieces.append(split)
    if in_turn:
        stream = [part for pair in zip(*pieces, strict=True) for part in pair]
    else:  # both methods, then all that belongs to the first, then all that belongs to the second
        stream = [pieces[0][0], pieces[1][0], *pieces[0][1:], *pieces[1][1:]]
    wire.receive(b"".join(stream), cuts)
    assert [each.message.body for each in got] == [b"x" * length, b"y" * length]
    assert [each.tag for each in got] == [1, 1]


async def test_settlements_are_written_once_per_turn_of_the_loop() -> None:
    wire, got = Wire(), list[Delivery]()
    consuming = Consuming(wire.fast_path, 5, cast("Consumer", None), got.append, raised)
    wire.receive(b"".join(delivery(tag, b"") for tag in range(1, 6)))
    assert len(got) == 5, "a body of no bytes has no frame of its own"
    for tag in (1, 2, 5):
        consuming.acknowledge(tag)
    consuming.give_back(3)
    assert wire.written == b""
    await asyncio.sleep(0)
    sent = wire.sent()
    assert [(type(each).__name__, each.delivery_tag) for each in sent] == [("Nack", 3), ("Ack", 2), ("Ack", 5)]
    assert [getattr(each, "multiple", None) for each in sent] == [False, True, False]


async def test_nothing_is_written_on_a_channel_that_the_broker_has_closed() -> None:
    """aiormq learns of the close later, and answers it: what is written in between would end the connection."""
    wire = Wire()
    consuming = Consuming(wire.fast_path, 5, cast("Consumer", None), lambda _: None, raised)
    wire.receive(delivery(1, b"x") + frame.marshal(commands.Channel.Close(406, "late", 0, 0), 5))
    consuming.acknowledge(1)
    await asyncio.sleep(0)
    assert wire.written == b""
    assert [type(each) for _, each in wire.foreign()] == [commands.Channel.Close]


@pytest.mark.parametrize("stream", [b"AMQP\0\0\x09\1", b"HTTP/1.1 400 Bad Request\r\n", b"\1\0\0\0\0\0\1xx"])
async def test_what_is_no_amqp_is_left_to_aiormq_whole(stream: bytes) -> None:
    wire = Wire()
    wire.receive(stream, list(range(len(stream))))
    wire.receive(b"more")
    assert bytes(wire.reader._buffer) == stream + b"more"  # type: ignore[attr-defined]


async def test_traffic_of_the_lane_counts_as_a_sign_of_life() -> None:
    """A broker that is busy delivering sends no heartbeats; aiormq, which sees no delivery, must not give it up."""
    wire = Wire()
    Consuming(wire.fast_path, 5, cast("Consumer", None), lambda _: None, raised)
    wire.receive(delivery(1, b"x"))
    assert bytes(wire.reader._buffer) == frames.BEAT  # type: ignore[attr-defined]


async def test_silent_connection_is_given_up_after_two_heartbeats() -> None:
    """As long as anything comes it is kept, however little."""
    ended: list[Exception | None] = []

    class Line:  # as uvloop's: no asyncio.Transport, though it can do the same
        def abort(self) -> None:
            wire.splitter.connection_lost(None)
            ended.append(wire.reader.exception())

        def get_extra_info(self, name: str) -> None:
            return None

    wire = Wire(heartbeat=0.1)
    began = asyncio.get_running_loop().time()
    wire.splitter.connection_made(cast("asyncio.Transport", Line()))
    for _ in range(5):
        await asyncio.sleep(0.08)
        wire.receive(frames.BEAT)
    assert not ended
    await eventually(lambda: ended, within=2)
    assert "two heartbeats" in str(ended[0])
    assert asyncio.get_running_loop().time() - began >= 0.4 + 0.2


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_silence_is_noticed_on_either_event_loop(loop: str) -> None:
    """The transports of uvloop are none of asyncio's classes."""

    async def connect() -> None:
        gone = asyncio.Event()

        async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                await reader.read()
                writer.close()
                await writer.wait_closed()
            gone.set()

        server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
        url = URL.build(scheme="amqp", host="127.0.0.1", port=server.sockets[0].getsockname()[1])
        reader, writer = await FastPath(0.05).create(url)
        try:
            found = await eventually(reader.exception, within=2, what="the end of a silent connection")
            assert "two heartbeats" in str(found)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            await gone.wait()
            server.close()
            await server.wait_closed()

    with asyncio.Runner(loop_factory=pytest.importorskip(loop).new_event_loop) as runner:
        runner.run(connect())


class Broker:
    """Publishes of one channel, and the broker's part of the conversation."""

    def __init__(self, heartbeat: float = 0) -> None:
        self.wire = Wire(heartbeat)
        self.nacks = 0
        self.silences: list[float] = []
        self.publishing = Publishing(self.wire.fast_path, FRAME_MAX, self.nacked, self.silences.append)
        self.publishing.use(cast("AbstractChannel", Channel()))

    def nacked(self) -> None:
        self.nacks += 1

    async def publish(self, *keys: str, message: Message | None = None, timeout: float = 5) -> list[Any]:
        answers = [
            self.publishing.publish(
                message or Message(key.encode(), message_id="same"),
                exchange="events",
                routing_key=key,
                timeout=timeout,
                mandatory=True,
            )
            for key in keys
        ]
        await asyncio.sleep(0)
        return answers

    def say(self, *commands_: Any) -> None:
        self.wire.receive(b"".join(frame.marshal(each, 7) for each in commands_))

    def give_back(self, key: str) -> None:
        properties = commands.Basic.Properties(message_id="same")
        self.say(
            commands.Basic.Return(312, "NO_ROUTE", "events", key),
            header.ContentHeader(0, len(key), properties),
            content_body.ContentBody(key.encode()),
        )


def results(answers: list[asyncio.Future[Publication]]) -> list[str]:
    """What is known of each: its kind, the reason of a refusal, or that there is no answer yet."""
    found = []
    for each in answers:
        result = each.result() if each.done() else None
        found.append(result.reason if isinstance(result, Refused) else type(result).__name__)
    return found


async def test_each_publish_gets_its_own_answer() -> None:
    """Multiple confirms, single ones out of order, a nack, and returns of messages that share their id."""
    broker = Broker()
    answers = await broker.publish("a", "b", "c", "d", "e", "f")
    broker.give_back("b")
    broker.give_back("e")
    assert results(answers) == ["NoneType"] * 6, "a return says that it will be refused, its confirm that it is"
    broker.say(commands.Basic.Ack(5), commands.Basic.Ack(2, multiple=True), commands.Basic.Nack(4))
    assert results(answers) == ["Confirmed", "returned", "NoneType", "Unknown", "returned", "NoneType"]
    broker.say(commands.Basic.Ack(0, multiple=True))
    assert results(answers) == ["Confirmed", "returned", "Confirmed", "Unknown", "returned", "Confirmed"]
    assert not broker.publishing._in_flight
    assert broker.nacks == 1


async def test_late_return_is_not_taken_for_that_of_a_later_publish() -> None:
    """The first one ran out of time; its return and its confirm come when its twin is in flight."""
    broker = Broker()
    (first,) = await broker.publish("a", timeout=0.01)
    assert isinstance(await first, Unknown)
    (second,) = await broker.publish("a")
    broker.give_back("a")
    broker.say(commands.Basic.Ack(1))
    broker.say(commands.Basic.Ack(2))
    assert await second == Confirmed()


async def test_blocked_publishes_are_not_sent_and_say_so() -> None:
    """What ran out of time before it was written is not sent afterwards: nobody would expect it any more."""
    broker = Broker()
    blocked = frame.marshal(commands.Connection.Blocked("low on memory"), 0)
    broker.wire.receive(blocked)
    (first,) = await broker.publish("a", timeout=0.01)
    (second,) = await broker.publish("b", timeout=5)
    result = await first
    assert isinstance(result, Unknown)
    assert "low on memory" in result.detail
    assert broker.wire.written == b""
    broker.wire.receive(frame.marshal(commands.Connection.Unblocked(), 0))
    await asyncio.sleep(0)
    assert [each.routing_key for each in broker.wire.sent() if isinstance(each, commands.Basic.Publish)] == ["b"]
    broker.say(commands.Basic.Ack(1))
    assert await second == Confirmed()


async def test_publishes_wait_while_the_socket_takes_no_more() -> None:
    broker = Broker()
    broker.wire.splitter.pause_writing()
    (answer,) = await broker.publish("a")
    assert broker.wire.written == b""
    broker.wire.splitter.resume_writing()
    await asyncio.sleep(0)
    broker.say(commands.Basic.Ack(1))
    assert await answer == Confirmed()


async def test_rejected_publish_is_told_from_those_beside_it() -> None:
    """The broker closes the channel over one and says which only in words; what waits goes out on the next channel."""
    broker = Broker()
    answers = await broker.publish("a", "b" * 50, "c")
    text = "PRECONDITION_FAILED - message size 50 is larger than configured max size 40"
    broker.say(commands.Channel.Close(406, text, 60, 40))
    assert results(answers) == ["Unknown", "rejected", "Unknown"]
    broker.wire.written = b""
    (later,) = await broker.publish("d")
    assert broker.wire.written == b""
    broker.publishing.use(cast("AbstractChannel", Channel()))
    await asyncio.sleep(0)
    broker.say(commands.Basic.Ack(1))
    assert await later == Confirmed()


@in_virtual_time
async def test_broker_that_answers_no_publish_is_seen_however_patient_the_publish_is() -> None:
    """As long as it answers any of them it is not given up, and neither while it says that it is blocked."""
    broker = Broker(heartbeat=0.1)
    await broker.publish("a", "b", "c", timeout=60)
    for tag in (1, 2):
        await asyncio.sleep(0.15)
        broker.say(commands.Basic.Ack(tag))
    assert broker.silences == []
    broker.wire.receive(frame.marshal(commands.Connection.Blocked("low on disk"), 0))
    await asyncio.sleep(0.5)
    assert broker.silences == []
    broker.wire.receive(frame.marshal(commands.Connection.Unblocked(), 0))
    await eventually(lambda: broker.silences, within=2)
    assert 0.2 <= broker.silences[0] < 1
    broker.say(commands.Basic.Ack(3))
    count = len(broker.silences)
    await asyncio.sleep(0.3)
    assert len(broker.silences) == count


async def test_rejected_topic_is_told_from_others_of_the_same_exchange() -> None:
    """Topic permissions: the broker names exchange and topic."""
    broker = Broker()
    answers = await broker.publish("good.one", "bad.one", "good.two")
    text = "ACCESS_REFUSED - access to topic 'bad.one' in exchange 'events' in vhost '/' refused for user 'app'"
    broker.say(commands.Channel.Close(403, text, 60, 40))
    assert results(answers) == ["Unknown", "rejected", "Unknown"]


async def test_what_nobody_waits_for_any_more_takes_no_memory_while_the_broker_blocks() -> None:
    broker = Broker()
    broker.wire.receive(frame.marshal(commands.Connection.Blocked("low on memory"), 0))
    answers = await broker.publish(*"abcd", timeout=0.01)
    await asyncio.wait(answers)
    (cancelled,) = await broker.publish("e")
    cancelled.cancel()
    (last,) = await broker.publish("f")
    assert [each.routing_key for each in broker.publishing._waiting] == ["f"]
    broker.wire.receive(frame.marshal(commands.Connection.Unblocked(), 0))
    await asyncio.sleep(0)
    broker.say(commands.Basic.Ack(1))
    assert await last == Confirmed()


async def test_lost_connection_leaves_what_was_in_flight_unknown() -> None:
    broker = Broker()
    (flying,) = await broker.publish("a")
    broker.wire.splitter.connection_lost(OSError("reset"))
    (waiting,) = await broker.publish("b")
    broker.publishing.end("gone")
    (late,) = await broker.publish("c")
    assert results([flying, waiting, late]) == ["Unknown"] * 3


@pytest.mark.parametrize(
    "message",
    [
        Message(b"", message_id="x" * 256),
        Message(b"", headers={"x" * 256: 1}),
        Message(b"", headers={"x": object()}),
        Message(b"", headers={"x": "y" * FRAME_MAX}),
        Message(b"", priority=300),
    ],
    ids=["id", "header name", "header value", "headers beyond a frame", "priority"],
)
async def test_message_that_cannot_be_written_is_rejected(message: Message) -> None:
    broker = Broker()
    (answer,) = await broker.publish("a", message=message)
    assert results([answer]) == ["rejected"]
    assert broker.wire.written == b""


@given(st.binary(max_size=3 * FRAME_MAX))
def test_body_of_any_size_is_written_in_frames_that_the_broker_takes(body: bytes) -> None:
    async def play() -> None:
        broker = Broker()
        await broker.publish("a", message=Message(body, message_id="1"))
        data = broker.wire.written
        while data:
            size, channel, _ = frame.unmarshal(data)
            assert size <= FRAME_MAX
            assert channel == 7
            data = data[size:]
        sent = broker.wire.sent()
        assert b"".join(each.value for each in sent if isinstance(each, content_body.ContentBody)) == body
        assert [each.body_size for each in sent if isinstance(each, header.ContentHeader)] == [len(body)]

    asyncio.run(play())


async def test_a_delivery_that_choreo_fails_to_take_costs_no_other() -> None:
    """Whatever is wrong with taking one of them, the connection goes on, and the failure is told."""
    wire, got, told = Wire(), list[int](), list[dict[str, Any]]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))

    def take(delivered: Delivery) -> None:
        if delivered.tag == 2:
            raise LookupError("a defect")
        got.append(delivered.tag)

    class Queue:
        queue = "shop"

    Consuming(wire.fast_path, 5, cast("Consumer", Queue()), take, raised)
    wire.receive(b"".join(delivery(tag, b"{}") for tag in (1, 2, 3)))
    assert got == [1, 3]
    assert [(each["message"], type(each["exception"])) for each in told] == [
        ("choreo failed to take delivery 2 of shop", LookupError)
    ]


async def test_settlements_that_cannot_be_written_are_told_of() -> None:
    """They would stay unsettled for as long as the session lasts, so it must not last."""
    wire, failures = Wire(), list[Exception]()
    consuming = Consuming(wire.fast_path, 5, cast("Consumer", None), lambda _: None, failures.append)

    def broken(frames: bytes) -> None:
        raise RuntimeError("no transport")

    wire.fast_path.write = broken  # type: ignore[method-assign]
    consuming.acknowledge(1)
    await asyncio.sleep(0)
    assert [str(each) for each in failures] == ["no transport"]


async def test_a_subscription_whose_channel_the_broker_has_closed_is_forgotten() -> None:
    """A session may see many of them end so, each over its consumer timeout."""
    left: list[RabbitConsumer] = []
    channel = cast("AbstractChannel", SimpleNamespace(is_closed=True))
    consumer = RabbitConsumer("queue", channel, leave=left.append)
    await consumer.close()
    assert left == [consumer]
