"""Consumers, what they hold, and whose turn it is."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple

from choreo.broker.core.lines import Entry

if TYPE_CHECKING:
    from choreo.broker.core.channel import Channel
    from choreo.broker.core.queues import Queue


class Consumer:
    """A subscription. `credit` is how many unsettled deliveries it may have: `limit`, or 0 while it takes none."""

    def __init__(
        self, channel: Channel, queue: Queue, tag: str, *, no_ack: bool, exclusive: bool, arguments: Mapping[str, Any]
    ) -> None:
        self.channel = channel
        self.queue = queue
        self.tag = tag
        self.no_ack = no_ack
        self.exclusive = exclusive
        self.arguments = arguments
        self.limit = inf if (no_ack and not queue.limits_all) or not channel.prefetch else channel.prefetch
        self.credit = 0 if channel.connection.full else self.limit
        self.priority: int = arguments.get("x-priority", 0)
        self.held = 0
        self.parked = True  # not among those who wait for messages
        self.cancelled = False
        self.next = 0  # the offset in a stream
        self.order = channel.last_tag, len(channel.consumers)  # in which the consumers of a channel came

    @property
    def leaves(self) -> tuple[str, tuple[int, int]]:
        """When it gives back what it holds as its channel closes: as they came; each basic.get, by its tag's text."""
        return "" if self.tag else str(self.order[0]), self.order


class Held(NamedTuple):
    """A delivery that is not settled."""

    queue: Queue
    entry: Entry
    consumer: Consumer


def refuse(held: list[Held], *, requeue: bool, failed: bool) -> None:
    """Give back or dead-letter, one consumer's after the other's, in the order of their tags, as RabbitMQ does."""
    held.sort(key=_queue_and_tag)
    for mine in in_groups(held, _queue_and_tag):
        queue = mine[0].queue
        (queue.put_back if requeue else queue.reject)(mine, failed=failed)


def in_groups(held: Iterable[Held], together: Callable[[Held], object]) -> Iterator[list[Held]]:
    """Return neighbours that `together` says the same of at once, without those whose queue is gone."""
    # Beside a queue that is gone there may stand another one of its name.
    for _, group in groupby((each for each in held if not each.queue.gone), together):
        yield list(group)


def _queue_and_tag(held: Held) -> tuple[str, str, tuple[int, int]]:
    # Each basic.get is a consumer of its own, with the empty tag; one that comes back under its tag is the same.
    tag = held.consumer.tag
    return held.queue.name, tag, held.consumer.order if not tag else (0, 0)


class Turns:
    """The consumers of a queue that wait for a message: those of the highest priority first, in turn."""

    __slots__ = ("_rings", "waiting")

    def __init__(self) -> None:
        self.waiting = 0  # how many there are
        self._rings: dict[int, deque[Consumer]] = {}  # by priority, the highest first

    def join(self, consumer: Consumer) -> None:
        """Let a parked consumer wait."""
        if consumer.priority not in self._rings:
            rings = self._rings | {consumer.priority: deque()}
            self._rings = dict(sorted(rings.items(), reverse=True))
        self._rings[consumer.priority].append(consumer)
        consumer.parked = False
        self.waiting += 1

    def leave(self, consumer: Consumer) -> None:
        """Park a consumer, if it waits."""
        if not consumer.parked:
            self._rings[consumer.priority].remove(consumer)
            consumer.parked = True
            self.waiting -= 1

    def next(self) -> Consumer:
        """Park and return the one whose turn it is; there has to be one."""
        for ring in self._rings.values():
            if ring:
                consumer = ring.popleft()
                consumer.parked = True
                self.waiting -= 1
                return consumer
        raise LookupError
