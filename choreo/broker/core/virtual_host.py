"""A virtual host: its exchanges, queues and bindings, who gets a message, and its time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from heapq import heappop, heappush, heapreplace
from itertools import count
from typing import Any, Final, Literal

from choreo.broker.core import arguments as queue_arguments
from choreo.broker.core import direct_reply_to
from choreo.broker.core.direct_reply_to import ReplyQueue, is_reply
from choreo.broker.core.exchanges import Binding, Exchange, Incoming, LocalRandomExchange
from choreo.broker.core.failure import AmqpError, field_type
from choreo.broker.core.message import Message
from choreo.broker.core.outbound import Cancelled, QueueOk
from choreo.broker.core.persistence import (
    Bound,
    Change,
    ExchangeDeclared,
    ExchangeDeleted,
    Journal,
    QueueDeclared,
    QueueDeleted,
    Unbound,
)
from choreo.broker.core.queues import Queue
from choreo.broker.core.quorum import QuorumQueue
from choreo.broker.core.streams import StreamQueue

PREDECLARED: Final = {
    "": "direct",
    "amq.direct": "direct",
    "amq.fanout": "fanout",
    "amq.headers": "headers",
    "amq.match": "headers",
    "amq.topic": "topic",
}
_ROUTES: Final = 10_000  # how many routes are remembered
_QUEUES: Final = {"classic": Queue, "quorum": QuorumQueue, "stream": StreamQueue}
_PROPERTIES: Final = ("type", "durable", "auto_delete", "internal", "alternate-exchange")


class VirtualHost:
    """A virtual host with the exchanges that every one has, and nothing else; `Broker` says what it is given."""

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
            for name, kind in PREDECLARED.items()
        }
        self.by_name: dict[str, Queue] = {}
        self.incoming = Incoming()
        self._replies = ""  # what the names of its reply queues have in common, once there is one
        self.later: deque[tuple[Queue, Callable[[], None]]] = deque()  # what a queue does at the end of a method
        self._now = now
        self._routes: dict[tuple[str, str], tuple[Queue, ...]] = {}
        self._alarms: list[tuple[float, int, Queue]] = []
        self._order = count()

    @property
    def now(self) -> float:
        """The time that the broker was told last, in seconds since 1970."""
        return self._now

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

    def put_off(self, queue: Queue, task: Callable[[], None]) -> None:
        """Have `task` called at the end of the method under way, if `queue` is still there."""
        self.later.append((queue, task))

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

    def queues_for(self, message: Message) -> tuple[Queue, ...]:
        """Return the queues that a message comes to; none when its exchange is not there."""
        exchange = self.exchanges.get(message.exchange)
        return self.route(exchange, message) if exchange else ()

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
        self.unbind_all("queue", queue.name)
        self.topology_changed()
        if queue.journal:
            queue.journal(QueueDeleted(queue.name))

    def queues(self) -> list[QueueOk]:
        """Return all queues as queue.declare-ok would show them, in the order in which they were declared."""
        return [queue.ok() for queue in self.by_name.values() if not is_reply(queue.name)]

    def unsettled(self, queue: str) -> int:
        """Return how many messages of `queue` are delivered and not settled. Raises AmqpError 404."""
        return self.queue(queue).held

    # -- exchanges -----------------------------------------------------------------------------------------------------

    def declare_exchange(self, name: str, kind: str, given: Mapping[str, Any], **properties: bool) -> None:
        """Declare an exchange, or compare it with the one that is there."""
        thing = f"exchange '{name}' in vhost '{self.vhost}'"
        exchange = self.exchanges.get(name)
        if exchange is not None:
            received = {"type": kind, **properties, "alternate-exchange": given.get("alternate-exchange")}
            current = {each: getattr(exchange, each) for each in _PROPERTIES[:4]} | {
                "alternate-exchange": exchange.alternate
            }
            queue_arguments.compare(thing, current, received, _PROPERTIES)
            return
        if name.startswith("amq."):
            raise AmqpError(403, f"exchange name '{name}' contains reserved prefix 'amq.*'")
        alternate = given.get("alternate-exchange", "")
        if not isinstance(alternate, str):
            raise AmqpError(406, f"invalid type '{field_type(alternate)}' for arg 'alternate-exchange' in {thing}")
        made = Exchange.of(name, kind, arguments=given, **properties)
        self.exchanges[name] = made
        self.topology_changed()
        if self.journal and made.durable:
            self.journal(declared(made))

    def delete_exchange(self, exchange: Exchange) -> None:
        """Delete an exchange with all bindings from it and to it."""
        del self.exchanges[exchange.name]
        for binding in exchange.bindings.values():
            self.incoming.remove(binding)
        self.unbind_all("exchange", exchange.name)
        self.topology_changed()
        if self.journal and exchange.durable:
            self.journal(ExchangeDeleted(exchange.name))

    # -- queues --------------------------------------------------------------------------------------------------------

    def declare_queue(self, name: str, given: Mapping[str, Any], owner: object, **properties: bool) -> Queue:
        """Declare a queue, or compare it with the one that is there. `owner`: the connection it is exclusive to."""
        given = {"x-queue-type": "classic", **given}
        queue = self.by_name.get(name)
        if queue is not None:
            if queue.owner is not owner:
                raise locked(queue)
            received = {**given, **properties}
            current = {**queue.arguments, "durable": queue.durable, "auto_delete": queue.auto_delete}
            names = ("durable", "auto_delete", *queue_arguments.OF_TYPE[queue.terms.type])
            queue_arguments.compare(str(queue), current, received, names)
            queue.touch()
            return queue
        thing = f"queue '{name}' in vhost '{self.vhost}'"
        queue_arguments.check(thing, given, exclusive=owner is not None, **properties)
        queue = _QUEUES[given["x-queue-type"]](self, name, given, owner=owner, **properties)
        self.by_name[name] = queue
        self.topology_changed()
        if queue.journal:
            queue.journal(QueueDeclared(name, queue.auto_delete, given))
        return queue

    def declare_reply_queue(self) -> ReplyQueue:
        """Return a new queue for the replies of one channel, with a name of its own."""
        made = ReplyQueue(self, f"{self._reply_prefix()}{self.names()}")
        self.by_name[made.name] = made
        self.topology_changed()
        return made

    def was_reply(self, name: str) -> bool:
        """Say whether this name was given away for replies: as in RabbitMQ, one that comes too late is not returned."""
        return is_reply(name) and name.startswith(self._reply_prefix())

    def _reply_prefix(self) -> str:
        self._replies = self._replies or self.names()
        return direct_reply_to.prefix(self._replies)

    # -- bindings ------------------------------------------------------------------------------------------------------

    def bind(self, binding: Binding) -> None:
        """Add a binding, whose ends are there."""
        source = self.exchanges[binding.source]
        if isinstance(source, LocalRandomExchange):
            self._check_local(binding)
        if source.add(binding):
            self.incoming.add(binding)
            self.topology_changed()
            if self.journal and self.outlasts(binding):
                self.journal(Bound(binding))

    def unbind(self, binding: Binding) -> None:
        """Remove a binding, if there is one; an auto-delete exchange goes with its last one."""
        source = self.exchanges.get(binding.source)
        if source is None:
            return
        outlasting = self.outlasts(binding)
        if source.remove(binding):
            self.incoming.remove(binding)
            self.topology_changed()
            if self.journal and outlasting:
                self.journal(Unbound(binding))
            self._delete_if_done(source)

    def unbind_all(self, to: Literal["queue", "exchange"], name: str) -> None:
        """Remove all bindings to a queue or an exchange that is gone."""
        for binding in self.incoming.of(to, name):
            source = self.exchanges.get(binding.source)
            if source is not None and source.remove(binding):  # else it went with its source, a moment ago
                self.incoming.remove(binding)
                self._delete_if_done(source)

    def _check_local(self, binding: Binding) -> None:
        """Raise AmqpError 406 for what a local random exchange does not lead to."""
        queue = self.by_name.get(binding.destination) if binding.to == "queue" else None
        if binding.key:
            raise AmqpError(406, f"Non empty binding '{binding.key}' key not permitted")
        if queue is None:
            raise AmqpError(406, "Destination not found")
        if queue.terms.type != "classic":
            raise AmqpError(406, f"Queue type rabbit_{queue.terms.type}_queue not valid for this exchange type")

    def _delete_if_done(self, source: Exchange) -> None:
        if source.auto_delete and not source.bindings and source.name in self.exchanges:
            self.delete_exchange(source)

    def outlasts(self, binding: Binding) -> bool:
        """Say whether both ends of a binding outlast a restart."""
        queue = self.by_name.get(binding.destination)
        exchange = self.exchanges.get(binding.destination)
        end = (
            (queue is not None and queue.lasting)
            if binding.to == "queue"
            else (exchange is not None and exchange.durable)
        )
        return end and self.exchanges[binding.source].durable

    def redo(self, change: Change) -> None:
        """Repeat a change of exchanges, queues or bindings."""
        match change:
            case ExchangeDeclared(name, kind, auto_delete, internal, given):
                self.declare_exchange(name, kind, given, durable=True, auto_delete=auto_delete, internal=internal)
            case ExchangeDeleted(name) if name in self.exchanges:  # else it went with its last binding
                self.delete_exchange(self.exchanges[name])
            case QueueDeclared(name, auto_delete, given):
                self.declare_queue(name, given, None, durable=True, auto_delete=auto_delete)
            case Bound(binding):
                self.bind(binding)
            case Unbound(binding):
                self.unbind(binding)


def declared(exchange: Exchange) -> ExchangeDeclared:
    """Return the change that declares `exchange`."""
    return ExchangeDeclared(exchange.name, exchange.type, exchange.auto_delete, exchange.internal, exchange.arguments)


def locked(queue: Queue) -> AmqpError:
    """Return the error for a queue that is exclusive to another connection."""
    return AmqpError(
        405,
        f"cannot obtain exclusive access to locked {queue}. It could be originally declared on another connection "
        "or the exclusive property value does not match that of the original declaration.",
    )
