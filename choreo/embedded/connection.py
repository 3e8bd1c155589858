"""A client's connection: its channels, and the exclusive queues that end with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from choreo.embedded.channel import Channel
from choreo.embedded.failure import AmqpError
from choreo.embedded.sent import Sink

if TYPE_CHECKING:
    from choreo.embedded.broker import Broker


class Connection:
    """A connection of `user`, made by `Broker.connect`."""

    def __init__(self, broker: Broker, user: str) -> None:
        self.broker = broker
        self.user = user
        self.channels: dict[int, Channel] = {}

    def open_channel(self, number: int, sink: Sink) -> Channel:
        """Open channel `number`; what the broker sends to it goes to `sink`.

        Raises AmqpError 504 when it is open already.
        """
        if number in self.channels:
            raise AmqpError(504, "second 'channel.open' seen", (20, 10))
        channel = self.channels[number] = Channel(self, number, sink)
        return channel

    def close(self) -> None:
        """End all channels, then delete the exclusive queues. May be called twice."""
        for channel in list(self.channels.values()):
            channel.close()
        self.broker.disconnect(self)
