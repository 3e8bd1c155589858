"""What is kept in the file, and what a killed broker still has of what it confirmed."""

from __future__ import annotations

import itertools
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from pamqp import base, commands

from choreo.amqp import encode
from choreo.broker.core import Broker, Channel, Stored
from choreo.broker.server.background import EmbeddedBroker
from choreo.broker.server.properties import RawProperties
from choreo.broker.server.store import Store
from choreo.errors import ConfigurationError
from tests.conftest import environment
from tests.server.peer import Peer, publication

DURABLE = RawProperties(b"\x10\x00\x02")  # nothing but delivery mode 2
NOW = 1_700_000_000.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kept.db"


def opened(path: Path, now: float = NOW) -> tuple[Broker, Store]:
    """A broker with what the file holds."""
    numbers = itertools.count()
    store = Store(path)
    broker = Broker(now, lambda: str(next(numbers)), journal=store.note)
    broker.restore(store.kept())
    return broker, store


def channel_of(broker: Broker, sink: Callable[[Any], None] = lambda _: None) -> Channel:
    return broker.connect().open_channel(1, sink)


def state(broker: Broker) -> list[Any]:
    """What a broker would keep, with properties as bytes, which compare."""
    return [
        (*change[:2], *change.message[:2], cast("RawProperties", change.message.properties).raw, *change.message[3:])
        if isinstance(change, Stored)
        else change
        for change in broker.changes()
    ]


def headers(**values: Any) -> RawProperties:
    return RawProperties(b"\x30\x00" + encode.table(values) + b"\x02")


def test_everything_durable_outlasts_a_restart(path: Path):
    """Exchanges, queues of every type, bindings, messages with their deaths; not what is transient or exclusive."""
    broker, store = opened(path)
    channel = channel_of(broker)
    channel.exchange_declare("e", "topic", durable=True, arguments={"alternate-exchange": "amq.fanout"})
    channel.exchange_declare("gone", "headers", durable=True)
    channel.exchange_bind("e", "amq.topic", "#", {"a": [1, {"b": b"\xff"}, 1.5, None, True]})
    channel.queue_declare("dead", durable=True)
    to_dead = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"}
    channel.queue_declare("c", durable=True, arguments={"x-message-ttl": 60_000, **to_dead})
    channel.queue_declare("q", durable=True, arguments={"x-queue-type": "quorum", **to_dead})
    channel.queue_declare("s", durable=True, arguments={"x-queue-type": "stream"})
    channel.queue_declare("mine", durable=True, exclusive=True)
    channel.queue_declare("left", durable=True)
    for name in ("c", "q", "s", "mine", "left"):
        channel.queue_bind(name, "e", "k.#")
    channel.queue_bind("q", "e", "\udcff.key")
    channel.queue_unbind("c", "e", "k.#")
    channel.queue_bind("c", "e", "k.#", {"again": 1})
    channel.exchange_delete("gone")
    channel.publish("e", "k.1", headers(a=1, CC=["c"]), b"one")
    channel.publish("e", "k.2", DURABLE, b"")
    channel.publish("", "c", RawProperties(b"\x00\x00"), b"transient")
    channel.queue_delete("left")
    got = channel.get("q")
    assert got is not None
    channel.reject(got.delivery_tag, requeue=False)
    before = state(broker)
    store.close()

    again, store = opened(path)
    assert state(again) == [each for each in before if "mine" not in str(each)]
    got = channel_of(again).get("dead")
    assert got is not None
    assert got.body == b"one"
    assert got.properties.headers is not None
    assert got.properties.headers["x-death"][0]["queue"] == "q"
    store.close()


def test_time_that_passed_meanwhile_counts(path: Path):
    """A message whose time was over while nobody ran is dead-lettered at the start."""
    broker, store = opened(path)
    channel = channel_of(broker)
    channel.queue_declare("dead", durable=True)
    arguments = {"x-message-ttl": 1000, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"}
    channel.queue_declare("delay", durable=True, arguments={"x-queue-type": "quorum", **arguments})
    channel.publish("", "delay", DURABLE, b"late")
    store.close()
    broker, store = opened(path, NOW + 3600)
    broker.advance(NOW + 3600)
    got = channel_of(broker).get("dead")
    assert got is not None
    assert got.body == b"late"
    store.close()


def test_deliveries_that_failed_are_counted_over_restarts(path: Path):
    """Otherwise a message that kills its broker as well would never reach the delivery limit."""
    for failures in range(3):
        broker, store = opened(path)
        channel = channel_of(broker)
        channel.queue_declare("q", durable=True, arguments={"x-queue-type": "quorum"})
        if not failures:
            channel.publish("", "q", DURABLE, b"poison")
        got = channel.get("q")
        assert got is not None
        counts = got.properties.headers or {}
        assert counts.get("x-delivery-count", 0) == failures
        channel.reject(got.delivery_tag)
        store.close()


def test_what_came_and_went_never_reaches_the_file(path: Path):
    """A queue that is worked off at once costs the disk nothing."""
    broker, store = opened(path)
    channel = channel_of(broker)
    channel.queue_declare("q", durable=True)
    store.commit()
    writes: list[str] = []
    store._db.set_trace_callback(writes.append)
    channel.publish("", "q", DURABLE, b"x")
    got = channel.get("q")
    assert got is not None
    channel.ack(got.delivery_tag)
    store.commit()
    assert writes == []
    store.close()


def test_a_queue_that_is_declared_again_starts_empty(path: Path):
    """Deleted, declared and filled within one turn; the messages of the first one do not come back."""
    broker, store = opened(path)
    channel = channel_of(broker)
    for turn in range(2):
        channel.queue_declare("q", durable=True)
        channel.publish("", "q", DURABLE, b"old")
        if turn:
            store.commit()
        channel.queue_delete("q")
    channel.queue_declare("q", durable=True)
    channel.publish("", "q", DURABLE, b"new")
    store.close()
    broker, store = opened(path)
    channel = channel_of(broker)
    got = channel.get("q")
    assert got is not None
    assert (got.body, got.messages) == (b"new", 0)
    store.close()


def test_the_file_does_not_keep_growing(path: Path):
    """What settled messages left behind is used again, and given back at a start."""
    broker, store = opened(path)
    channel = channel_of(broker)
    channel.queue_declare("q", durable=True)
    for _ in range(2000):
        channel.publish("", "q", DURABLE, b"x" * 1000)
    store.commit()
    channel.queue_purge("q")
    store.close()
    full = path.stat().st_size
    opened(path)[1].close()
    assert path.stat().st_size < full / 10


def test_one_broker_at_a_time(path: Path):
    with Store(path), pytest.raises(ConfigurationError, match="is in use by another broker"):
        Store(path)


@pytest.mark.parametrize("content", [b"no database at all, but long enough to look at", None])
def test_a_file_of_somebody_else_is_left_alone(path: Path, content: bytes | None):
    if content is not None:
        path.write_bytes(content)
    else:
        database = sqlite3.connect(path)
        database.execute("CREATE TABLE theirs (a)")
        database.close()
    before = path.read_bytes()
    with pytest.raises(ConfigurationError) as caught:
        Store(path)
    assert str(path) in caught.value.message
    assert path.read_bytes() == before


def test_a_folder_that_is_not_there_is_a_named_error(tmp_path: Path):
    with pytest.raises(ConfigurationError, match="cannot keep what the broker holds"):
        Store(tmp_path / "nowhere" / "kept.db")


def test_nothing_is_confirmed_when_the_disk_fails(path: Path):
    """The clients are cut off instead, and whoever runs the broker is told."""
    with EmbeddedBroker("0", port=0, persist=path) as broker, Peer(broker.port) as peer:
        peer.open().channel()
        peer.ask(commands.Confirm.Select(), commands.Confirm.SelectOk)
        peer.ask(commands.Queue.Declare(queue="q", durable=True), commands.Queue.DeclareOk)
        broker.call(lambda listener: listener._store and listener._store._db.execute("PRAGMA query_only=ON"))
        peer.publish("q")
        with pytest.raises((EOFError, ConnectionResetError)):
            peer.next()
        assert "cannot keep" in broker.failed.result(10).message


BROKER = """
    import signal, sys
    from pathlib import Path
    from choreo.broker.server.background import EmbeddedBroker

    broker = EmbeddedBroker("0", port=0, persist=Path(sys.argv[1])).start()
    print(broker.port, flush=True)
    signal.pause()
"""


@pytest.fixture
def start(path: Path) -> Iterator[Callable[[], tuple[subprocess.Popen[str], int]]]:
    """Starts a broker in a process of its own, on the same file each time."""
    started: list[subprocess.Popen[str]] = []

    def one() -> tuple[subprocess.Popen[str], int]:
        command = [sys.executable, "-c", textwrap.dedent(BROKER), str(path)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment(None))
        started.append(process)
        assert process.stdout is not None
        return process, int(process.stdout.readline())

    yield one
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_a_killed_broker_has_all_that_it_confirmed(start: Callable[[], tuple[subprocess.Popen[str], int]]):
    """A ledger over five kills in the middle of publishing: nothing that was confirmed is missing, in any of them."""
    confirmed: set[int] = set()
    settled: set[int] = set()
    number = 0
    for _ in range(5):
        process, port = start()
        with Peer(port) as peer:
            peer.open().channel()
            peer.ask(commands.Queue.Declare(queue="q", durable=True), commands.Queue.DeclareOk)
            for _ in range(20):
                peer.send(commands.Basic.Get(queue="q"))
                if not isinstance(got := peer.expect(base.Frame), commands.Basic.GetOk):
                    break
                settled.add(int(peer.content()))
                peer.send(commands.Basic.Ack(got.delivery_tag or 0))
            peer.ask(commands.Confirm.Select(), commands.Confirm.SelectOk)
            first = number
            killer = threading.Timer(0.15, os.kill, (process.pid, signal.SIGKILL))
            killer.start()
            try:
                while True:
                    peer.raw(b"".join(publication("q", str(number + n).encode()) for n in range(10)))
                    number += 10
                    upto = 0
                    while upto < number - first:
                        upto = peer.expect(commands.Basic.Ack).delivery_tag or 0
                        confirmed |= set(range(first, first + upto))
            except (OSError, EOFError):
                killer.join()
        process.wait()
    assert len(confirmed) > 100
    _, port = start()
    with Peer(port) as peer:
        peer.open().channel()
        found = set()
        while True:
            peer.send(commands.Basic.Get(queue="q", no_ack=True))
            if not isinstance(peer.expect(base.Frame), commands.Basic.GetOk):
                break
            found.add(int(peer.content()))
    assert confirmed - found - settled == set()
