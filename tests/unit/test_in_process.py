"""The session in the same process, beyond the contract of all sessions: time, latency, its end."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest

from choreo.broker.in_process import Host, InProcessSession, connect, look
from choreo.errors import BrokerUnreachable
from choreo.message import Message
from choreo.testing import VirtualLoop
from choreo.topology import Binding, Exchange, Queue, Topology
from choreo.transport import Confirmed, Delivery, Refused, Unknown

T = TypeVar("T")

QUORUM = {"x-queue-type": "quorum", "x-delivery-limit": 20}
TOPOLOGY = Topology(
    (Exchange("events", "topic"),),
    (
        Queue("box", "work", "box", QUORUM),
        Queue("slow", "delay", None, QUORUM | {"x-message-ttl": 60_000, "x-dead-letter-exchange": "events"}),
    ),
    (Binding("events", "box", "here"), Binding("events", "slow", "later")),
)


def run(main: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


def new_host(**options: Any) -> Host:
    return Host(clock=asyncio.get_running_loop().time, **options)


async def opened(host: Host) -> InProcessSession:
    session = await connect(host)
    await session.declare(TOPOLOGY)
    return session


async def put(session: InProcessSession, *bodies: bytes, key: str = "here") -> list[Any]:
    return [await session.publish(Message(body), exchange="events", routing_key=key, timeout=5) for body in bodies]


def test_the_broker_s_time_is_the_loop_s():
    """What expires does so when the loop's time has come, without anybody asking."""

    async def main() -> tuple[list[bytes], float]:
        host, got = new_host(), list[bytes]()
        session = await opened(host)
        arrived = asyncio.Event()

        def note(delivery: Delivery) -> None:
            got.append(delivery.message.body)
            arrived.set()

        topology = Topology((), (), (Binding("events", "box", "later"),))
        await put(session, b"1", key="later")
        await session.declare(topology)
        await session.consume("box", prefetch=5, on_delivery=note)
        await arrived.wait()
        return got, asyncio.get_running_loop().time()

    got, after = run(main())
    assert got == [b"1"]
    assert 60 <= after < 60.01


def test_what_is_due_is_due_in_spite_of_rounding():
    """A sum of floats may leave the clock a little short when the timer of the loop has come."""

    async def main() -> list[bytes]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        host, got = Host(clock=lambda: loop.time() - 1e-7 if loop.time() else 0.0), list[bytes]()
        session = await opened(host)
        await put(session, b"1", key="later")
        await session.declare(Topology((), (), (Binding("events", "box", "later"),)))
        await session.consume("box", prefetch=5, on_delivery=lambda each: got.append(each.message.body))
        await asyncio.sleep(60)
        await loop.quiet()
        return got

    assert run(main()) == [b"1"]


def test_latency_keeps_the_order_of_a_channel():
    """However long each single delivery takes, none overtakes another, and a confirm may come after all of them."""

    async def main() -> list[bytes]:
        draw = random.Random(1)
        host, got = new_host(latency=lambda: draw.uniform(0, 1)), list[bytes]()
        session = await opened(host)
        await session.consume("box", prefetch=50, on_delivery=lambda each: got.append(each.message.body))
        assert set(await put(session, *(b"%d" % number for number in range(20)))) == {Confirmed()}
        await asyncio.sleep(2)
        return got

    assert run(main()) == [b"%d" % number for number in range(20)]


def test_cancel_returns_when_what_was_on_its_way_is_there():
    """As on a wire, where deliveries stand before the answer; afterwards none comes."""

    async def main() -> None:
        host, got = new_host(latency=lambda: 1.0), list[bytes]()
        session = await opened(host)
        await put(session, b"1", b"2")
        consumer = await session.consume("box", prefetch=5, on_delivery=lambda each: got.append(each.message.body))
        assert got == []
        await consumer.cancel()
        assert got == [b"1", b"2"]
        await put(session, b"3")
        await asyncio.sleep(5)
        assert got == [b"1", b"2"]

    run(main())


def test_cut_is_the_end_of_everything():
    """Publishes without an answer are unknown though stored; deliveries on their way are ready again."""

    async def main() -> None:
        host, got = new_host(latency=lambda: 1.0), list[Delivery]()
        session, other = await opened(host), await connect(host)
        await put(session, b"1")
        await session.consume("box", prefetch=5, on_delivery=got.append)
        waiting = session.publish(Message(b"2"), exchange="events", routing_key="here", timeout=5)
        session.cut(BrokerUnreachable("the cable"))
        assert isinstance(await waiting, Unknown)
        await asyncio.sleep(5)
        assert got == []
        assert str(session.lost.result()) == "the cable"
        found = await other.stats("box")
        assert found is not None
        assert (found.ready, found.consumers) == (2, 0)
        with pytest.raises(BrokerUnreachable):
            await session.consume("box", prefetch=5, on_delivery=got.append)

    run(main())


@pytest.mark.parametrize(
    "message",
    [
        Message(b"", headers={"big": "x" * 140_000}),
        Message(b"", headers={"odd": object()}),
        Message(b"", reply_to="x" * 256),
    ],
    ids=["larger than a frame", "no AMQP type", "no short string"],
)
def test_what_no_wire_carries_is_refused_here_too(message: Message):
    async def main() -> Any:
        session = await opened(new_host())
        result = await session.publish(message, exchange="events", routing_key="here", timeout=5)
        assert await put(session, b"1") == [Confirmed()]
        return result

    result = run(main())
    assert isinstance(result, Refused)
    assert result.reason == "rejected"


def test_what_arrives_is_no_object_of_the_sender_s():
    """A sender that changes its message afterwards, or a receiver that changes what it got, changes nobody else's."""

    async def main() -> None:
        host, got = new_host(), list[Delivery]()
        session = await opened(host)
        message = Message(b"1", headers={"list": ["a"]})
        await session.publish(message, exchange="events", routing_key="here", timeout=5)
        message.headers["list"].append("b")
        consumer = await session.consume("box", prefetch=1, on_delivery=got.append)
        await asyncio.sleep(1)
        assert got[0].message.headers == {"list": ["a"]}
        got[0].message.headers["mine"] = True
        consumer.requeue(got[0])
        await asyncio.sleep(1)
        assert "mine" not in got[1].message.headers

    run(main())


def test_looking_takes_nothing():
    async def main() -> None:
        host = new_host()
        session = await opened(host)
        await put(session, b"1", b"2")
        for _ in range(2):
            assert [each.body for each in look(host, "box")] == [b"1", b"2"]

    run(main())


def test_a_closed_host_has_no_time():
    """Nothing happens by itself any more; what is there can still be looked at."""

    async def main() -> Host:
        host = new_host()
        session = await opened(host)
        await put(session, b"1", key="later")
        host.close()
        await asyncio.sleep(600)
        return host

    assert [each.body for each in look(run(main()), "slow")] == [b"1"]
