"""A client's connection: its channels, and the exclusive queues that end with it."""

from __future__ import annotations

from collections.abc import Callable

from choreo.broker.core.channel import Channel
from choreo.broker.core.failure import AmqpError
from choreo.broker.core.outbound import Sink
from choreo.broker.core.queues import Consumer
from choreo.broker.core.virtual_host import VirtualHost


class Connection:
    """A connection of `user`, made by `Broker.connect`. `full`: its consumers get nothing until `go_on`."""

    def __init__(self, host: VirtualHost, user: str, closed: Callable[[Connection], None]) -> None:
        self.host = host
        self.user = user
        self.channels: dict[int, Channel] = {}
        self.full = False
        self._closed = closed
        self._first = 0  # the consumer that is served first when it goes on

    def open_channel(self, number: int, sink: Sink) -> Channel:
        """Open channel `number`; what the broker sends to it goes to `sink`.

        Raises AmqpError 504 when it is open already.
        """
        if number in self.channels:
            raise AmqpError(504, "second 'channel.open' seen", (20, 10))
        channel = self.channels[number] = Channel(self.host, self, number, sink)
        return channel

    def left(self, channel: Channel) -> None:
        """Forget a channel that is closed."""
        del self.channels[channel.number]

    def hold(self) -> None:
        """Deliver nothing more: the client does not take what it was sent. Its consumers miss their turn meanwhile."""
        if not self.full:
            self.full = True
            for consumer in self._consumers():
                consumer.credit = 0

    def go_on(self) -> None:
        """Deliver again. May lead to `hold` before every consumer has got something; another one is first next time."""
        if not self.full:
            return
        self.full = False
        consumers = self._consumers()
        for consumer in consumers:
            consumer.credit = consumer.limit
        self._first += 1
        first = self._first % max(1, len(consumers))
        for consumer in consumers[first:] + consumers[:first]:
            consumer.queue.unpark(consumer)
            consumer.queue.dispatch()
        self.host.catch_up()

    def _consumers(self) -> list[Consumer]:
        return [consumer for channel in self.channels.values() for consumer in channel.consumers.values()]

    def close(self) -> None:
        """End all channels, then delete the exclusive queues. May be called twice."""
        for channel in list(self.channels.values()):
            channel.close()
        self._closed(self)
