"""The broker: one virtual host, its exchanges and queues, its time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from choreo.embedded.changes import Change, Journal
from choreo.embedded.connection import Connection
from choreo.embedded.sent import QueueOk


class Broker:
    """A broker with the exchanges that every virtual host has, and nothing else.

    `now` is the time in seconds since 1970. `names` makes what follows `amq.gen-` and `amq.ctag-` in names that the
    broker chooses, a new one at each call. `journal` is told of every durable change. `limit` is the largest body,
    in bytes.
    """

    def __init__(
        self,
        now: float,
        names: Callable[[], str],
        *,
        journal: Journal | None = None,
        vhost: str = "/",
        limit: int = 16 * 1024 * 1024,
    ) -> None:
        raise NotImplementedError

    @property
    def now(self) -> float:
        """The time that the broker was told last, in seconds since 1970."""
        raise NotImplementedError

    def connect(self, *, user: str = "guest") -> Connection:
        """Return a new connection; exclusive queues belong to it."""
        raise NotImplementedError

    def advance(self, now: float) -> None:
        """Let time pass until `now`: everything due by then happens, each at its own time and in that order.

        A time before the present one changes nothing.
        """
        raise NotImplementedError

    def next_due(self) -> float | None:
        """Return when something is due next, in seconds since 1970; None when nothing is waiting for time to pass."""
        raise NotImplementedError

    def changes(self) -> Iterator[Change]:
        """Return the shortest list of changes that leads to the durable state. It must be used up before any call."""
        raise NotImplementedError

    def restore(self, changes: Iterable[Change]) -> None:
        """Make a broker that has just been made what `changes` tell; its journal hears nothing of it."""
        raise NotImplementedError

    def queues(self) -> list[QueueOk]:
        """Return all queues as queue.declare-ok would show them, in the order in which they were declared."""
        raise NotImplementedError

    def unsettled(self, queue: str) -> int:
        """Return how many messages of `queue` are delivered and not settled. Raises AmqpError 404."""
        raise NotImplementedError
