"""The proxy does to connections what its name for it says."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.faults.proxy import Frame, Frames, Link, Proxy
from tests.waiting import until

SILENCE = 0.2  # seconds in which something would have come
FRAME = bytes((1, 0, 7)) + (4).to_bytes(4) + bytes((0, 60, 0, 80)) + b"\xce"  # basic.ack without its arguments


class Broker:
    """Accepts connections and keeps what they say, in place of a real one."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.connections: list[socket.socket] = []
        self.heard = b""
        self.ended = 0  # connections whose client is gone
        self.port: int = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.connections.append(connection)
            threading.Thread(target=self._read, args=(connection,), daemon=True).start()

    def _read(self, connection: socket.socket) -> None:
        try:
            while data := connection.recv(1024):
                self.heard += data
        except OSError:
            pass
        self.ended += 1

    def say(self, data: bytes) -> None:
        self.connections[-1].sendall(data)

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts, which keeps it open otherwise
        self.listener.close()
        for connection in self.connections:
            connection.close()


@pytest.fixture
def broker() -> Iterator[Broker]:
    broker = Broker()
    yield broker
    if broker.listener.fileno() >= 0:
        broker.close()


@pytest.fixture
def proxy(broker: Broker) -> Iterator[Proxy]:
    with Proxy(broker.port) as proxy:
        yield proxy


def dial(proxy: Proxy) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", proxy.port), timeout=10)
    client.sendall(b"hello ")
    return client


def is_silent(client: socket.socket) -> bool:
    client.settimeout(SILENCE)
    try:
        client.recv(1)
    except TimeoutError:
        return True
    return False


@pytest.fixture
def client(broker: Broker, proxy: Proxy) -> Iterator[socket.socket]:
    with dial(proxy) as client:
        until(lambda: broker.heard == b"hello ")
        yield client


def test_bytes_pass_in_both_directions(broker: Broker, proxy: Proxy, client: socket.socket):
    broker.say(b"world")
    assert client.recv(5) == b"world"
    assert (proxy.accepted, proxy.links) == (1, 1)


@pytest.mark.parametrize("side", ["client", "broker"])
def test_the_end_of_one_side_is_the_end_of_the_other(broker: Broker, proxy: Proxy, client: socket.socket, side: str):
    if side == "client":
        client.close()
    else:
        broker.connections[0].shutdown(socket.SHUT_RDWR)
        assert client.recv(1) == b""
    until(lambda: broker.ended == 1)
    until(lambda: proxy.links == 0)


def test_reset_reaches_both_sides_as_rst(broker: Broker, proxy: Proxy, client: socket.socket):
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    until(lambda: broker.ended == 1)
    with dial(proxy):
        until(lambda: broker.heard == b"hello hello ", what="a new connection that passes")


def test_blackhole_keeps_connections_open_and_drops_every_byte(broker: Broker, proxy: Proxy, client: socket.socket):
    proxy.blackhole()
    client.sendall(b"lost")
    broker.say(b"lost")
    assert is_silent(client)
    with dial(proxy) as other:
        assert is_silent(other)
    assert broker.heard == b"hello "
    assert (broker.ended, len(broker.connections)) == (0, 1)


def test_after_a_blackhole_new_connections_pass_and_old_ones_stay_dead(
    broker: Broker, proxy: Proxy, client: socket.socket
):
    proxy.blackhole()
    proxy.pass_on()
    client.sendall(b"lost")
    with dial(proxy):
        until(lambda: broker.heard == b"hello hello ")
        client.close()
        assert broker.ended == 0, "a dead line does not tell that the client went"


def test_half_open_ends_the_broker_side_without_a_word_to_the_client(
    broker: Broker, proxy: Proxy, client: socket.socket
):
    proxy.half_open()
    until(lambda: broker.ended == 1)
    client.sendall(b"lost")
    assert is_silent(client)
    assert broker.heard == b"hello "
    with dial(proxy):
        until(lambda: broker.heard == b"hello hello ")


def test_lost_replies_are_those_of_the_client(broker: Broker, proxy: Proxy, client: socket.socket):
    proxy.lose_replies()
    client.sendall(b"lost")
    broker.say(b"world")
    assert client.recv(5) == b"world"
    client.close()
    assert (broker.heard, broker.ended) == (b"hello ", 0)


def test_delay_holds_what_passes(broker: Broker, proxy: Proxy, client: socket.socket):
    proxy.delay(SILENCE)
    began = time.monotonic()
    broker.say(b"world")
    assert client.recv(5) == b"world"
    assert time.monotonic() - began >= SILENCE


def test_a_client_of_a_broker_that_is_gone_is_sent_away(broker: Broker, proxy: Proxy):
    broker.close()
    with pytest.raises(ConnectionResetError):
        listen(proxy)


def listen(proxy: Proxy) -> bytes:
    with dial_without_a_word(proxy) as client:
        return client.recv(1)


def test_hooks_swallow_frames_and_forge_others(broker: Broker):
    """A frame that comes in pieces is whole for a hook, which answers it in the broker's name."""
    seen: list[tuple[int, tuple[int, int] | None]] = []

    def answer(frame: Frame, link: Link) -> bytes:
        seen.append((frame.channel, frame.method))
        if frame.method == (60, 80):
            link.to_client(b"forged")
            return b""
        return frame.raw

    with Proxy(broker.port, to_broker=answer) as proxy, dial_without_a_word(proxy) as client:
        client.sendall(b"AMQP\x00\x00\x09\x01" + FRAME[:5])
        until(lambda: broker.heard == b"AMQP\x00\x00\x09\x01")
        client.sendall(FRAME[5:])
        assert client.recv(6) == b"forged"
        assert seen == [(0, None), (7, (60, 80))]
        assert broker.heard == b"AMQP\x00\x00\x09\x01"


def dial_without_a_word(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=10)


def test_a_hook_that_fails_fails_the_test(broker: Broker):
    def defect(_frame: Frame, _link: Link) -> bytes:
        raise LookupError

    proxy = Proxy(broker.port, to_broker=defect)
    with proxy, dial_without_a_word(proxy) as client:
        client.sendall(FRAME)
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        with pytest.raises(LookupError):
            proxy.check()


def test_frames_are_cut_where_they_end():
    cut = Frames()
    assert [frame.raw for frame in cut.feed(FRAME + FRAME[:3])] == [FRAME]
    assert [frame.raw for frame in cut.feed(FRAME[3:] + FRAME)] == [FRAME, FRAME]
    assert list(cut.feed(FRAME[:7])) == []
