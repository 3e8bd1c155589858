"""Direct reply-to: the queue that is none, of a channel that waits for replies.

https://www.rabbitmq.com/docs/direct-reply-to: its name is in no list and belongs to nobody, whoever knows it may reply.
"""

from __future__ import annotations

from typing import Final

from choreo.broker.core.failure import AmqpError
from choreo.broker.core.message import REPLY_TO
from choreo.broker.core.queues import Consumer, Queue, Surroundings
from choreo.broker.core.ready_messages import Entry

_PREFIX: Final = f"{REPLY_TO}."


class ReplyQueue(Queue):
    """Where the one consumer of replies gets them; it is gone with that consumer."""

    def __init__(self, host: Surroundings, name: str) -> None:
        super().__init__(host, name, {"x-queue-type": "classic"}, owner=None, durable=False, auto_delete=True)

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


def prefix(broker: str) -> str:
    """Return how the names of the reply queues begin of the broker that calls itself `broker` in them."""
    return f"{_PREFIX}{broker}."
