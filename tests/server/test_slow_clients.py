"""A consumer that takes what it gets more slowly than it could get it: its queue keeps the rest."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import pytest
from pamqp import commands

from choreo.broker.server.background import EmbeddedBroker
from tests.server.peer import Peer, publication
from tests.waiting import until

Connect = Callable[[], Peer]
SIZE = 2_000
COUNT = 25_000  # 50 MB
SOCKETS = 16 * 2**20  # bytes that the system may have taken of it, at the very most


def fill(peer: Peer, queue: str, number: int = COUNT) -> None:
    """Publish messages that begin with their number, and wait until all are there."""
    peer.ask(commands.Queue.Declare(queue=queue), commands.Queue.DeclareOk)
    peer.raw(b"".join(publication(queue, each.to_bytes(4) * (SIZE // 4)) for each in range(number)))
    until(lambda: left(peer, queue) == number, what="all published")


def left(peer: Peer, queue: str) -> int:
    asked = commands.Queue.Declare(queue=queue, passive=True)
    return int(peer.ask(asked, commands.Queue.DeclareOk).message_count or 0)


def settled(peer: Peer, queue: str) -> int:
    """How many messages are left once nobody takes any more for a while."""
    looks = count()
    found = [left(peer, queue)]

    def same() -> bool:
        found.append(left(peer, queue))
        return next(looks) > 10 and found[-1] == found[-10]

    until(same, what="the queue to stand still")
    return found[-1]


def take(peer: Peer, number: int) -> list[int]:
    """The numbers of the next messages."""
    found = []
    for _ in range(number):
        peer.expect(commands.Basic.Deliver)
        found.append(int.from_bytes(peer.content()[:4]))
    return found


@pytest.fixture
def slow(connect: Connect, peer: Peer) -> Peer:
    """It subscribes to a queue of 50 MB, without acknowledging and without a limit, and reads nothing more."""
    fill(peer, "flood")
    slow = connect().open().channel()
    slow.ask(commands.Basic.Consume(queue="flood", no_ack=True), commands.Basic.ConsumeOk)
    return slow


def test_what_a_client_does_not_read_stays_in_its_queue(slow: Peer, peer: Peer, broker: EmbeddedBroker):
    """The broker has a few MiB on the way to it at most, not the whole queue a second time."""
    assert settled(peer, "flood") * SIZE > COUNT * SIZE - SOCKETS
    waiting = broker.call(lambda listener: max(each._transport.get_write_buffer_size() for each in listener.clients))
    assert waiting < 3 * 2**20


def test_it_gets_everything_in_order_when_it_reads_again(slow: Peer, peer: Peer):
    settled(peer, "flood")
    assert take(slow, COUNT) == list(range(COUNT))
    assert left(peer, "flood") == 0


def test_others_have_what_it_does_not_take(slow: Peer, peer: Peer, connect: Connect):
    """Another consumer empties the queue, other queues go on, and nothing comes twice or is lost."""
    rest = settled(peer, "flood")
    quick = connect().open().channel()
    quick.ask(commands.Basic.Consume(queue="flood", no_ack=True), commands.Basic.ConsumeOk)
    peer.ask(commands.Queue.Declare(queue="other"), commands.Queue.DeclareOk)
    peer.publish("other", b"quick")
    peer.ask(commands.Basic.Get(queue="other"), commands.Basic.GetOk)
    assert peer.content() == b"quick"
    assert sorted(take(quick, rest) + take(slow, COUNT - rest)) == list(range(COUNT))


def test_a_client_that_publishes_and_does_not_read_is_read_from(slow: Peer, peer: Peer):
    """It may be one that reads when it has written everything: to wait for it would be to wait for ever."""
    settled(peer, "flood")
    for _ in range(30):
        slow.publish("flood", b"x" * 2**20)
    until(lambda: left(peer, "flood") > 30, what="what it published")
    peer.ask(commands.Queue.Declare(queue="last"), commands.Queue.DeclareOk)
    slow.publish("last", b"x")
    until(lambda: left(peer, "last") == 1, what="its last publish")


def test_two_queues_of_a_slow_client_take_turns(connect: Connect, peer: Peer):
    """Neither waits until the other one is empty."""
    for queue in ("one", "two"):
        fill(peer, queue, COUNT // 4)
    slow = connect().open().channel()
    for queue in ("one", "two"):
        slow.send(commands.Basic.Consume(queue=queue, consumer_tag=queue, no_ack=True))
    tags: list[str] = []
    while len(tags) < COUNT // 2:
        kind, _, payload = slow.next()
        if kind == 1 and payload[:4] == b"\0\x3c\0\x3c":
            tags.append(payload[5 : 5 + payload[4]].decode())
    assert "two" in tags[: COUNT // 4], "the second queue had to wait until the first one was empty"
