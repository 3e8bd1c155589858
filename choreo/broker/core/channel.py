"""A channel: the methods of AMQP, one to one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial, wraps
from itertools import groupby
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from choreo.broker.core import arguments as queue_arguments
from choreo.broker.core.direct_reply_to import ReplyQueue, is_reply
from choreo.broker.core.exchanges import Binding
from choreo.broker.core.failure import AmqpError
from choreo.broker.core.message import REPLY_TO, Message, Properties
from choreo.broker.core.outbound import Ack, Consuming, Got, Nack, QueueOk, Returned, Sink
from choreo.broker.core.queues import Consumer, Held, Queue
from choreo.broker.core.transaction import Publication, Transaction
from choreo.broker.core.virtual_host import VirtualHost, locked

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
                if channel.host.later:
                    channel.host.catch_up()

        return call

    return wrapper


class Carrier(Protocol):
    """What a channel needs of the connection that it is on. Exclusive queues belong to it."""

    user: str
    full: bool

    def left(self, channel: Channel) -> None:
        """Forget a channel that is closed."""

    def close(self) -> None:
        """Close the connection, with all its channels."""


class Channel:
    """A channel, made by `Connection.open_channel`.

    A method that the broker refuses raises AmqpError, which names class and method; by then the channel is closed, or
    the connection, if that is what the error closes: deliveries are back in their queues and consumers are gone. What
    AMQP calls ok is a method that returns; only basic.consume-ok is sent, because deliveries follow it at once.
    An empty queue name stands for the queue that this channel declared last.
    """

    def __init__(self, host: VirtualHost, connection: Carrier, number: int, sink: Sink) -> None:
        self.host = host
        self.connection = connection
        self.open = True
        self.number = number
        self.sink = sink
        self.prefetch = 0  # of each consumer from now on
        self.last_tag = 0
        self.unsettled: dict[int, Held] = {}
        self.consumers: dict[str, Consumer] = {}
        self._last_queue = ""
        self._confirming = False
        self._transaction: Transaction | None = None
        self._published = 0
        self._replies: ReplyQueue | None = None

    def close(self) -> None:
        """channel.close, and what a lost connection does to each channel. May be called twice."""
        if not self.open:
            return
        self.open = False
        self._restore()
        self.connection.left(self)
        left = dict.fromkeys(consumer.queue for consumer in self.consumers.values())
        for consumer in self.consumers.values():
            consumer.queue.unsubscribe(consumer)
        self.consumers.clear()
        # In RabbitMQ one consumer's after the other's, but nobody gets any before all are back.
        held = sorted(
            self._collect(0, multiple=True).values(), key=lambda each: (each.queue.name, each.consumer.leaves)
        )
        for mine in _in_groups(held, lambda each: each.queue.name):
            mine[0].queue.put_back(mine, failed=True)
        for queue in left:
            queue.carry_on()
        for queue in self.host.by_name.values():
            queue.leave(self)
        self.host.catch_up()

    @property
    def full(self) -> bool:
        """Whether nothing may be delivered now: the client does not take what it was sent."""
        return self.connection.full

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
            self.host.exchange(name)
            return
        properties = {"durable": durable, "auto_delete": auto_delete, "internal": internal}
        self.host.declare_exchange(name, type, arguments or {}, **properties)

    @_method(40, 20)
    def exchange_delete(self, name: str, *, if_unused: bool = False) -> None:
        """exchange.delete; nothing happens when there is no such exchange. Errors: 403, 406."""
        _not_default(name)
        exchange = self.host.exchanges.get(name)
        if name.startswith("amq."):
            raise AmqpError(403, f"deletion of system exchange '{name}' in vhost '{self.host.vhost}' not allowed")
        if exchange is not None:
            if if_unused and exchange.bindings:
                raise AmqpError(406, f"exchange '{name}' in vhost '{self.host.vhost}' in use")
            self.host.delete_exchange(exchange)

    @_method(40, 30)
    def exchange_bind(
        self, destination: str, source: str, routing_key: str = "", arguments: Mapping[str, Any] | None = None
    ) -> None:
        """exchange.bind. Errors: 403, 404."""
        _not_default(destination, source)
        self.host.exchange(source)
        self.host.exchange(destination)
        self.host.bind(Binding(source, destination, "exchange", routing_key, arguments or {}))

    @_method(40, 40)
    def exchange_unbind(
        self, destination: str, source: str, routing_key: str = "", arguments: Mapping[str, Any] | None = None
    ) -> None:
        """exchange.unbind; nothing happens when there is no such binding. Errors: 403."""
        _not_default(destination, source)
        self.host.unbind(Binding(source, destination, "exchange", routing_key, arguments or {}))

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
        host = self.host
        if name == REPLY_TO or is_reply(name):  # it cannot be declared, but seen
            if name != REPLY_TO:
                host.queue(name)
            self._last_queue = name
            return QueueOk(name, 0, 1)
        if passive:
            queue = self._mine(name)
            queue.touch()
        else:
            if name.startswith("amq."):
                raise AmqpError(403, f"queue name '{name}' contains reserved prefix 'amq.*'")
            name = name or f"amq.gen-{host.names()}"
            owner = self.connection if exclusive else None
            properties = {"durable": durable, "auto_delete": auto_delete}
            queue = host.declare_queue(name, arguments or {}, owner, **properties)
        self._last_queue = queue.name
        return queue.ok()

    @_method(50, 20)
    def queue_bind(
        self, queue: str, exchange: str, routing_key: str = "", arguments: Mapping[str, Any] | None = None
    ) -> None:
        """queue.bind. Errors: 403, 404, 405."""
        _not_default(exchange)
        queue = self._name(queue)
        _not_reply(queue)
        self.host.exchange(exchange)
        self.queue_named(queue)
        self.host.bind(Binding(exchange, queue, "queue", routing_key, arguments or {}))

    @_method(50, 50)
    def queue_unbind(
        self, queue: str, exchange: str, routing_key: str = "", arguments: Mapping[str, Any] | None = None
    ) -> None:
        """queue.unbind; nothing happens when there is no such binding. Errors: 403, 405."""
        _not_default(exchange)
        queue = self._name(queue)
        _not_reply(queue)
        if queue in self.host.by_name:
            self.queue_named(queue)
        self.host.unbind(Binding(exchange, queue, "queue", routing_key, arguments or {}))

    @_method(50, 30)
    def queue_purge(self, queue: str) -> int:
        """queue.purge. Returns how many messages are gone. Errors: 404, 405, 540."""
        return self.queue_named(queue).purge()

    @_method(50, 40)
    def queue_delete(self, queue: str, *, if_unused: bool = False, if_empty: bool = False) -> int:
        """queue.delete. Returns how many messages are gone; 0 when there is no such queue. Errors: 405, 406, 540."""
        queue = self._name(queue)
        if queue not in self.host.by_name or is_reply(queue):
            return 0
        found = self.queue_named(queue)
        found.check_deletion(if_unused=if_unused, if_empty=if_empty)
        count = found.ready
        self.host.drop_queue(found)
        return count

    # -- publishing -----------------------------------------------------------------------------------------------

    @_method(85, 10)
    def confirm_select(self) -> None:
        """confirm.select: from now on each publish is answered by Ack or Nack, numbered from 1. Errors: 406."""
        if self._transaction is not None:
            raise AmqpError(406, "cannot switch from tx to confirm mode")
        self._confirming = True

    @_method(60, 40)
    def publish(
        self, exchange: str, routing_key: str, properties: Properties, body: bytes, *, mandatory: bool = False
    ) -> None:
        """basic.publish with its content. Sends Returned, then Ack or Nack. Errors: 403, 404, 406.

        In a transaction it is routed at once, and returned or delivered with the commit.
        """
        host = self.host
        if len(body) > host.limit:
            words = f"message size {len(body)} is larger than configured max size {host.limit}"
            raise AmqpError(406, words)
        to = host.exchange(exchange)
        if to.internal:
            raise AmqpError(403, f"cannot publish to internal exchange '{exchange}' in vhost '{host.vhost}'")
        if self._confirming:
            self._published += 1
        if properties.wants_direct_reply:
            if self._replies is None or self._replies.gone:
                raise AmqpError(406, "fast reply consumer does not exist")
            properties = properties.replying_to(self._replies.name)
        message = Message.published(exchange, routing_key, properties, body, self.connection.user)
        queues = host.route(to, message)
        if self._transaction is not None:
            self._transaction.publications.append(Publication(routing_key, message, queues, mandatory))
            return
        stored = self._deliver(routing_key, message, queues, mandatory)
        if self._confirming:
            self.sink(Ack(self._published) if stored else Nack(self._published))

    def _deliver(self, routing_key: str, message: Message, queues: tuple[Queue, ...], mandatory: bool) -> bool:  # noqa: FBT001
        """Put a message into its queues, or return it; say whether all of them have taken it."""
        if mandatory and not queues and not any(self.host.was_reply(key) for key in message.keys):
            self.sink(Returned(312, "NO_ROUTE", message.exchange, routing_key, message.properties, message.body))
        stored = True
        for queue in queues:
            if not (queue.gone or queue.put(message, self)):
                stored = False
        return stored

    @_method(90, 10)
    def tx_select(self) -> None:
        """tx.select: from now on what is published and settled happens with the next commit. Errors: 406."""
        if self._confirming:
            raise AmqpError(406, "cannot switch from confirm to tx mode")
        self._transaction = self._transaction or Transaction()

    @_method(90, 20)
    def tx_commit(self) -> None:
        """tx.commit: deliver, then settle. Errors: 406, also when a queue has refused a message; the rest is done."""
        transaction = self._in_transaction()
        self._transaction = Transaction()
        stored = [self._deliver(*each) for each in transaction.publications]
        for settle, held in transaction.settlements():
            settle(held)
        if not all(stored):
            raise AmqpError(406, "partial tx completion")

    @_method(90, 30)
    def tx_rollback(self) -> None:
        """tx.rollback: what was published is forgotten, what was settled is not settled. Errors: 406."""
        self._in_transaction()
        self._restore()
        self._transaction = Transaction()

    def _in_transaction(self) -> Transaction:
        if self._transaction is None:
            raise AmqpError(406, "channel is not transactional")
        return self._transaction

    def _restore(self) -> None:
        """Have the deliveries that were settled in a transaction be unsettled again."""
        if self._transaction is not None:
            self.unsettled = dict(sorted((self.unsettled | self._transaction.held()).items()))
            self._transaction = None

    @property
    def held(self) -> Iterable[Held]:
        """What is delivered and not settled, for the queues."""
        settled = self._transaction.held() if self._transaction is not None else {}
        return (*self.unsettled.values(), *settled.values())

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
        found = self._reply_queue(no_ack=no_ack) if queue == REPLY_TO else self.queue_named(queue)
        given = arguments or {}
        queue_arguments.check_consumer(str(found), found.terms.type, given)
        tag = consumer_tag or f"amq.ctag-{self.host.names()}"
        consumer = Consumer(self, found, tag, no_ack=no_ack, exclusive=exclusive, arguments=given)
        found.subscribe(consumer)
        self.consumers[tag] = consumer
        self.sink(Consuming(tag))
        found.unpark(consumer)
        found.dispatch()
        return tag

    def _reply_queue(self, *, no_ack: bool) -> ReplyQueue:
        if not no_ack:
            raise AmqpError(406, "reply consumer cannot acknowledge")
        if self._replies is not None and not self._replies.gone:
            raise AmqpError(406, "reply consumer already set")
        self._replies = self.host.declare_reply_queue()
        return self._replies

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
        found = self.queue_named(queue)
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
        if self._transaction is not None:
            self._transaction.settle((), _acknowledge, self._collect(delivery_tag, multiple=multiple))
            return
        if multiple:
            settled: Iterable[Held] = self._collect(delivery_tag, multiple=True).values()
        elif (held := self.unsettled.pop(delivery_tag, None)) is not None:
            settled = (held,)
        else:
            raise _unknown(delivery_tag)
        _acknowledge(settled)

    @_method(60, 120)
    def nack(self, delivery_tag: int, *, multiple: bool = False, requeue: bool = True) -> None:
        """basic.nack: requeue, or dead-letter. Errors: 406."""
        self._refuse(delivery_tag, multiple=multiple, requeue=requeue, failed=False)

    @_method(60, 90)
    def reject(self, delivery_tag: int, *, requeue: bool = True) -> None:
        """basic.reject; unlike nack, it counts as a failed delivery of a quorum queue. Errors: 406."""
        self._refuse(delivery_tag, multiple=False, requeue=requeue, failed=True)

    @_method(60, 110)
    def recover(self, *, requeue: bool = True) -> None:
        """basic.recover: all unsettled deliveries of this channel go back. Errors: 540."""
        if not requeue:
            raise AmqpError(540, "requeue=false")
        _refuse_each(list(self._collect(0, multiple=True).values()), requeue=True, failed=False)

    # -- within ---------------------------------------------------------------------------------------------------

    def _name(self, queue: str) -> str:
        if not queue and not self._last_queue:
            raise AmqpError(404, "no previously declared queue")
        return queue or self._last_queue

    def queue_named(self, name: str) -> Queue:
        """Return a queue that this connection may use. Raises AmqpError 404 and 405."""
        return self._mine(self._name(name))

    def _mine(self, name: str) -> Queue:
        queue = self.host.queue(name)
        if queue.owner is not None and queue.owner is not self.connection:
            raise locked(queue)
        return queue

    def _refuse(self, tag: int, *, multiple: bool, requeue: bool, failed: bool) -> None:
        held = self._collect(tag, multiple=multiple)
        if self._transaction is not None:
            settle = partial(_refuse_each, requeue=requeue, failed=failed)
            self._transaction.settle((requeue, failed), settle, held)
        else:
            _refuse_each(list(held.values()), requeue=requeue, failed=failed)

    def _collect(self, tag: int, *, multiple: bool) -> dict[int, Held]:
        """Take out the deliveries that `tag` stands for, by tag. Raises AmqpError 406 when there is none."""
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
        return {each: unsettled.pop(each) for each in tags}


def _acknowledge(settled: Iterable[Held]) -> None:
    for queue, entry, consumer in settled:
        if not queue.gone:
            queue.settle(entry, consumer)


def _unknown(tag: int) -> AmqpError:
    return AmqpError(406, f"unknown delivery tag {tag}")


def _refuse_each(held: list[Held], *, requeue: bool, failed: bool) -> None:
    """Requeue or dead-letter, one consumer's after the other's, in the order of their tags, as RabbitMQ does."""
    held.sort(key=_queue_and_tag)
    for mine in _in_groups(held, _queue_and_tag):
        queue = mine[0].queue
        (queue.put_back if requeue else queue.reject)(mine, failed=failed)


def _in_groups(held: Iterable[Held], together: Callable[[Held], object]) -> Iterator[list[Held]]:
    """Return adjacent ones that `together` says the same of at once, without those whose queue is gone."""
    # Beside a queue that is gone there may stand another one of its name.
    for _, group in groupby((each for each in held if not each.queue.gone), together):
        yield list(group)


def _queue_and_tag(held: Held) -> tuple[str, str, tuple[int, int]]:
    # Each basic.get is a consumer of its own, with the empty tag; one that comes back under its tag is the same.
    tag = held.consumer.tag
    return held.queue.name, tag, held.consumer.order if not tag else (0, 0)


def _not_reply(queue: str) -> None:
    if is_reply(queue):
        raise AmqpError(403, "cannot bind or unbind to a volatile (direct reply-to) queue")


def _not_default(*exchanges: str) -> None:
    if "" in exchanges:
        raise AmqpError(403, "operation not permitted on the default exchange")
