"""The broker: one virtual host, its exchanges and queues, its time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from heapq import heappop, heappush, heapreplace
from itertools import count
from typing import Final

from choreo.broker.core import declaring
from choreo.broker.core.changes import Bound, Change, Counted, Journal, QueueDeclared, QueueDeleted, Settled, Stored
from choreo.broker.core.connection import Connection
from choreo.broker.core.exchanges import Exchange, Incoming
from choreo.broker.core.failure import AmqpError
from choreo.broker.core.message import Message
from choreo.broker.core.queues import Queue
from choreo.broker.core.replies import is_reply
from choreo.broker.core.sent import Cancelled, QueueOk

_PREDECLARED: Final = {
    "": "direct",
    "amq.direct": "direct",
    "amq.fanout": "fanout",
    "amq.headers": "headers",
    "amq.match": "headers",
    "amq.topic": "topic",
}
_ROUTES: Final = 10_000  # how many routes are remembered


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
        self.names = names
        self.journal = journal
        self.vhost = vhost
        self.limit = limit
        self.exchanges = {
            name: Exchange.of(name, kind, durable=True, auto_delete=False, internal=False, arguments={})
            for name, kind in _PREDECLARED.items()
        }
        self.by_name: dict[str, Queue] = {}
        self.incoming = Incoming()
        self.replies = ""  # what the names of its reply queues have in common, once there is one
        self.later: deque[tuple[Queue, Callable[[], None]]] = deque()  # what a queue does at the end of a method
        self._now = now
        self._connections: dict[Connection, None] = {}
        self._routes: dict[tuple[str, str], tuple[Queue, ...]] = {}
        self._alarms: list[tuple[float, int, Queue]] = []
        self._order = count()

    @property
    def now(self) -> float:
        """The time that the broker was told last, in seconds since 1970."""
        return self._now

    def connect(self, *, user: str = "guest") -> Connection:
        """Return a new connection; exclusive queues belong to it."""
        connection = Connection(self, user)
        self._connections[connection] = None
        return connection

    def disconnect(self, connection: Connection) -> None:
        """Forget a connection, whose channels are closed, and its exclusive queues."""
        self._connections.pop(connection, None)
        for queue in [queue for queue in self.by_name.values() if queue.owner is connection]:
            self.drop_queue(queue)
        self.catch_up()

    # -- time -----------------------------------------------------------------------------------------------------

    def advance(self, now: float) -> None:
        """Let time pass until `now`: everything due by then happens, each at its own time and in that order.

        A time before the present one changes nothing.
        """
        while (due := self.next_due()) is not None and due <= now:
            queue = heappop(self._alarms)[2]
            queue.alarm = None
            self._now = max(self._now, due)
            queue.wake()
            self.catch_up()
        self._now = max(self._now, now)

    def next_due(self) -> float | None:
        """Return when something is due next, in seconds since 1970; None when nothing is waiting for time to pass."""
        while self._alarms:
            at, order, queue = self._alarms[0]
            due = None if queue.gone or queue.alarm != at else queue.due()
            if due is not None and due <= at:
                return at
            if due is None:
                heappop(self._alarms)
                queue.alarm = None if queue.alarm == at else queue.alarm
            else:
                queue.alarm = due
                heapreplace(self._alarms, (due, order, queue))
        return None

    def set_alarm(self, queue: Queue, at: float) -> None:
        """Have `queue` woken at the time `at`, if nothing wakes it before."""
        if queue.alarm is None or at < queue.alarm:
            queue.alarm = at
            heappush(self._alarms, (at, next(self._order), queue))

    def catch_up(self) -> None:
        """Do what queues have put off, such as to dead-letter what has died, and what comes of that."""
        while self.later:
            queue, task = self.later.popleft()
            if not queue.gone:
                task()

    # -- routing --------------------------------------------------------------------------------------------------

    def route(self, exchange: Exchange, message: Message) -> tuple[Queue, ...]:
        """Return the queues that a message published to `exchange` comes to, each once."""
        one = (exchange.name, message.keys[0]) if len(message.keys) == 1 else None
        if one is not None and (known := self._routes.get(one)) is not None:
            return known
        found, lasting = self._find(exchange, message)
        if one is not None and lasting:
            if len(self._routes) >= _ROUTES:
                self._routes.clear()
            self._routes[one] = found
        return found

    def _find(self, start: Exchange, message: Message) -> tuple[tuple[Queue, ...], bool]:
        """Return the queues, and whether every message with the same routing key comes to the same ones."""
        if not start.name:
            names = dict.fromkeys(message.keys)
            return tuple(self.by_name[name] for name in names if name in self.by_name), True
        names, lasting = {}, True
        seen, work = {start.name}, deque([start])
        while work:
            exchange = work.popleft()
            lasting = lasting and exchange.steady
            taken = exchange.route(message)
            names |= dict.fromkeys(binding.destination for binding in taken if binding.to == "queue")
            further = [binding.destination for binding in taken if binding.to == "exchange"]
            if not taken and exchange.alternate is not None:
                further = [exchange.alternate]
            for name in further:
                if name not in seen and name in self.exchanges:
                    seen.add(name)
                    work.append(self.exchanges[name])
        return tuple(self.by_name[name] for name in names), lasting

    def topology_changed(self) -> None:
        """Forget the routes, which may lead elsewhere now."""
        self._routes.clear()

    # -- what is there --------------------------------------------------------------------------------------------

    def exchange(self, name: str) -> Exchange:
        """Return an exchange. Raises AmqpError 404."""
        if name not in self.exchanges:
            raise AmqpError(404, f"no exchange '{name}' in vhost '{self.vhost}'")
        return self.exchanges[name]

    def queue(self, name: str) -> Queue:
        """Return a queue. Raises AmqpError 404."""
        if name not in self.by_name:
            raise AmqpError(404, f"no queue '{name}' in vhost '{self.vhost}'")
        return self.by_name[name]

    def drop_queue(self, queue: Queue) -> None:
        """Delete a queue; its consumers are told, and its unsettled deliveries can be settled for nothing."""
        if queue.gone:
            return
        queue.gone = True
        del self.by_name[queue.name]
        for consumer in list(queue.consumers):
            consumer.cancelled = True
            del consumer.channel.consumers[consumer.tag]
            consumer.channel.sink(Cancelled(consumer.tag))
        declaring.unbind_all(self, "queue", queue.name)
        self.topology_changed()
        if queue.journal:
            queue.journal(QueueDeleted(queue.name))

    def queues(self) -> list[QueueOk]:
        """Return all queues as queue.declare-ok would show them, in the order in which they were declared."""
        return [queue.ok() for queue in self.by_name.values() if not is_reply(queue.name)]

    def unsettled(self, queue: str) -> int:
        """Return how many messages of `queue` are delivered and not settled. Raises AmqpError 404."""
        return self.queue(queue).held

    # -- what outlasts a restart ----------------------------------------------------------------------------------

    def changes(self) -> Iterator[Change]:
        """Return the shortest list of changes that leads to the durable state. It must be used up before any call."""
        for exchange in self.exchanges.values():
            if exchange.durable and exchange.name not in _PREDECLARED:
                yield declaring.declared(exchange)
        queues = [queue for queue in self.by_name.values() if queue.lasting]
        for queue in queues:
            yield QueueDeclared(queue.name, queue.auto_delete, queue.arguments)
        for exchange in self.exchanges.values():
            for binding in exchange.bindings.values():
                if declaring.outlasts(self, binding):
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
                    declaring.redo(self, change)
        self.journal = journal
        for queue in self.by_name.values():
            queue.journal = journal if queue.lasting else None
            for stored in messages.get(queue.name, {}).values():
                queue.restore(stored)
        self.catch_up()
