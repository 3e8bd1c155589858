"""What is not AMQP, or AMQP in the wrong place: the right error for who said it, and nothing for all others."""

from __future__ import annotations

import asyncio
import random
import resource
import struct
import time
from collections.abc import Callable

import aio_pika
import pytest
from pamqp import base, commands, frame, header

from choreo.broker.server.background import EmbeddedBroker
from tests.server.peer import GREETING, Peer, publication
from tests.waiting import until

Connect = Callable[[], Peer]


def raw(kind: int, channel: int, payload: bytes, end: int = 0xCE) -> bytes:
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + bytes((end,))


PUBLISH = frame.marshal(commands.Basic.Publish(routing_key="q"), 1)
HEADER = frame.marshal(header.ContentHeader(0, 4, commands.Basic.Properties()), 1)

NAN, INFINITE, NESTED = (
    b"\x20\0" + struct.pack(">I", len(field) + 2) + b"\x01n" + field
    for field in (
        b"d" + struct.pack(">d", float("nan")),
        b"f" + struct.pack(">f", float("-inf")),
        b"A" + struct.pack(">I", 9) + b"d" + struct.pack(">d", float("inf")),
    )
)

MISUSES = {
    "end marker": (raw(1, 1, b"\0\x14\0\x0a\0", end=0), 501, "FRAME_ERROR - type 1, all octets = <<0,20,0,10,0>>"),
    "too large": (raw(3, 1, b"x" * 131_073), 501, "frame_too_large,131073,131064"),
    "unknown type": (raw(7, 1, b"abc"), 501, 'FRAME_ERROR - type 7, all octets = <<"abc">>: unknown_frame'),
    "no method": (raw(1, 1, b"ab"), 501, "FRAME_ERROR"),
    "unknown method": (raw(1, 1, b"\x00\x63\x00\x01"), 540, "NOT_IMPLEMENTED - unknown method {99,1}"),
    "cut method": (raw(1, 1, b"\x00\x32\x00\x0a\x00"), 501, "FRAME_ERROR - cannot decode"),
    "cut publish": (raw(1, 1, b"\x00\x3c\x00\x28\x00\x00\x09ab"), 501, "FRAME_ERROR - cannot decode"),
    "long publish": (PUBLISH[:-1] + b"\0" + PUBLISH[-1:], 501, "FRAME_ERROR"),
    "deep table": (
        raw(1, 1, b"\0\x32\0\x0a\0\0\x01q\0" + struct.pack(">I", 60_000) + b"\x01aF\0\0\xea\0" * 7500),
        501,
        "FRAME_ERROR - cannot decode",
    ),
    "header first": (HEADER, 505, "UNEXPECTED_FRAME - expected method frame, got non method frame instead"),
    "body first": (raw(3, 1, b"abcd"), 505, "UNEXPECTED_FRAME - expected method frame"),
    "no header": (
        PUBLISH + raw(3, 1, b"abcd"),
        505,
        "UNEXPECTED_FRAME - expected content header for class 60, got non content header frame instead",
    ),
    "method in content": (PUBLISH + PUBLISH, 505, "UNEXPECTED_FRAME - expected content header"),
    "method in body": (PUBLISH + HEADER + PUBLISH, 505, "UNEXPECTED_FRAME - expected content body"),
    "header of another class": (
        PUBLISH + raw(2, 1, b"\0\x32" + HEADER[9:-1]),
        505,
        "UNEXPECTED_FRAME - expected content header for class 60, got one for class 50 instead",
    ),
    "too much body": (
        PUBLISH + HEADER + raw(3, 1, b"abcde"),
        501,
        "FRAME_ERROR - content body frame exceeds remaining content size",
    ),
    "header of another kind": (PUBLISH + HEADER + HEADER, 505, "UNEXPECTED_FRAME - expected content body"),
    "lying properties": (PUBLISH + raw(2, 1, HEADER[7:19] + b"\x80\x00\xff"), 541, "INTERNAL_ERROR"),
    "lying table": (
        PUBLISH + raw(2, 1, HEADER[7:19] + b"\x20\0\0\0\0\x05\x01aZ\0\0"),
        541,
        "INTERNAL_ERROR",
    ),
    "no number": (PUBLISH + raw(2, 1, HEADER[7:19] + NAN), 541, "INTERNAL_ERROR"),
    "infinite": (PUBLISH + raw(2, 1, HEADER[7:19] + INFINITE), 541, "INTERNAL_ERROR"),
    "no number in a list": (PUBLISH + raw(2, 1, HEADER[7:19] + NESTED), 541, "INTERNAL_ERROR"),
    "no number in arguments": (raw(1, 1, b"\0\x32\0\x0a\0\0\x01q\0" + NAN[2:]), 501, "FRAME_ERROR - cannot decode"),
    "second word of flags": (PUBLISH + raw(2, 1, HEADER[7:19] + b"\0\1\0\0"), 541, "INTERNAL_ERROR"),
    "heartbeat on a channel": (raw(8, 1, b""), 505, "UNEXPECTED_FRAME"),
    "body on channel 0": (raw(3, 0, b"abcd"), 505, 'UNEXPECTED_FRAME - type 3, all octets = <<"abcd">>'),
    "channel not open": (frame.marshal(commands.Basic.Qos(), 9), 504, "CHANNEL_ERROR - expected 'channel.open'"),
    "open twice": (frame.marshal(commands.Channel.Open(), 1), 504, "CHANNEL_ERROR - second 'channel.open' seen"),
    "what only a broker says": (
        frame.marshal(commands.Basic.GetEmpty(), 1),
        503,
        "COMMAND_INVALID - unimplemented method",
    ),
    "immediate": (
        frame.marshal(commands.Basic.Publish(routing_key="q", immediate=True), 1),
        540,
        "NOT_IMPLEMENTED - immediate=true",
    ),
    "flow": (frame.marshal(commands.Channel.Flow(active=False), 1), 540, "NOT_IMPLEMENTED - active=false"),
}


@pytest.mark.parametrize("name", MISUSES)
def test_misuse_closes_the_connection_that_it_came_on_and_no_other(connect: Connect, peer: Peer, name: str):
    """With RabbitMQ's code and words; a bystander goes on as if nothing had been."""
    data, code, words = MISUSES[name]
    bystander = connect().open().channel()
    peer.raw(data)
    close = peer.expect(commands.Connection.Close)
    assert close.reply_code == code
    assert words in close.reply_text
    peer.send(commands.Connection.CloseOk(), 0)
    assert peer.closed()
    bystander.ask(commands.Queue.Declare(queue="still there"), commands.Queue.DeclareOk)


def test_bits_that_no_property_has_are_dropped(peer: Peer):
    """As RabbitMQ does: a client that reads a second word of flags for them would not find one."""
    peer.ask(commands.Queue.Declare(queue="bits"), commands.Queue.DeclareOk)
    publish = frame.marshal(commands.Basic.Publish(routing_key="bits"), 1)
    peer.raw(publish + raw(2, 1, HEADER[7:18] + b"\x01" + b"\x10\x03\x02") + raw(3, 1, b"x"))
    peer.ask(commands.Basic.Get(queue="bits"), commands.Basic.GetOk)
    _, _, payload = peer.next()
    assert payload[12:] == b"\x10\0\x02"


def test_flow_that_goes_on_is_answered(peer: Peer):
    assert peer.ask(commands.Channel.Flow(active=True), commands.Channel.FlowOk).active


def test_more_channels_than_agreed_are_530(connect: Connect):
    peer = connect().open(tune=(2, 4096, 0)).channel(1).channel(7)
    peer.send(commands.Channel.Open(), 3)
    close = peer.expect(commands.Connection.Close)
    assert close.reply_code == 530
    assert "number of channels opened (2) has reached the negotiated channel_max (2)" in close.reply_text


def test_a_refused_method_closes_its_channel_alone(peer: Peer):
    """What still comes on it is dropped until close-ok; then the number can be used again."""
    peer.channel(2)
    peer.send(commands.Queue.Declare(queue="nowhere", passive=True))
    close = peer.expect(commands.Channel.Close)
    assert (close.reply_code, close.class_id, close.method_id) == (404, 50, 10)
    assert close.reply_text == "NOT_FOUND - no queue 'nowhere' in vhost '/'"
    peer.publish("lost")
    peer.send(commands.Queue.Declare(queue="ignored"))
    peer.ask(commands.Queue.Declare(queue="other"), commands.Queue.DeclareOk, channel=2)
    peer.send(commands.Channel.CloseOk())
    peer.channel(1)
    peer.ask(commands.Queue.Declare(queue="q"), commands.Queue.DeclareOk)


def test_confirms_stand_before_the_close_that_ends_them(peer: Peer):
    """Otherwise a publisher would send again what was stored."""
    peer.ask(commands.Confirm.Select(), commands.Confirm.SelectOk)
    peer.ask(commands.Queue.Declare(queue="q"), commands.Queue.DeclareOk)
    peer.raw(publication("q", b"stored") + publication("x", b"refused", exchange="nowhere"))
    assert peer.expect(commands.Basic.Ack).delivery_tag == 1
    assert peer.expect(commands.Channel.Close).reply_code == 404


def test_many_publishes_are_confirmed_as_one(peer: Peer):
    peer.ask(commands.Confirm.Select(), commands.Confirm.SelectOk)
    peer.raw(publication("nobody", b"x") * 5)
    ack = peer.expect(commands.Basic.Ack)
    while ack.delivery_tag < 5:
        ack = peer.expect(commands.Basic.Ack)
    assert ack.delivery_tag == 5


def test_nowait_is_answered_by_nothing(peer: Peer):
    for method in (
        commands.Exchange.Declare(exchange="x", nowait=True),
        commands.Queue.Declare(queue="q", nowait=True),
        commands.Queue.Bind(queue="q", exchange="x", nowait=True),
        commands.Basic.Consume(queue="q", consumer_tag="c", no_ack=True, nowait=True),
        commands.Confirm.Select(nowait=True),
    ):
        peer.send(method)
    peer.publish("", b"here", exchange="x")
    assert peer.expect(commands.Basic.Deliver).consumer_tag == "c"
    assert peer.content() == b"here"


def test_a_body_of_more_than_16_mib_is_refused_before_it_is_sent(peer: Peer):
    """Its header says how large it is; nothing of it is kept."""
    peer.raw(PUBLISH + frame.marshal(header.ContentHeader(0, 2**24 + 1, commands.Basic.Properties()), 1))
    close = peer.expect(commands.Channel.Close)
    assert close.reply_code == 406
    assert close.reply_text == "PRECONDITION_FAILED - message size 16777217 is larger than configured max size 16777216"
    peer.raw(raw(3, 1, b"x" * 1000))
    peer.send(commands.Channel.CloseOk())
    peer.channel(1)


def test_a_body_of_16_mib_comes_back_in_frames_of_the_agreed_size(connect: Connect):
    peer = connect().open(tune=(10, 8192, 0)).channel()
    peer.ask(commands.Queue.Declare(queue="q"), commands.Queue.DeclareOk)
    body = random.Random(1).randbytes(2**24)
    other = connect().open().channel()
    other.publish("q", body)
    other.ask(commands.Basic.Qos(), commands.Basic.QosOk)
    peer.ask(commands.Basic.Get(queue="q"), commands.Basic.GetOk)
    sizes, got = set(), b""
    assert peer.next()[0] == 2
    while len(got) < len(body):
        kind, _, payload = peer.next()
        sizes.add(len(payload))
        got += payload
        assert kind == 3
    assert got == body
    assert max(sizes) == 8184


def test_a_body_that_looks_like_a_method_is_a_body(peer: Peer):
    """Its first bytes are those of channel.close."""
    peer.ask(commands.Queue.Declare(queue="q"), commands.Queue.DeclareOk)
    peer.publish("q", b"\0\x14\0\x28....")
    peer.ask(commands.Basic.Get(queue="q"), commands.Basic.GetOk)
    assert peer.content() == b"\0\x14\0\x28...."


def test_frames_may_be_cut_at_any_byte(connect: Connect):
    """A whole conversation, in pieces of one to seven bytes, and each byte on its own."""
    dice = random.Random(2)
    for most in (1, 7):
        peer = connect().open().channel()
        peer.ask(commands.Queue.Declare(queue="cut"), commands.Queue.DeclareOk)
        conversation = b"".join(
            (
                frame.marshal(commands.Confirm.Select(), 1),
                publication("cut", b"first", mandatory=True),
                publication("cut", b""),
                b"\x08\0\0\0\0\0\0\xce",
                frame.marshal(commands.Basic.Get(queue="cut", no_ack=True), 1),
            )
        )
        while conversation:
            size = dice.randint(1, most)
            peer.raw(conversation[:size])
            conversation = conversation[size:]
        peer.expect(commands.Confirm.SelectOk)
        while not isinstance(found := peer.expect(base.Frame), commands.Basic.GetOk):
            assert isinstance(found, commands.Basic.Ack)
        assert peer.content() == b"first"
        peer.ask(commands.Queue.Purge(queue="cut"), commands.Queue.PurgeOk)


def test_noise_harms_nobody(connect: Connect):
    """Random bytes, random frames, and real ones with one byte changed, by a hundred clients."""
    dice = random.Random(3)
    bystander = connect().open().channel()
    bystander.ask(commands.Queue.Declare(queue="safe"), commands.Queue.DeclareOk)
    good = publication("safe", b"x" * 50) + frame.marshal(
        commands.Queue.Declare(queue="r", arguments={"a": [1, {"b": 2}]}), 1
    )
    for turn in range(100):
        peer = connect()
        if turn % 3 == 0:
            peer.raw(GREETING + dice.randbytes(200))
        else:
            peer.open().channel()
            data = bytearray(good)
            data[dice.randrange(len(data))] = dice.randrange(256)
            noise = raw(dice.randrange(9), dice.randrange(3), dice.randbytes(dice.randrange(60)))
            peer.raw(bytes(data) if turn % 3 == 1 else noise)
        peer.socket.close()
    bystander.ask(commands.Queue.Declare(queue="safe", passive=True), commands.Queue.DeclareOk)


def test_what_a_half_open_client_held_is_delivered_to_another(connect: Connect, peer: Peer):
    peer.ask(commands.Queue.Declare(queue="q"), commands.Queue.DeclareOk)
    silent = connect().open(tune=(10, 4096, 1)).channel()
    silent.ask(commands.Basic.Consume(queue="q"), commands.Basic.ConsumeOk)
    peer.publish("q", b"held")
    silent.expect(commands.Basic.Deliver)
    peer.ask(commands.Basic.Consume(queue="q"), commands.Basic.ConsumeOk)
    assert peer.expect(commands.Basic.Deliver).redelivered  # after two heartbeats
    assert peer.content() == b"held"


def test_a_client_that_does_not_read_does_not_keep_others_waiting(connect: Connect, peer: Peer):
    """40 MiB wait for a consumer that reads nothing; another one works."""
    peer.ask(commands.Queue.Declare(queue="flood"), commands.Queue.DeclareOk)
    lazy = connect().open().channel()
    lazy.ask(commands.Basic.Consume(queue="flood", no_ack=True), commands.Basic.ConsumeOk)
    for _ in range(40):
        peer.publish("flood", b"x" * 2**20)
    peer.ask(commands.Queue.Declare(queue="other"), commands.Queue.DeclareOk)
    peer.publish("other", b"quick")
    peer.ask(commands.Basic.Get(queue="other"), commands.Basic.GetOk)
    assert peer.content() == b"quick"


def test_a_client_that_reads_slowly_is_not_taken_for_a_silent_one(connect: Connect, peer: Peer):
    """The broker stops reading from it while so many answers are on their way, its heartbeats too."""
    asked = commands.Queue.Declare(queue="flood")
    peer.ask(asked, commands.Queue.DeclareOk)
    slow = connect().open(tune=(10, 131_072, 1)).channel()
    for _ in range(60):
        peer.publish("flood", b"x" * 2**20)
    until(lambda: peer.ask(asked, commands.Queue.DeclareOk).message_count == 60)
    for _ in range(60):
        slow.send(commands.Basic.Get(queue="flood", no_ack=True))
    began, size = time.monotonic(), 0
    while time.monotonic() - began < 4:
        size += len(slow.socket.recv(2**17))
        slow.raw(b"\x08\0\0\0\0\0\0\xce")
        time.sleep(0.02)
    while size < 60 * 2**20:
        data = slow.socket.recv(2**20)
        assert data
        size += len(data)


async def test_hundreds_of_connections_at_once(broker: EmbeddedBroker):
    """All publish, all are confirmed, none is left behind; as many as a process may open that has both ends of each."""
    most = min(500, (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 200) // 2)

    async def one(number: int) -> None:
        connection = await aio_pika.connect(broker.url)
        async with connection, connection.channel() as channel:
            await channel.default_exchange.publish(aio_pika.Message(str(number).encode()), "many")

    connection = await aio_pika.connect(broker.url)
    async with connection, connection.channel() as channel:
        queue = await channel.declare_queue("many")
        await asyncio.gather(*(one(number) for number in range(most)))
        found = {int(message.body) async for message in _all(queue, most)}
    assert found == set(range(most))
    held = broker.call(lambda listener: (len(listener.clients), len(listener.brokers["/"]._connections)))
    assert max(held) <= 1, "something of those that have gone is left behind"


async def _all(queue: aio_pika.abc.AbstractQueue, count: int):
    for _ in range(count):
        message = await queue.get(no_ack=True)
        yield message


def test_direct_reply_to(connect: Connect, peer: Peer):
    """A request names the pseudo-queue, its reply comes to the consumer of that channel, and no queue is declared."""
    request = commands.Basic.Properties(reply_to="amq.rabbitmq.reply-to", correlation_id="7")
    peer.ask(commands.Basic.Consume(queue="amq.rabbitmq.reply-to", no_ack=True), commands.Basic.ConsumeOk)
    server = connect().open().channel()
    server.ask(commands.Queue.Declare(queue="requests"), commands.Queue.DeclareOk)
    peer.raw(
        frame.marshal(commands.Basic.Publish(routing_key="requests"), 1)
        + frame.marshal(header.ContentHeader(0, 1, request), 1)
        + raw(3, 1, b"?")
    )
    peer.ask(commands.Basic.Qos(), commands.Basic.QosOk)
    server.ask(commands.Basic.Get(queue="requests", no_ack=True), commands.Basic.GetOk)
    found = frame.unmarshal(raw(*server.next()))[2]
    server.next()
    assert isinstance(found, header.ContentHeader)
    assert found.properties.correlation_id == "7"
    assert found.properties.reply_to not in (None, "amq.rabbitmq.reply-to")
    server.publish(str(found.properties.reply_to), b"!", mandatory=True)
    peer.expect(commands.Basic.Deliver)
    assert peer.content() == b"!"


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (commands.Basic.Consume(queue="amq.rabbitmq.reply-to"), "reply consumer cannot acknowledge"),
        (commands.Queue.Declare(queue="amq.gen-x"), "reserved prefix"),
    ],
)
def test_direct_reply_to_is_for_those_who_do_not_acknowledge(peer: Peer, method: base.Frame, words: str):
    peer.send(method)
    assert words in peer.expect(commands.Channel.Close).reply_text
