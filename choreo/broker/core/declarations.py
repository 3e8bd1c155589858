"""What a channel declares, binds and deletes: the methods of exchanges and queues."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from choreo.broker.core import declaring
from choreo.broker.core.exchanges import Binding
from choreo.broker.core.failure import AmqpError
from choreo.broker.core.message import REPLY_TO
from choreo.broker.core.method import method
from choreo.broker.core.queues import Queue
from choreo.broker.core.replies import is_reply
from choreo.broker.core.sent import QueueOk

if TYPE_CHECKING:
    from choreo.broker.core.connection import Connection


class Declarations:
    """One half of a channel. An empty queue name stands for the queue that this channel declared last."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.broker = connection.broker
        self.open = True
        self._last_queue = ""

    def close(self) -> None:
        """Close the channel."""
        raise NotImplementedError

    # -- exchanges ------------------------------------------------------------------------------------------------

    @method(40, 10)
    def exchange_declare(
        self,
        name: str,
        type: str = "direct",  # noqa: A002
        *,
        passive: bool = False,
        durable: bool = False,
        auto_delete: bool = False,
        internal: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """exchange.declare. Errors: 403, 404, 406, 503."""
        _not_default(name)
        if passive:
            self.broker.exchange(name)
            return
        properties = {"durable": durable, "auto_delete": auto_delete, "internal": internal}
        declaring.declare_exchange(self.broker, name, type, arguments or {}, **properties)

    @method(40, 20)
    def exchange_delete(self, name: str, *, if_unused: bool = False) -> None:
        """exchange.delete; nothing happens when there is no such exchange. Errors: 403, 406."""
        _not_default(name)
        exchange = self.broker.exchanges.get(name)
        if name.startswith("amq."):
            raise AmqpError(403, f"deletion of system exchange '{name}' in vhost '{self.broker.vhost}' not allowed")
        if exchange is not None:
            if if_unused and exchange.bindings:
                raise AmqpError(406, f"exchange '{name}' in vhost '{self.broker.vhost}' in use")
            declaring.delete_exchange(self.broker, exchange)

    @method(40, 30)
    def exchange_bind(
        self, destination: str, source: str, routing_key: str = "", arguments: Mapping[str, Any] | None = None
    ) -> None:
        """exchange.bind. Errors: 403, 404."""
        _not_default(destination, source)
        self.broker.exchange(source)
        self.broker.exchange(destination)
        declaring.bind(self.broker, Binding(source, destination, "exchange", routing_key, arguments or {}))

    @method(40, 40)
    def exchange_unbind(
        self, destination: str, source: str, routing_key: str = "", arguments: Mapping[str, Any] | None = None
    ) -> None:
        """exchange.unbind; nothing happens when there is no such binding. Errors: 403."""
        _not_default(destination, source)
        declaring.unbind(self.broker, Binding(source, destination, "exchange", routing_key, arguments or {}))

    # -- queues ---------------------------------------------------------------------------------------------------

    @method(50, 10)
    def queue_declare(
        self,
        name: str = "",
        *,
        passive: bool = False,
        durable: bool = False,
        exclusive: bool = False,
        auto_delete: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> QueueOk:
        """queue.declare. Errors: 403, 404, 405, 406, 541."""
        broker = self.broker
        if name == REPLY_TO or is_reply(name):  # it cannot be declared, but seen
            if name != REPLY_TO:
                broker.queue(name)
            self._last_queue = name
            return QueueOk(name, 0, 1)
        if passive:
            queue = self._mine(name)
            queue.touch()
        else:
            if name.startswith("amq."):
                raise AmqpError(403, f"queue name '{name}' contains reserved prefix 'amq.*'")
            name = name or f"amq.gen-{broker.names()}"
            owner = self.connection if exclusive else None
            properties = {"durable": durable, "auto_delete": auto_delete}
            queue = declaring.declare_queue(broker, name, arguments or {}, owner, **properties)
        self._last_queue = queue.name
        return queue.ok()

    @method(50, 20)
    def queue_bind(
        self, queue: str, exchange: str, routing_key: str = "", arguments: Mapping[str, Any] | None = None
    ) -> None:
        """queue.bind. Errors: 403, 404, 405."""
        _not_default(exchange)
        queue = self._name(queue)
        _not_reply(queue)
        self.broker.exchange(exchange)
        self.queue_named(queue)
        declaring.bind(self.broker, Binding(exchange, queue, "queue", routing_key, arguments or {}))

    @method(50, 50)
    def queue_unbind(
        self, queue: str, exchange: str, routing_key: str = "", arguments: Mapping[str, Any] | None = None
    ) -> None:
        """queue.unbind; nothing happens when there is no such binding. Errors: 403, 405."""
        _not_default(exchange)
        queue = self._name(queue)
        _not_reply(queue)
        if queue in self.broker.by_name:
            self.queue_named(queue)
        declaring.unbind(self.broker, Binding(exchange, queue, "queue", routing_key, arguments or {}))

    @method(50, 30)
    def queue_purge(self, queue: str) -> int:
        """queue.purge. Returns how many messages are gone. Errors: 404, 405, 540."""
        return self.queue_named(queue).purge()

    @method(50, 40)
    def queue_delete(self, queue: str, *, if_unused: bool = False, if_empty: bool = False) -> int:
        """queue.delete. Returns how many messages are gone; 0 when there is no such queue. Errors: 405, 406, 540."""
        queue = self._name(queue)
        if queue not in self.broker.by_name or is_reply(queue):
            return 0
        found = self.queue_named(queue)
        found.check_deletion(if_unused=if_unused, if_empty=if_empty)
        count = found.ready
        self.broker.drop_queue(found)
        return count

    # -- within ---------------------------------------------------------------------------------------------------

    def _name(self, queue: str) -> str:
        if not queue and not self._last_queue:
            raise AmqpError(404, "no previously declared queue")
        return queue or self._last_queue

    def queue_named(self, name: str) -> Queue:
        """Return a queue that this connection may use. Raises AmqpError 404 and 405."""
        return self._mine(self._name(name))

    def _mine(self, name: str) -> Queue:
        queue = self.broker.queue(name)
        if queue.owner is not None and queue.owner is not self.connection:
            raise declaring.locked(queue)
        return queue


def _not_reply(queue: str) -> None:
    if is_reply(queue):
        raise AmqpError(403, "cannot bind or unbind to a volatile (direct reply-to) queue")


def _not_default(*exchanges: str) -> None:
    if "" in exchanges:
        raise AmqpError(403, "operation not permitted on the default exchange")
