"""A channel: the methods of AMQP, one to one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from choreo.embedded import arguments as queue_arguments
from choreo.embedded import declaring
from choreo.embedded.consumers import Consumer, Held, in_groups, refuse
from choreo.embedded.exchanges import Binding
from choreo.embedded.failure import AmqpError
from choreo.embedded.message import Properties
from choreo.embedded.publishing import published
from choreo.embedded.queues import Queue
from choreo.embedded.sent import Ack, Consuming, Got, Nack, QueueOk, Returned, Sink

if TYPE_CHECKING:
    from choreo.embedded.connection import Connection

_P = ParamSpec("_P")
_R = TypeVar("_R")
_Method = Callable[Concatenate["Channel", _P], _R]


def _method(class_id: int, method_id: int) -> Callable[[_Method[_P, _R]], _Method[_P, _R]]:
    """Have an error name the method and close what it closes, and what died meanwhile dead-lettered at its end."""

    def wrapper(function: _Method[_P, _R]) -> _Method[_P, _R]:
        @wraps(function)
        def call(channel: Channel, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
            try:
                if not channel.open:
                    raise AmqpError(504, "expected 'channel.open'")  # noqa: TRY301 - is treated as all others are
                return function(channel, *args, **kwargs)
            except AmqpError as error:
                error.method = (class_id, method_id)
                (channel.connection if error.closes_connection else channel).close()
                raise
            finally:
                if channel.broker.later:
                    channel.broker.catch_up()

        return call

    return wrapper


class Channel:
    """A channel, made by `Connection.open_channel`.

    A method that the broker refuses raises AmqpError, which names class and method; by then the channel is closed, or
    the connection, if that is what the error closes: deliveries are back in their queues and consumers are gone. What
    AMQP calls ok is a method that returns; only basic.consume-ok is sent, because deliveries follow it at once.
    An empty queue name stands for the queue that this channel declared last.
    """

    def __init__(self, connection: Connection, number: int, sink: Sink) -> None:
        self.connection = connection
        self.broker = connection.broker
        self.number = number
        self.sink = sink
        self.open = True
        self.prefetch = 0  # of each consumer from now on
        self.last_tag = 0
        self.unsettled: dict[int, Held] = {}
        self.consumers: dict[str, Consumer] = {}
        self._last_queue = ""
        self._confirming = False
        self._published = 0

    def close(self) -> None:
        """channel.close, and what a lost connection does to each channel. May be called twice."""
        if not self.open:
            return
        self.open = False
        del self.connection.channels[self.number]
        left = dict.fromkeys(consumer.queue for consumer in self.consumers.values())
        for consumer in self.consumers.values():
            consumer.queue.unsubscribe(consumer)
        self.consumers.clear()
        # In RabbitMQ one consumer's after the other's, but nobody gets any before all are back.
        held = sorted(self._collect(0, multiple=True), key=lambda each: (each.queue.name, each.consumer.leaves))
        for mine in in_groups(held, lambda each: each.queue.name):
            mine[0].queue.put_back(mine, failed=True)
        for queue in left:
            queue.carry_on()
        for queue in self.broker.by_name.values():
            queue.leave(self)
        self.broker.catch_up()

    # -- exchanges ------------------------------------------------------------------------------------------------

    @_method(40, 10)
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

    @_method(40, 20)
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

    @_method(40, 30)
    def exchange_bind(
        self, destination: str, source: str, routing_key: str = "", arguments: Mapping[str, Any] | None = None
    ) -> None:
        """exchange.bind. Errors: 403, 404."""
        _not_default(destination, source)
        self.broker.exchange(source)
        self.broker.exchange(destination)
        declaring.bind(self.broker, Binding(source, destination, "exchange", routing_key, arguments or {}))

    @_method(40, 40)
    def exchange_unbind(
        self, destination: str, source: str, routing_key: str = "", arguments: Mapping[str, Any] | None = None
    ) -> None:
        """exchange.unbind; nothing happens when there is no such binding. Errors: 403."""
        _not_default(destination, source)
        declaring.unbind(self.broker, Binding(source, destination, "exchange", routing_key, arguments or {}))

    # -- queues ---------------------------------------------------------------------------------------------------

    @_method(50, 10)
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

    @_method(50, 20)
    def queue_bind(
        self, queue: str, exchange: str, routing_key: str = "", arguments: Mapping[str, Any] | None = None
    ) -> None:
        """queue.bind. Errors: 403, 404, 405."""
        _not_default(exchange)
        queue = self._name(queue)
        self.broker.exchange(exchange)
        self._queue(queue)
        declaring.bind(self.broker, Binding(exchange, queue, "queue", routing_key, arguments or {}))

    @_method(50, 50)
    def queue_unbind(
        self, queue: str, exchange: str, routing_key: str = "", arguments: Mapping[str, Any] | None = None
    ) -> None:
        """queue.unbind; nothing happens when there is no such binding. Errors: 403, 405."""
        _not_default(exchange)
        queue = self._name(queue)
        if queue in self.broker.by_name:
            self._queue(queue)
        declaring.unbind(self.broker, Binding(exchange, queue, "queue", routing_key, arguments or {}))

    @_method(50, 30)
    def queue_purge(self, queue: str) -> int:
        """queue.purge. Returns how many messages are gone. Errors: 404, 405, 540."""
        return self._queue(queue).purge()

    @_method(50, 40)
    def queue_delete(self, queue: str, *, if_unused: bool = False, if_empty: bool = False) -> int:
        """queue.delete. Returns how many messages are gone; 0 when there is no such queue. Errors: 405, 406, 540."""
        queue = self._name(queue)
        if queue not in self.broker.by_name:
            return 0
        found = self._queue(queue)
        found.check_deletion(if_unused=if_unused, if_empty=if_empty)
        count = found.ready
        self.broker.drop_queue(found)
        return count

    # -- publishing -----------------------------------------------------------------------------------------------

    @_method(85, 10)
    def confirm_select(self) -> None:
        """confirm.select: from now on each publish is answered by Ack or Nack, numbered from 1."""
        self._confirming = True

    @_method(60, 40)
    def publish(
        self, exchange: str, routing_key: str, properties: Properties, body: bytes, *, mandatory: bool = False
    ) -> None:
        """basic.publish with its content. Sends Returned, then Ack or Nack. Errors: 403, 404, 406."""
        broker = self.broker
        if len(body) > broker.limit:
            words = f"message size {len(body)} is larger than configured max size {broker.limit}"
            raise AmqpError(406, words)
        to = broker.exchange(exchange)
        if to.internal:
            raise AmqpError(403, f"cannot publish to internal exchange '{exchange}' in vhost '{broker.vhost}'")
        if self._confirming:
            self._published += 1
        message = published(exchange, routing_key, properties, body, self.connection.user)
        queues = broker.route(to, message)
        if mandatory and not queues:
            self.sink(Returned(312, "NO_ROUTE", exchange, routing_key, message.properties, body))
        stored = True
        for queue in queues:
            if not queue.put(message, self):
                stored = False
        if self._confirming:
            self.sink(Ack(self._published) if stored else Nack(self._published))

    # -- consuming ------------------------------------------------------------------------------------------------

    @_method(60, 10)
    def qos(self, prefetch_count: int, *, prefetch_size: int = 0, global_: bool = False) -> None:
        """basic.qos: how many unsettled deliveries each consumer from now on may have; 0 is no limit. Errors: 540.

        As in RabbitMQ 4.3, `global_` means nothing.
        """
        if prefetch_size:
            raise AmqpError(540, f"prefetch_size!=0 ({prefetch_size})")
        self.prefetch = prefetch_count

    @_method(60, 20)
    def consume(
        self,
        queue: str,
        consumer_tag: str = "",
        *,
        no_ack: bool = False,
        exclusive: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> str:
        """basic.consume. Sends Consuming, then deliveries; returns the consumer tag. Errors: 403 to 406, 530, 540."""
        if consumer_tag in self.consumers:
            raise AmqpError(530, f"attempt to reuse consumer tag '{consumer_tag}'")
        found = self._queue(queue)
        given = arguments or {}
        queue_arguments.check_consumer(str(found), found.terms.type, given)
        tag = consumer_tag or f"amq.ctag-{self.broker.names()}"
        consumer = Consumer(self, found, tag, no_ack=no_ack, exclusive=exclusive, arguments=given)
        found.subscribe(consumer)
        self.consumers[tag] = consumer
        self.sink(Consuming(tag))
        found.unpark(consumer)
        found.dispatch()
        return tag

    @_method(60, 30)
    def cancel(self, consumer_tag: str) -> None:
        """basic.cancel; its deliveries stay to be settled. Nothing happens when there is no such consumer."""
        consumer = self.consumers.pop(consumer_tag, None)
        if consumer is not None:
            consumer.queue.unsubscribe(consumer)
            consumer.queue.carry_on()

    @_method(60, 70)
    def get(self, queue: str, *, no_ack: bool = False) -> Got | None:
        """basic.get; None is get-empty. Errors: 404, 405, 540."""
        found = self._queue(queue)
        entry = found.take()
        if entry is None:
            return None
        self.last_tag += 1
        # RabbitMQ has a consumer of its own for each, with a tag that stands before all others'.
        consumer = Consumer(self, found, "", no_ack=True, exclusive=False, arguments={})
        consumer.cancelled = True
        if no_ack:
            found.settle(entry, consumer)
        else:
            self.unsettled[self.last_tag] = Held(found, entry, consumer)
        message = entry.message
        again = bool(entry.returns or entry.failures)
        properties = found.shown(entry)
        return Got(self.last_tag, again, message.exchange, message.keys[0], found.ready, properties, message.body)

    @_method(60, 80)
    def ack(self, delivery_tag: int, *, multiple: bool = False) -> None:
        """basic.ack; `multiple` takes all up to this tag, and tag 0 all there are. Errors: 406."""
        if multiple:
            settled: Iterable[Held] = self._collect(delivery_tag, multiple=True)
        elif (held := self.unsettled.pop(delivery_tag, None)) is not None:
            settled = (held,)
        else:
            raise _unknown(delivery_tag)
        for queue, entry, consumer in settled:
            if not queue.gone:
                queue.settle(entry, consumer)

    @_method(60, 120)
    def nack(self, delivery_tag: int, *, multiple: bool = False, requeue: bool = True) -> None:
        """basic.nack: give back, or dead-letter. Errors: 406."""
        refuse(self._collect(delivery_tag, multiple=multiple), requeue=requeue, failed=False)

    @_method(60, 90)
    def reject(self, delivery_tag: int, *, requeue: bool = True) -> None:
        """basic.reject; unlike nack, it counts as a failed delivery of a quorum queue. Errors: 406."""
        refuse(self._collect(delivery_tag, multiple=False), requeue=requeue, failed=True)

    @_method(60, 110)
    def recover(self, *, requeue: bool = True) -> None:
        """basic.recover: all unsettled deliveries of this channel go back. Errors: 540."""
        if not requeue:
            raise AmqpError(540, "requeue=false")
        refuse(self._collect(0, multiple=True), requeue=True, failed=False)

    # -- within ---------------------------------------------------------------------------------------------------

    def _name(self, queue: str) -> str:
        if not queue and not self._last_queue:
            raise AmqpError(404, "no previously declared queue")
        return queue or self._last_queue

    def _queue(self, name: str) -> Queue:
        return self._mine(self._name(name))

    def _mine(self, name: str) -> Queue:
        queue = self.broker.queue(name)
        if queue.owner is not None and queue.owner is not self.connection:
            raise declaring.locked(queue)
        return queue

    def _collect(self, tag: int, *, multiple: bool) -> list[Held]:
        """Take out the deliveries that `tag` stands for. Raises AmqpError 406 when there is none."""
        unsettled = self.unsettled
        if multiple and tag == 0:
            tags = list(unsettled)
        elif tag not in unsettled:
            raise _unknown(tag)
        else:
            tags = [tag]
            if multiple:
                tags = []
                for each in unsettled:  # in the order of delivery, which is that of the tags
                    if each > tag:
                        break
                    tags.append(each)
        return [unsettled.pop(each) for each in tags]


def _not_default(*exchanges: str) -> None:
    if "" in exchanges:
        raise AmqpError(403, "operation not permitted on the default exchange")


def _unknown(tag: int) -> AmqpError:
    return AmqpError(406, f"unknown delivery tag {tag}")
