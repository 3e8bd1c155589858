"""What outlasts a restart, as a list of changes: given to a journal one by one as they happen, or all at once.

`Broker.changes()` returns the shortest list that makes the broker what it is, `Broker.restore` takes either. A journal
is called in the middle of the broker's work, before a confirm is sent, and must not call the broker. The changes of one
call belong together: a crash between them could lose a message on its way from one queue to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from choreo.broker.core.exchanges import Binding
from choreo.broker.core.message import Message


class ExchangeDeclared(NamedTuple):
    """A durable exchange is there."""

    name: str
    type: str
    auto_delete: bool
    internal: bool
    arguments: Mapping[str, Any]


class ExchangeDeleted(NamedTuple):
    """A durable exchange is gone, with its bindings: no Unbound tells of them."""

    name: str


class QueueDeclared(NamedTuple):
    """A durable queue is there."""

    name: str
    auto_delete: bool
    arguments: Mapping[str, Any]


class QueueDeleted(NamedTuple):
    """A durable queue is gone, with its messages and its bindings: neither Settled nor Unbound tells of them."""

    name: str


class Bound(NamedTuple):
    """A binding between durable ends is there."""

    binding: Binding


class Unbound(NamedTuple):
    """A binding between durable ends is gone."""

    binding: Binding


class Stored(NamedTuple):
    """A message is in a queue that keeps it.

    `number` is unique in the queue and grows. `failures` is how many deliveries of it failed. `expires` is when its
    time is over or, in a stream, when it came, in seconds since 1970. `dying` is the reason why it waits for being
    dead-lettered, at least once.
    """

    queue: str
    number: int
    message: Message
    expires: float | None
    failures: int
    dying: str | None


class Settled(NamedTuple):
    """A stored message is gone from the queue, for whatever reason."""

    queue: str
    number: int


class Counted(NamedTuple):
    """A delivery of a stored message failed for the `failures`-th time, or it waits for being dead-lettered now."""

    queue: str
    number: int
    failures: int
    dying: str | None


Change = (
    ExchangeDeclared | ExchangeDeleted | QueueDeclared | QueueDeleted | Bound | Unbound | Stored | Settled | Counted
)

Journal = Callable[[Change], None]
