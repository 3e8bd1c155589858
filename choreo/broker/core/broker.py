"""The broker: one virtual host and who is connected to it; what of it outlasts a restart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from choreo.broker.core.connection import Connection
from choreo.broker.core.persistence import Bound, Change, Counted, Journal, QueueDeclared, QueueDeleted, Settled, Stored
from choreo.broker.core.virtual_host import PREDECLARED, VirtualHost, declared


class Broker(VirtualHost):
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
        super().__init__(now, names, journal=journal, vhost=vhost, limit=limit)
        self._connections: dict[Connection, None] = {}

    def connect(self, *, user: str = "guest") -> Connection:
        """Return a new connection; exclusive queues belong to it."""
        connection = Connection(self, user, self.disconnect)
        self._connections[connection] = None
        return connection

    def disconnect(self, connection: Connection) -> None:
        """Forget a connection, whose channels are closed, and its exclusive queues."""
        self._connections.pop(connection, None)
        for queue in [queue for queue in self.by_name.values() if queue.owner is connection]:
            self.drop_queue(queue)
        self.catch_up()

    # -- what outlasts a restart ----------------------------------------------------------------------------------

    def changes(self) -> Iterator[Change]:
        """Return the shortest list of changes that leads to the durable state. It must be used up before any call."""
        for exchange in self.exchanges.values():
            if exchange.durable and exchange.name not in PREDECLARED:
                yield declared(exchange)
        queues = [queue for queue in self.by_name.values() if queue.lasting]
        for queue in queues:
            yield QueueDeclared(queue.name, queue.auto_delete, queue.arguments)
        for exchange in self.exchanges.values():
            for binding in exchange.bindings.values():
                if self.outlasts(binding):
                    yield Bound(binding)
        held = [each for one in self._connections for channel in one.channels.values() for each in channel.held]
        for queue in queues:
            mine = [queue.storing(each.entry) for each in held if each.queue is queue and each.entry.kept]
            yield from sorted([*queue.stored(), *mine], key=lambda stored: stored.number)

    def restore(self, changes: Iterable[Change]) -> None:
        """Make a broker that has just been made what `changes` tell; its journal hears nothing of it."""
        journal, self.journal = self.journal, None
        messages: dict[str, dict[int, Stored]] = {}
        for change in changes:
            match change:
                case Stored():
                    messages.setdefault(change.queue, {})[change.number] = change
                case Counted():
                    stored = messages[change.queue][change.number]
                    messages[change.queue][change.number] = stored._replace(
                        failures=change.failures, dying=change.dying
                    )
                case Settled():
                    messages[change.queue].pop(change.number, None)
                case QueueDeleted():
                    messages.pop(change.name, None)
                    self.drop_queue(self.by_name[change.name])
                case _:
                    self.redo(change)
        self.journal = journal
        for queue in self.by_name.values():
            queue.journal = journal if queue.lasting else None
            for stored in messages.get(queue.name, {}).values():
                queue.restore(stored)
        self.catch_up()
