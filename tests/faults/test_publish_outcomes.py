"""Every publish is reported as what became of it, however many are in flight together."""

from __future__ import annotations

import asyncio
import contextlib
import struct
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pytest

from choreo.config.broker_url import BrokerUrl
from choreo.message import Message
from choreo.rabbit import session as rabbit
from choreo.testing.rabbitmq.node import Node
from choreo.topology import Binding, Exchange, Names, Queue, Topology
from choreo.transport import Confirmed, Publication, Refused, Session, Unknown
from tests.faults.conftest import Scale
from tests.faults.proxy import Frame, Link, Proxy
from tests.faults.raw_amqp import RawChannel, cut_short
from tests.faults.raw_amqp import frame as raw_frame
from tests.faults.report import Row

LARGEST: Final = 50_000  # bytes that the node takes in one message
DEADLINE: Final = 3.0  # seconds for a confirm that never comes
LATE: Final = 1.0  # seconds that its report may come late
PATIENCE: Final = 60.0  # seconds for a confirm that comes
SESSIONS: Final = 8  # for what may end one; RabbitMQ 4 greets nobody for seconds after 50 connections in one

QUORUM: Final[dict[str, Any]] = {"x-queue-type": "quorum"}
FULL: Final[dict[str, Any]] = {"x-max-length": 1, "x-overflow": "reject-publish"}


@dataclass(frozen=True, slots=True)
class Attempt:
    """One publish and what was said of it, after how many seconds."""

    kind: str
    body: bytes
    outcome: Publication
    seconds: float


@dataclass(slots=True)
class Post:
    """An exchange with a queue for each kind of message that has one, and publishes of every kind."""

    names: Names
    number: int = 0

    @property
    def topology(self) -> Topology:
        queues = {"good": QUORUM, "withheld": QUORUM, "full": QUORUM | FULL, "partial": QUORUM}
        bindings = [(kind, kind) for kind in queues] + [("full", "partial")]
        return Topology(
            (Exchange(self.names.events, "topic"),),
            tuple(Queue(self.names.queue(name), "work", name, arguments) for name, arguments in queues.items()),
            tuple(Binding(self.names.events, self.names.queue(name), kind) for name, kind in bindings),
        )

    async def publish(self, session: Session, kind: str, message_id: str) -> Attempt:
        """Publish one message, whose body no other has."""
        self.number += 1
        body = f"{kind} {self.number}".encode()
        began = time.monotonic()
        outcome = await session.publish(
            Message(body.ljust(LARGEST + 1) if kind == "large" else body, message_id=message_id),
            exchange=f"{self.names.namespace}.missing" if kind == "missing" else self.names.events,
            routing_key="good" if kind == "large" else kind,
            timeout=DEADLINE if kind == "withheld" else PATIENCE,
        )
        return Attempt(kind, body, outcome, time.monotonic() - began)

    async def publish_all(self, session: Session, kinds: Sequence[str], times: int) -> list[Attempt]:
        """Publish so many of each kind, all at once. Ten of each kind share each message id."""
        return await asyncio.gather(
            *(self.publish(session, kind, f"id-{number // 10}") for number in range(times) for kind in kinds)
        )

    async def fill(self, session: Session) -> list[Attempt]:
        """Publish to the queue that is bounded until it is full."""
        attempts = [await self.publish(session, "full", "first")]
        while attempts[-1].outcome == Confirmed():
            attempts.append(await self.publish(session, "full", "next"))
        return attempts

    def stored(self, port: int) -> Counter[bytes]:
        """Return the body of every message that is in a queue."""
        with RawChannel(port) as channel:
            queues = map(self.names.queue, ("good", "withheld", "full", "partial"))
            return Counter(found.body.rstrip() for queue in queues for found in channel.get_all(queue))


class Withholding:
    """Hooks of a proxy that keeps confirms of the routing key `withheld` to itself.

    A confirm of many is passed on as confirms of each of the others.
    """

    def __init__(self) -> None:
        self.withheld = 0
        self._tags: Counter[tuple[Link, int]] = Counter()  # publishes by connection and channel
        self._waiting: set[tuple[Link, int, int]] = set()  # connection, channel, tag

    def to_broker(self, frame: Frame, link: Link) -> bytes:
        """Note which tag the confirm of each publish will have."""
        if frame.method == (60, 40):
            self._tags[link, frame.channel] += 1
            _, rest = cut_short(frame.raw[13:])
            if cut_short(rest)[0] == b"withheld":
                self.withheld += 1
            else:
                self._waiting.add((link, frame.channel, self._tags[link, frame.channel]))
        return frame.raw

    def to_client(self, frame: Frame, link: Link) -> bytes:
        if frame.method not in ((60, 80), (60, 120)):
            return frame.raw
        last, flags = struct.unpack_from(">QB", frame.raw, 11)
        first = 1 if flags & 1 else last
        told = {(link, frame.channel, tag) for tag in range(first, last + 1)} & self._waiting
        self._waiting -= told
        tags = sorted(tag for *_, tag in told)
        return b"".join(raw_frame(1, frame.channel, frame.raw[7:11] + struct.pack(">QB", tag, 0)) for tag in tags)


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[Session]:
    session = await rabbit.connect([BrokerUrl.parse(url)], name="outcomes")
    try:
        yield session
    finally:
        await session.close()


# What may be said of each kind. Where a channel ends, and with it the answers of all that were in flight on it,
# nobody knows of them: what is wrong then is only to say that something is known.
ALONE: Final = {
    "good": ("confirmed",),
    "unroutable": ("returned",),
    "full": ("nacked",),
    "partial": ("nacked",),
    "withheld": ("unknown",),
    "large": ("rejected",),
    "missing": ("missing",),
}
TOGETHER: Final = {
    "good": ("confirmed", "unknown"),
    "unroutable": ("returned", "unknown"),
    "large": ("rejected", "unknown"),
    "missing": ("missing", "unknown"),
}


@pytest.mark.timeout(240)
async def test_each_of_many_publishes_is_reported_as_what_it_is(
    start_node: Callable[..., Node], namespace: str, scale: Scale, report: Callable[[Row], None]
) -> None:
    """Compared with what lies in the queues afterwards: all that was confirmed, nothing that was refused. What one of
    two queues has not taken is in the other, and unknown; what nobody answered is reported as unknown, at its deadline.
    """
    times = scale.of(1_000, short=100)
    node = start_node(config=[f"max_message_size = {LARGEST}"])
    post = Post(Names(namespace))
    hooks = Withholding()
    with Proxy(node.port, to_broker=hooks.to_broker, to_client=hooks.to_client) as proxy:
        async with opened(proxy.url) as session:
            await session.declare(post.topology)
            filling = await post.fill(session)
            attempts = await post.publish_all(session, ("good", "unroutable", "full", "partial", "withheld"), times)
            mistakes = [*misreported(attempts, ALONE)]
            if session.lost.done():
                mistakes.append(f"the session was lost: {session.lost.result()}")
            assert hooks.withheld, "they were sent through the proxy"
    for kind in ("large", "missing"):
        for number in range(SESSIONS):
            async with opened(node.url) as session:
                alone = await post.publish(session, kind, f"id-{number}")
            mistakes += misreported([alone], ALONE)
            attempts.append(alone)
    for kind in ("large", "missing"):
        async with opened(node.url) as session:
            together = await post.publish_all(session, ("good", "unroutable", kind), times)
        mistakes += misreported(together, TOGETHER)
        attempts += together

    latest = scale.limit(LATE)
    late = max(each.seconds for each in attempts if each.kind == "withheld") - DEADLINE
    attempts += filling
    stored = await asyncio.to_thread(post.stored, node.port)
    lost = [each.body for each in attempts if each.outcome == Confirmed() and not stored[each.body]]
    partly = sum(stored[each.body] for each in attempts if each.kind == "partial")
    there = [each.body for each in attempts if isinstance(each.outcome, Refused) and stored[each.body]]
    twice = [body for body, count in stored.items() if count > 1]
    told = Counter(said(each.outcome) for each in attempts)
    report(
        Row(
            fault="publishes of every outcome at once",
            repetitions=times,
            events=len(attempts),
            lost=len(lost),
            duplicated=len(twice),
            worst_recovery=None,
            must="each reported as what it is: confirmed ones stored, refused ones not, unknown only without an answer"
            " or where one of the queues has refused",
            met=not (mistakes or lost or there or twice) and late <= latest,
            note=f"{', '.join(f'{count:,} {what}' for what, count in sorted(told.items()))};"
            f" unknown at most {max(late, 0):.1f} s after the deadline",
        )
    )
    assert not mistakes, "\n".join(mistakes[:20])
    assert (lost, there, twice) == ([], [], [])
    assert partly == times, "the other queue has what the full one refused"
    assert late <= latest


def misreported(attempts: Iterable[Attempt], allowed: Mapping[str, Sequence[str]]) -> Iterable[str]:
    """Return every report that is none of those allowed for its kind, in words."""
    for each in attempts:
        if said(each.outcome) not in allowed[each.kind]:
            yield f"{each.body.decode()} was reported as {each.outcome} after {each.seconds:.1f} s"
        elif each.kind == "withheld" and each.seconds < DEADLINE:
            yield f"{each.body.decode()} was given up after {each.seconds:.1f} s already"


def said(outcome: Publication) -> str:
    match outcome:
        case Confirmed():
            return "confirmed"
        case Refused(reason, _):
            return reason
        case Unknown(_, nacked):
            return "nacked" if nacked else "unknown"
