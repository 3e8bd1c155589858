"""A channel: the methods of AMQP, one to one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from choreo.broker.core import arguments as queue_arguments
from choreo.broker.core.consumers import Consumer, Held, in_groups, refuse
from choreo.broker.core.declarations import Declarations
from choreo.broker.core.failure import AmqpError
from choreo.broker.core.message import REPLY_TO, Message, Properties
from choreo.broker.core.method import method
from choreo.broker.core.publishing import published
from choreo.broker.core.queues import Queue
from choreo.broker.core.replies import ReplyQueue, was_reply
from choreo.broker.core.sent import Ack, Consuming, Got, Nack, Returned, Sink
from choreo.broker.core.transaction import Publication, Transaction

if TYPE_CHECKING:
    from choreo.broker.core.connection import Connection


class Channel(Declarations):
    """A channel, made by `Connection.open_channel`.

    A method that the broker refuses raises AmqpError, which names class and method; by then the channel is closed, or
    the connection, if that is what the error closes: deliveries are back in their queues and consumers are gone. What
    AMQP calls ok is a method that returns; only basic.consume-ok is sent, because deliveries follow it at once.
    An empty queue name stands for the queue that this channel declared last.
    """

    def __init__(self, connection: Connection, number: int, sink: Sink) -> None:
        super().__init__(connection)
        self.number = number
        self.sink = sink
        self.prefetch = 0  # of each consumer from now on
        self.last_tag = 0
        self.unsettled: dict[int, Held] = {}
        self.consumers: dict[str, Consumer] = {}
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
        del self.connection.channels[self.number]
        left = dict.fromkeys(consumer.queue for consumer in self.consumers.values())
        for consumer in self.consumers.values():
            consumer.queue.unsubscribe(consumer)
        self.consumers.clear()
        # In RabbitMQ one consumer's after the other's, but nobody gets any before all are back.
        held = sorted(
            self._collect(0, multiple=True).values(), key=lambda each: (each.queue.name, each.consumer.leaves)
        )
        for mine in in_groups(held, lambda each: each.queue.name):
            mine[0].queue.put_back(mine, failed=True)
        for queue in left:
            queue.carry_on()
        for queue in self.broker.by_name.values():
            queue.leave(self)
        self.broker.catch_up()

    # -- publishing -----------------------------------------------------------------------------------------------

    @method(85, 10)
    def confirm_select(self) -> None:
        """confirm.select: from now on each publish is answered by Ack or Nack, numbered from 1. Errors: 406."""
        if self._transaction is not None:
            raise AmqpError(406, "cannot switch from tx to confirm mode")
        self._confirming = True

    @method(60, 40)
    def publish(
        self, exchange: str, routing_key: str, properties: Properties, body: bytes, *, mandatory: bool = False
    ) -> None:
        """basic.publish with its content. Sends Returned, then Ack or Nack. Errors: 403, 404, 406.

        In a transaction it is routed at once, and returned or delivered with the commit.
        """
        broker = self.broker
        if len(body) > broker.limit:
            words = f"message size {len(body)} is larger than configured max size {broker.limit}"
            raise AmqpError(406, words)
        to = broker.exchange(exchange)
        if to.internal:
            raise AmqpError(403, f"cannot publish to internal exchange '{exchange}' in vhost '{broker.vhost}'")
        if self._confirming:
            self._published += 1
        if properties.wants_direct_reply:
            if self._replies is None or self._replies.gone:
                raise AmqpError(406, "fast reply consumer does not exist")
            properties = properties.replying_to(self._replies.name)
        message = published(exchange, routing_key, properties, body, self.connection.user)
        queues = broker.route(to, message)
        if self._transaction is not None:
            self._transaction.publications.append(Publication(routing_key, message, queues, mandatory))
            return
        stored = self._deliver(routing_key, message, queues, mandatory)
        if self._confirming:
            self.sink(Ack(self._published) if stored else Nack(self._published))

    def _deliver(self, routing_key: str, message: Message, queues: tuple[Queue, ...], mandatory: bool) -> bool:  # noqa: FBT001
        """Put a message into its queues, or return it; say whether all of them have taken it."""
        if mandatory and not queues and not any(was_reply(self.broker, key) for key in message.keys):
            self.sink(Returned(312, "NO_ROUTE", message.exchange, routing_key, message.properties, message.body))
        stored = True
        for queue in queues:
            if not (queue.gone or queue.put(message, self)):
                stored = False
        return stored

    @method(90, 10)
    def tx_select(self) -> None:
        """tx.select: from now on what is published and settled happens with the next commit. Errors: 406."""
        if self._confirming:
            raise AmqpError(406, "cannot switch from confirm to tx mode")
        self._transaction = self._transaction or Transaction()

    @method(90, 20)
    def tx_commit(self) -> None:
        """tx.commit: deliver, then settle. Errors: 406, also when a queue has refused a message; the rest is done."""
        transaction = self._in_transaction()
        self._transaction = Transaction()
        stored = [self._deliver(*each) for each in transaction.publications]
        for settle, held in transaction.settlements():
            settle(held)
        if not all(stored):
            raise AmqpError(406, "partial tx completion")

    @method(90, 30)
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

    @method(60, 10)
    def qos(self, prefetch_count: int, *, prefetch_size: int = 0, global_: bool = False) -> None:
        """basic.qos: how many unsettled deliveries each consumer from now on may have; 0 is no limit. Errors: 540.

        As in RabbitMQ 4.3, `global_` means nothing.
        """
        if prefetch_size:
            raise AmqpError(540, f"prefetch_size!=0 ({prefetch_size})")
        self.prefetch = prefetch_count

    @method(60, 20)
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
        tag = consumer_tag or f"amq.ctag-{self.broker.names()}"
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
        self._replies = made = ReplyQueue(self.broker)
        self.broker.by_name[made.name] = made
        self.broker.topology_changed()
        return made

    @method(60, 30)
    def cancel(self, consumer_tag: str) -> None:
        """basic.cancel; its deliveries stay to be settled. Nothing happens when there is no such consumer."""
        consumer = self.consumers.pop(consumer_tag, None)
        if consumer is not None:
            consumer.queue.unsubscribe(consumer)
            consumer.queue.carry_on()

    @method(60, 70)
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

    @method(60, 80)
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

    @method(60, 120)
    def nack(self, delivery_tag: int, *, multiple: bool = False, requeue: bool = True) -> None:
        """basic.nack: give back, or dead-letter. Errors: 406."""
        self._refuse(delivery_tag, multiple=multiple, requeue=requeue, failed=False)

    @method(60, 90)
    def reject(self, delivery_tag: int, *, requeue: bool = True) -> None:
        """basic.reject; unlike nack, it counts as a failed delivery of a quorum queue. Errors: 406."""
        self._refuse(delivery_tag, multiple=False, requeue=requeue, failed=True)

    @method(60, 110)
    def recover(self, *, requeue: bool = True) -> None:
        """basic.recover: all unsettled deliveries of this channel go back. Errors: 540."""
        if not requeue:
            raise AmqpError(540, "requeue=false")
        refuse(list(self._collect(0, multiple=True).values()), requeue=True, failed=False)

    # -- within ---------------------------------------------------------------------------------------------------

    def _refuse(self, tag: int, *, multiple: bool, requeue: bool, failed: bool) -> None:
        held = self._collect(tag, multiple=multiple)
        if self._transaction is not None:
            settle = partial(refuse, requeue=requeue, failed=failed)
            self._transaction.settle((requeue, failed), settle, held)
        else:
            refuse(list(held.values()), requeue=requeue, failed=failed)

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
