"""Direct reply-to: the queue that is none, of a channel that waits for replies.

https://www.rabbitmq.com/docs/direct-reply-to: its name is in no list and belongs to nobody, whoever knows it may reply.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from choreo.broker.core.failure import AmqpError
from choreo.broker.core.message import REPLY_TO
from choreo.broker.core.queues import Queue

if TYPE_CHECKING:
    from choreo.broker.core.broker import Broker
    from choreo.broker.core.consumers import Consumer
    from choreo.broker.core.lines import Entry

_PREFIX: Final = f"{REPLY_TO}."


class ReplyQueue(Queue):
    """Where the one consumer of replies gets them; it is gone with that consumer."""

    def __init__(self, broker: Broker) -> None:
        name = f"{_prefix(broker)}{broker.names()}"
        super().__init__(broker, name, {"x-queue-type": "classic"}, owner=None, durable=False, auto_delete=True)

    def subscribe(self, consumer: Consumer) -> None:
        """See Queue."""
        if self.consumers:
            raise AmqpError(406, f"only creator channel may consume from {self}")
        super().subscribe(consumer)

    def take(self) -> Entry | None:
        """See Queue."""
        raise AmqpError(540, f"basic.get not supported by volatile {self}")


def is_reply(name: str) -> bool:
    """Say whether `name` is that of a reply queue, there or not."""
    return name.startswith(_PREFIX)


def was_reply(broker: Broker, name: str) -> bool:
    """Say whether `broker` has given this name away: as in RabbitMQ, a reply that comes too late is not returned."""
    return is_reply(name) and name.startswith(_prefix(broker))


def _prefix(broker: Broker) -> str:
    broker.replies = broker.replies or broker.names()
    return f"{_PREFIX}{broker.replies}."
