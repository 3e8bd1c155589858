"""What a session with a broker can do. The rest of the house knows no more of a broker than this."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

from choreo.errors import ChoreoError
from choreo.message import ATTEMPT, DELIVERY_COUNT, Message
from choreo.topology import Binding, Topology

FRAME_MAX: Final = 131_072  # bytes, where the broker has no bound of its own


@dataclass(frozen=True, slots=True)
class Confirmed:
    """The broker has stored the message in every queue it was routed to."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The broker said no before the message came to any queue: it is stored nowhere.

    `returned`: nothing is bound for it. `missing`: there is no such exchange. `rejected`: the broker will never take
    it, as there is no permission, or the message is larger than it or the protocol allows.
    """

    reason: Literal["returned", "missing", "rejected"]
    detail: str
    over: int = 0  # bytes of its properties for which a frame has no room


@dataclass(frozen=True, slots=True)
class Unknown:
    """The message may or may not be stored.

    No answer came in time, or the connection was lost. Or it was `nacked`: one of the queues that it was routed to has
    not taken it. AMQP does not say how many queues there were, and the others have it.
    https://www.rabbitmq.com/docs/confirms#server-sent-nacks
    """

    detail: str
    nacked: bool = False


def nacked(exchange: str, routing_key: str) -> Unknown:
    """Return what a nack says of a publish."""
    return Unknown(f"a queue bound to {exchange} for {routing_key!r} has not taken it; others may have", nacked=True)


Publication = Confirmed | Refused | Unknown


@dataclass(frozen=True, slots=True)
class Server:
    """What the broker says of itself."""

    product: str
    version: str
    frame_max: int = FRAME_MAX  # bytes; the properties of a message travel in one frame

    @property
    def counts_returns(self) -> bool:
        """Whether every requeued delivery comes nearer to its queue's delivery limit: until RabbitMQ 4.3."""
        return re.match(r"3\.|4\.[0-2]\.", self.version) is not None


@dataclass(frozen=True, slots=True)
class QueueStats:
    """A queue as AMQP shows it: messages ready for delivery, and consumers."""

    name: str
    ready: int
    consumers: int


@dataclass(slots=True)
class Delivery:
    """One message arriving at one consumer, until it is settled."""

    message: Message
    exchange: str
    routing_key: str
    tag: int
    redelivered: bool
    consumer: Consumer


def came_back(delivery: Delivery) -> int:
    """Return how often the broker has got `delivery` back unsettled."""
    if not delivery.redelivered:
        return 0  # whatever a publisher may have written there
    count = delivery.message.headers.get(DELIVERY_COUNT)
    return count if isinstance(count, int) else 0


def likeness(delivery: Delivery) -> object:
    """Return what is the same for a message whenever it comes; its headers count how often it came.

    Another attempt of an event is another message, though all else of it may be the same.
    """
    message = delivery.message
    attempt = message.headers.get(ATTEMPT)
    return (
        message.message_id,
        delivery.routing_key,
        attempt if isinstance(attempt, int) else None,  # whatever a publisher may have written there
        hash(message.body),  # which may be large, and is not to be kept
    )


OnDelivery = Callable[[Delivery], None]


class OnTimeout(Protocol):
    """Told that the broker has ended a subscription over its consumer timeout, and with which words."""

    def __call__(self, error: ChoreoError, *, guessed: bool = False) -> None:
        """`guessed`: the broker has only ended it, and does not say why."""
        ...


class Consumer(Protocol):
    """One subscription to one queue."""

    @property
    def queue(self) -> str:
        """The name of the queue."""
        ...

    def acknowledge(self, delivery: Delivery) -> None:
        """Tell the broker that `delivery` is done with. Nothing happens when the session is lost: it is redelivered.

        What is said in one turn of the event loop is written at its end.
        """
        ...

    def requeue(self, delivery: Delivery) -> None:
        """Give `delivery` back, to be delivered again."""
        ...

    async def cancel(self) -> None:
        """Ask for no more deliveries. Those not settled yet stay ours to settle."""
        ...

    async def close(self) -> None:
        """End the subscription; what is not settled goes back to the queue."""
        ...


class Session(Protocol):
    """A live connection to a broker. It is never repaired: once `lost`, a new one takes its place."""

    @property
    def server(self) -> Server:
        """Which broker this is."""
        ...

    @property
    def lost(self) -> asyncio.Future[ChoreoError]:
        """Done, with the reason, as soon as the session can no longer be relied on."""
        ...

    async def declare(self, topology: Topology) -> tuple[str, ...]:
        """Declare everything in `topology`; return the names of queues that are as earlier releases declared them.

        Raises TopologyMismatch, AccessRefused or BrokerUnreachable.
        """
        ...

    async def remove(self, topology: Topology) -> None:
        """Delete the queues of `topology`, with all that they hold, and its exchanges. What is gone is not an error."""
        ...

    async def consume(
        self,
        queue: str,
        *,
        prefetch: int,
        on_delivery: OnDelivery,
        hold: float | None = None,
        on_timeout: OnTimeout | None = None,
        looking: bool = False,
    ) -> Consumer:
        """Subscribe to `queue` with at most `prefetch` unsettled deliveries; `on_delivery` must not block.

        `hold`: seconds that a delivery may stay unsettled, asked of brokers that let a consumer say so. `on_timeout` is
        called when the broker ends this subscription because one stayed for longer than it allows; the session goes
        on. Without it, the session is `lost` then. `looking`: what is unsettled when the subscription is closed was
        looked at only, and goes back in a way that counts as no failed delivery, where the broker has one.
        """
        ...

    def publish(
        self, message: Message, *, exchange: str, routing_key: str, timeout: float, mandatory: bool = True
    ) -> Awaitable[Publication]:
        """Publish, and give the broker's word when awaited, after at most `timeout` seconds.

        Never raises for what the broker does.
        """
        ...

    def watch_blocked(self, callback: Callable[[str | None], None]) -> None:
        """Call `callback` with the broker's reason when it takes no publishes for a while, with None when it does."""
        ...

    async def missing(self, topology: Topology) -> tuple[str, ...]:
        """Return the names of the exchanges and queues of `topology` that the broker does not have."""
        ...

    async def stats(self, queue: str) -> QueueStats | None:
        """Return what AMQP shows of `queue`, None when there is no such queue."""
        ...

    async def close(self) -> None:
        """Close both connections; unsettled deliveries go back to their queues."""
        ...


Connect = Callable[[], Awaitable[Session]]


@dataclass(frozen=True, slots=True)
class Diversion:
    """Where everybody in this process gets a session while a rehearsal runs, and in which namespace."""

    connect: Connect
    namespace: str


_diversions: list[Diversion] = []  # of the whole process, threads included: nothing of it may reach a real broker


def diversion() -> Diversion | None:
    """Return where sessions come from in place of the broker that is named; None: from there."""
    return _diversions[-1] if _diversions else None


@contextmanager
def diverted(to: Diversion) -> Iterator[None]:
    """Have every session that is opened meanwhile come from `to`."""
    _diversions.append(to)
    try:
        yield
    finally:
        _diversions.remove(to)


@dataclass(frozen=True, slots=True)
class Unavailable:
    """There is no answer, and why. Never shows a password."""

    reason: str


@dataclass(frozen=True, slots=True)
class ConsumerDetail:
    """One consumer of a queue. `address` is the host that it is connected from."""

    address: str | None
    user: str | None
    prefetch: int | None
    active: bool | None


@dataclass(frozen=True, slots=True)
class QueueDetail:
    """A queue as the management API shows it. Rates are messages per second, `memory` is bytes; None: not told."""

    name: str
    state: str | None
    ready: int | None
    unacked: int | None
    consumers: int | None
    memory: int | None
    publish_rate: float | None
    deliver_rate: float | None
    ack_rate: float | None
    consumer_details: tuple[ConsumerDetail, ...] = ()
    policies: tuple[str, ...] = ()  # their names, the operator's last
    policy: Mapping[str, Any] | None = None  # what they come to; it shows with a queue's first statistics
    arguments: Mapping[str, Any] = field(default_factory=dict)


class Management(Protocol):
    """What a broker's management API tells. It only adds detail: everything essential works without it."""

    async def queues(self, namespace: str) -> tuple[QueueDetail, ...] | Unavailable:
        """Return the queues of `namespace`."""
        ...

    async def queue(self, name: str) -> QueueDetail | Unavailable:
        """Return one queue, with its consumers."""
        ...

    async def bindings(self, namespace: str) -> tuple[Binding, ...] | Unavailable:
        """Return the bindings of the exchanges of `namespace`."""
        ...
