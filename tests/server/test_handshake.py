"""How a connection begins and ends: versions, who is let in, what is agreed on, heartbeats."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

import pytest
from pamqp import commands, encode
from pamqp.common import FieldTable

from choreo.broker.server.background import EmbeddedBroker
from choreo.errors import ConfigurationError
from tests.server.peer import GREETING, Peer, RefusedError

Connect = Callable[[], Peer]
CLOSES: FieldTable = {"authentication_failure_close": True}


@pytest.mark.parametrize("greeting", [b"GET / HTTP/1.1\r\n\r\n", b"AMQP\x00\x01\x00\x00", b"AMQP\x03\x01\x00\x00"])
def test_another_protocol_is_told_which_one_is_spoken(connect: Connect, greeting: bytes):
    """AMQP 0-9-1 section 4.2.2."""
    peer = connect()
    peer.raw(greeting)
    assert peer.socket.recv(100) == GREETING
    assert peer.closed()


def test_start_tells_the_truth(connect: Connect):
    """What a client may rely on, and nothing else; `connection.blocked` is never said here."""
    peer = connect().open()
    properties = peer.start.server_properties
    assert properties["product"] == "choreo embedded"
    capabilities = properties["capabilities"]
    assert isinstance(capabilities, dict)
    assert {name for name, value in capabilities.items() if not value} == {"connection.blocked"}
    assert {"basic.nack", "publisher_confirms", "per_consumer_qos", "direct_reply_to"} <= capabilities.keys()
    assert "PLAIN" in peer.start.mechanisms
    assert (peer.tune.channel_max, peer.tune.frame_max, peer.tune.heartbeat) == (2047, 131_072, 60)


def test_amqplain_is_spoken(connect: Connect):
    table = encode.field_table({"LOGIN": "guest", "PASSWORD": "guest"})
    connect().open(mechanism="AMQPLAIN", login=table[4:]).channel()


@pytest.mark.parametrize("login", [b"\0guest\0wrong", b"\0nobody\0guest"])
def test_wrong_credentials_are_403(connect: Connect, login: bytes):
    peer = connect()
    with pytest.raises(RefusedError, match=r"mechanism PLAIN\. The embedded broker knows guest"):
        peer.open(login=login, capabilities=CLOSES)
    connect().open(login=b"\0guest\0guest")


def test_a_client_that_does_not_know_this_refusal_is_left_alone(connect: Connect):
    """RabbitMQ closes the socket then."""
    with pytest.raises(EOFError):
        connect().open(login=b"\0guest\0wrong")


@pytest.mark.parametrize("login", [b"guest", b"\0guest", b"\0guest\0guest\0guest"])
def test_a_login_that_is_none_is_501(connect: Connect, login: bytes):
    with pytest.raises(RefusedError, match="FRAME_ERROR - invalid PLAIN response"):
        connect().open(login=login, capabilities=CLOSES)


def test_unknown_mechanism_is_refused(connect: Connect):
    with pytest.raises(RefusedError, match="unknown authentication mechanism 'KERBEROS'"):
        connect().open(mechanism="KERBEROS")


def test_unknown_virtual_host_is_530(connect: Connect):
    with pytest.raises(RefusedError, match="NOT_ALLOWED - vhost nowhere not found"):
        connect().open(vhost="nowhere")


@pytest.mark.parametrize(
    ("tune", "words"),
    [
        ((2047, 131_073, 0), r"negotiated frame_max = 131073 is higher than the maximum allowed value \(131072\)"),
        ((2047, 4095, 0), r"negotiated frame_max = 4095 is lower than the minimum allowed value \(4096\)"),
        ((0, 131_072, 0), r"negotiated channel_max = 0 \(no limit\) is higher than the maximum allowed value \(2047\)"),
    ],
)
def test_what_is_beyond_the_brokers_limits_is_530(connect: Connect, tune: tuple[int, int, int], words: str):
    with pytest.raises(RefusedError, match=f"NOT_ALLOWED - {words}"):
        connect().open(tune=tune)


def test_a_method_at_the_wrong_time_is_504(connect: Connect):
    peer = connect()
    peer.raw(GREETING)
    peer.expect(commands.Connection.Start)
    peer.send(commands.Connection.Open("/"), 0)
    close = peer.expect(commands.Connection.Close)
    assert close.reply_text == "CHANNEL_ERROR - unexpected method in connection state starting"


def test_a_channel_before_the_connection_is_open_is_505(connect: Connect):
    peer = connect()
    peer.raw(GREETING)
    peer.expect(commands.Connection.Start)
    peer.send(commands.Channel.Open(), 1)
    assert peer.expect(commands.Connection.Close).reply_code == 505


def test_what_a_client_still_writes_after_its_close_is_read_and_dropped(connect: Connect, peer: Peer):
    """It may have publishes in its buffer: the socket stays open until the client ends it, as with RabbitMQ."""
    leaving = connect().open().channel()
    leaving.send(commands.Connection.Close(200, "bye", 0, 0), 0)
    for _ in range(100):
        leaving.publish("nowhere", b"x" * 131_064)
    leaving.send(commands.Queue.Declare(queue="late"))
    leaving.expect(commands.Connection.CloseOk)
    leaving.ask(commands.Connection.Close(200, "bye", 0, 0), commands.Connection.CloseOk, 0)
    leaving.socket.shutdown(socket.SHUT_WR)
    assert leaving.socket.recv(1) == b"", "the broker ends it too, and resets nothing"
    with pytest.raises(RefusedError, match="no queue 'late'"):
        peer.ask(commands.Queue.Declare(queue="late", passive=True), commands.Queue.DeclareOk)


def test_a_client_that_stays_after_its_close_is_dropped(connect: Connect):
    """After one heartbeat, or 30 s."""
    leaving = connect().open(tune=(2047, 131_072, 1)).channel()
    leaving.ask(commands.Connection.Close(200, "bye", 0, 0), commands.Connection.CloseOk, 0)
    assert leaving.closed()


def test_a_silent_client_is_dropped_after_two_heartbeats(connect: Connect):
    """It hears heartbeats itself; its own silence ends it, not before two intervals of a second are over, and before
    a peer gives up on an answer."""
    peer = connect().open(tune=(10, 4096, 1))
    began = time.monotonic()
    assert peer.next() == (8, 0, b"")
    assert peer.closed()
    assert time.monotonic() - began >= 2


def test_a_client_with_heartbeats_stays(connect: Connect):
    peer = connect().open(tune=(10, 4096, 1)).channel()
    for _ in range(8):  # each answers one of the broker's, of which there are two per interval
        assert peer.next() == (8, 0, b"")
        peer.raw(b"\x08\0\0\0\0\0\0\xce")
    peer.ask(commands.Basic.Qos(), commands.Basic.QosOk)


def test_the_broker_says_goodbye(connect: Connect, broker: EmbeddedBroker):
    """320, as a RabbitMQ that is shut down."""
    peer = connect().open()
    broker.stop()
    close = peer.expect(commands.Connection.Close)
    assert (close.reply_code, close.reply_text) == (
        320,
        "CONNECTION_FORCED - broker forced connection closure with reason 'shutdown'",
    )


def test_a_port_in_use_is_said_with_the_way_out(broker: EmbeddedBroker):
    with pytest.raises(ConfigurationError) as caught:
        EmbeddedBroker("0", port=broker.port).start()
    assert caught.value.message == f"port {broker.port} on 127.0.0.1 is in use"
    assert "--port 0" in caught.value.way_out


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_nothing_but_loopback(host: str):
    """There is one user with a password that everybody knows."""
    with pytest.raises(ConfigurationError, match=f"does not listen on {host}"):
        EmbeddedBroker("0", port=0, hosts=(host,)).start()


def test_beyond_loopback_when_forced():
    with EmbeddedBroker("0", port=0, hosts=("0.0.0.0",), anywhere=True) as broker, Peer(broker.port) as peer:
        peer.open()
