"""What the broker sends to a client: values for a sink, or answers of a method."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from choreo.broker.core.message import Properties


class Consuming(NamedTuple):
    """basic.consume-ok: stands before the first delivery to this consumer."""

    consumer_tag: str


class Deliver(NamedTuple):
    """basic.deliver."""

    consumer_tag: str
    delivery_tag: int
    redelivered: bool
    exchange: str
    routing_key: str
    properties: Properties
    body: bytes


class Returned(NamedTuple):
    """basic.return of a mandatory message that no queue was found for; its confirm follows."""

    code: int
    text: str
    exchange: str
    routing_key: str
    properties: Properties
    body: bytes


class Ack(NamedTuple):
    """basic.ack to a publisher: every queue of this message has it."""

    delivery_tag: int


class Nack(NamedTuple):
    """basic.nack to a publisher: at least one queue refused this message."""

    delivery_tag: int


class Cancelled(NamedTuple):
    """basic.cancel by the broker: the queue of this consumer is gone."""

    consumer_tag: str


Sent = Consuming | Deliver | Returned | Ack | Nack | Cancelled

# A sink only takes note: it is called in the middle of the broker's work and must not call the broker.
Sink = Callable[[Sent], None]


class Got(NamedTuple):
    """basic.get-ok; `messages` are left in the queue, ready."""

    delivery_tag: int
    redelivered: bool
    exchange: str
    routing_key: str
    messages: int
    properties: Properties
    body: bytes


class QueueOk(NamedTuple):
    """queue.declare-ok; `messages` are those ready for delivery."""

    queue: str
    messages: int
    consumers: int
