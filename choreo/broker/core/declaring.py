"""Exchanges, queues and bindings: what may be declared, and what goes with what is deleted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal

from choreo.broker.core import arguments as queue_arguments
from choreo.broker.core.changes import Bound, Change, ExchangeDeclared, ExchangeDeleted, QueueDeclared, Unbound
from choreo.broker.core.exchanges import Binding, Exchange, LocalRandomExchange, field_type
from choreo.broker.core.failure import AmqpError
from choreo.broker.core.queues import Queue
from choreo.broker.core.quorum import QuorumQueue
from choreo.broker.core.streams import StreamQueue

if TYPE_CHECKING:
    from choreo.broker.core.broker import Broker

_QUEUES: Final = {"classic": Queue, "quorum": QuorumQueue, "stream": StreamQueue}
_PROPERTIES: Final = ("type", "durable", "auto_delete", "internal", "alternate-exchange")


def declare_exchange(broker: Broker, name: str, kind: str, given: Mapping[str, Any], **properties: bool) -> None:
    """Declare an exchange, or compare it with the one that is there."""
    thing = f"exchange '{name}' in vhost '{broker.vhost}'"
    exchange = broker.exchanges.get(name)
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
    broker.exchanges[name] = made
    broker.topology_changed()
    if broker.journal and made.durable:
        broker.journal(declared(made))


def declared(exchange: Exchange) -> ExchangeDeclared:
    """Return the change that declares `exchange`."""
    return ExchangeDeclared(exchange.name, exchange.type, exchange.auto_delete, exchange.internal, exchange.arguments)


def delete_exchange(broker: Broker, exchange: Exchange) -> None:
    """Delete an exchange with all bindings from it and to it."""
    del broker.exchanges[exchange.name]
    for binding in exchange.bindings.values():
        broker.incoming.remove(binding)
    unbind_all(broker, "exchange", exchange.name)
    broker.topology_changed()
    if broker.journal and exchange.durable:
        broker.journal(ExchangeDeleted(exchange.name))


def declare_queue(broker: Broker, name: str, given: Mapping[str, Any], owner: object, **properties: bool) -> Queue:
    """Declare a queue, or compare it with the one that is there. `owner`: the connection it shall be exclusive to."""
    given = {"x-queue-type": "classic", **given}
    queue = broker.by_name.get(name)
    if queue is not None:
        if queue.owner is not owner:
            raise locked(queue)
        received = {**given, **properties}
        current = {**queue.arguments, "durable": queue.durable, "auto_delete": queue.auto_delete}
        names = ("durable", "auto_delete", *queue_arguments.OF_TYPE[queue.terms.type])
        queue_arguments.compare(str(queue), current, received, names)
        queue.touch()
        return queue
    thing = f"queue '{name}' in vhost '{broker.vhost}'"
    queue_arguments.check(thing, given, exclusive=owner is not None, **properties)
    queue = _QUEUES[given["x-queue-type"]](broker, name, given, owner=owner, **properties)
    broker.by_name[name] = queue
    broker.topology_changed()
    if queue.journal:
        queue.journal(QueueDeclared(name, queue.auto_delete, given))
    return queue


def locked(queue: Queue) -> AmqpError:
    """Return the error for a queue that is exclusive to another connection."""
    return AmqpError(
        405,
        f"cannot obtain exclusive access to locked {queue}. It could be originally declared on another connection "
        "or the exclusive property value does not match that of the original declaration.",
    )


def bind(broker: Broker, binding: Binding) -> None:
    """Add a binding, whose ends are there."""
    source = broker.exchanges[binding.source]
    if isinstance(source, LocalRandomExchange):
        _check_local(broker, binding)
    if source.add(binding):
        broker.incoming.add(binding)
        broker.topology_changed()
        if broker.journal and outlasts(broker, binding):
            broker.journal(Bound(binding))


def unbind(broker: Broker, binding: Binding) -> None:
    """Remove a binding, if there is one; an auto-delete exchange goes with its last one."""
    source = broker.exchanges.get(binding.source)
    if source is None:
        return
    outlasting = outlasts(broker, binding)
    if source.remove(binding):
        broker.incoming.remove(binding)
        broker.topology_changed()
        if broker.journal and outlasting:
            broker.journal(Unbound(binding))
        _delete_if_done(broker, source)


def unbind_all(broker: Broker, to: Literal["queue", "exchange"], name: str) -> None:
    """Remove all bindings to a queue or an exchange that is gone."""
    for binding in broker.incoming.of(to, name):
        source = broker.exchanges.get(binding.source)
        if source is not None and source.remove(binding):  # else it went with its source, a moment ago
            broker.incoming.remove(binding)
            _delete_if_done(broker, source)


def _check_local(broker: Broker, binding: Binding) -> None:
    """Raise AmqpError 406 for what a local random exchange does not lead to."""
    queue = broker.by_name.get(binding.destination) if binding.to == "queue" else None
    if binding.key:
        raise AmqpError(406, f"Non empty binding '{binding.key}' key not permitted")
    if queue is None:
        raise AmqpError(406, "Destination not found")
    if queue.terms.type != "classic":
        raise AmqpError(406, f"Queue type rabbit_{queue.terms.type}_queue not valid for this exchange type")


def _delete_if_done(broker: Broker, source: Exchange) -> None:
    if source.auto_delete and not source.bindings and source.name in broker.exchanges:
        delete_exchange(broker, source)


def outlasts(broker: Broker, binding: Binding) -> bool:
    """Say whether both ends of a binding outlast a restart."""
    queue = broker.by_name.get(binding.destination)
    exchange = broker.exchanges.get(binding.destination)
    end = (
        (queue is not None and queue.lasting) if binding.to == "queue" else (exchange is not None and exchange.durable)
    )
    return end and broker.exchanges[binding.source].durable


def redo(broker: Broker, change: Change) -> None:
    """Repeat a change of exchanges, queues or bindings."""
    match change:
        case ExchangeDeclared(name, kind, auto_delete, internal, given):
            declare_exchange(broker, name, kind, given, durable=True, auto_delete=auto_delete, internal=internal)
        case ExchangeDeleted(name) if name in broker.exchanges:  # else it went with its last binding
            delete_exchange(broker, broker.exchanges[name])
        case QueueDeclared(name, auto_delete, given):
            declare_queue(broker, name, given, None, durable=True, auto_delete=auto_delete)
        case Bound(binding):
            bind(broker, binding)
        case Unbound(binding):
            unbind(broker, binding)
