"""A channel: the methods of AMQP, one to one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from choreo.embedded.message import Properties
from choreo.embedded.sent import Got, QueueOk


class Channel:
    """A channel, made by `Connection.open_channel`.

    A method that the broker refuses raises AmqpError, which names class and method; by then the channel is closed, or
    the connection, if that is what the error closes: deliveries are back in their queues and consumers are gone. What
    AMQP calls ok is a method that returns; only basic.consume-ok is sent, because deliveries follow it at once.
    An empty queue name stands for the queue that this channel declared last.
    """

    @property
    def open(self) -> bool:
        """Whether methods can be called."""
        raise NotImplementedError

    def close(self) -> None:
        """channel.close, and what a lost connection does to each channel. May be called twice."""
        raise NotImplementedError

    # -- exchanges ------------------------------------------------------------------------------------------------

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
        raise NotImplementedError

    def exchange_delete(self, name: str, *, if_unused: bool = False) -> None:
        """exchange.delete; nothing happens when there is no such exchange. Errors: 403, 406."""
        raise NotImplementedError

    def exchange_bind(
        self, destination: str, source: str, routing_key: str = "", arguments: Mapping[str, Any] | None = None
    ) -> None:
        """exchange.bind. Errors: 403, 404."""
        raise NotImplementedError

    def exchange_unbind(
        self, destination: str, source: str, routing_key: str = "", arguments: Mapping[str, Any] | None = None
    ) -> None:
        """exchange.unbind; nothing happens when there is no such binding. Errors: 403."""
        raise NotImplementedError

    # -- queues ---------------------------------------------------------------------------------------------------

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
        raise NotImplementedError

    def queue_bind(
        self, queue: str, exchange: str, routing_key: str = "", arguments: Mapping[str, Any] | None = None
    ) -> None:
        """queue.bind. Errors: 403, 404, 405."""
        raise NotImplementedError

    def queue_unbind(
        self, queue: str, exchange: str, routing_key: str = "", arguments: Mapping[str, Any] | None = None
    ) -> None:
        """queue.unbind; nothing happens when there is no such binding. Errors: 403, 405."""
        raise NotImplementedError

    def queue_purge(self, queue: str) -> int:
        """queue.purge. Returns how many messages are gone. Errors: 404, 405, 540."""
        raise NotImplementedError

    def queue_delete(self, queue: str, *, if_unused: bool = False, if_empty: bool = False) -> int:
        """queue.delete. Returns how many messages are gone; 0 when there is no such queue. Errors: 405, 406, 540."""
        raise NotImplementedError

    # -- publishing -----------------------------------------------------------------------------------------------

    def confirm_select(self) -> None:
        """confirm.select: from now on each publish is answered by Ack or Nack, numbered from 1."""
        raise NotImplementedError

    def publish(
        self, exchange: str, routing_key: str, properties: Properties, body: bytes, *, mandatory: bool = False
    ) -> None:
        """basic.publish with its content. Sends Returned, then Ack or Nack. Errors: 403, 404, 406."""
        raise NotImplementedError

    # -- consuming ------------------------------------------------------------------------------------------------

    def qos(self, prefetch_count: int, *, prefetch_size: int = 0, global_: bool = False) -> None:
        """basic.qos: how many unsettled deliveries each consumer from now on may have; 0 is no limit. Errors: 540."""
        raise NotImplementedError

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
        raise NotImplementedError

    def cancel(self, consumer_tag: str) -> None:
        """basic.cancel; its deliveries stay to be settled. Nothing happens when there is no such consumer."""
        raise NotImplementedError

    def get(self, queue: str, *, no_ack: bool = False) -> Got | None:
        """basic.get; None is get-empty. Errors: 404, 405, 540."""
        raise NotImplementedError

    def ack(self, delivery_tag: int, *, multiple: bool = False) -> None:
        """basic.ack; `multiple` takes all up to this tag, and tag 0 all there are. Errors: 406."""
        raise NotImplementedError

    def nack(self, delivery_tag: int, *, multiple: bool = False, requeue: bool = True) -> None:
        """basic.nack: give back, or dead-letter. Errors: 406."""
        raise NotImplementedError

    def reject(self, delivery_tag: int, *, requeue: bool = True) -> None:
        """basic.reject; unlike nack, it counts as a failed delivery of a quorum queue. Errors: 406."""
        raise NotImplementedError

    def recover(self, *, requeue: bool = True) -> None:
        """basic.recover: all unsettled deliveries of this channel go back. Errors: 540."""
        raise NotImplementedError
