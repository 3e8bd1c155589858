"""One subscription of a session with RabbitMQ, on a channel of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aiormq.abc import AbstractChannel

from choreo.rabbit import calls, fast_path
from choreo.transport import Delivery


class RabbitConsumer:
    """A subscription on a channel of its own. `nacks_rest`: what is unsettled at its end goes back by basic.nack."""

    def __init__(
        self,
        queue: str,
        channel: AbstractChannel,
        leave: Callable[[RabbitConsumer], None],
        arguments: dict[str, Any] | None = None,
        *,
        nacks_rest: bool = False,
    ) -> None:
        self.queue = queue
        self._arguments = arguments
        self.channel = channel
        self._leave = leave
        self._nacks_rest = nacks_rest
        self._tag = ""

    async def start(self, receiving: fast_path.Consuming) -> None:
        """Begin to receive."""
        self._receiving = receiving
        self._settle, self._give_back = receiving.acknowledge, receiving.give_back
        reply = await calls.rpc(self.channel.basic_consume(self.queue, receiving.arrived, arguments=self._arguments))
        self._tag = reply.consumer_tag or ""

    def acknowledge(self, delivery: Delivery) -> None:
        """Acknowledge, with all others of this turn of the loop.

        If the channel is gone, nothing happens: the broker has taken the delivery back already.
        """
        self._settle(delivery.tag)

    def requeue(self, delivery: Delivery) -> None:
        """Requeue with basic.nack, which from RabbitMQ 4.3 on does not count towards the delivery limit."""
        self._give_back(delivery.tag)

    async def cancel(self) -> None:
        """Stop receiving. Patiently: to give up on the answer costs the channel."""
        await calls.quietly(self.channel.basic_cancel(self._tag, timeout=calls.RPC_TIMEOUT), calls.RPC_TIMEOUT)

    async def close(self) -> None:
        """Close the channel."""
        self._leave(self)
        if not self.channel.is_closed:
            if self._nacks_rest:
                self._receiving.give_back_rest()
            await self._receiving.end()
            await calls.quietly(self.channel.close())
