"""A client's connection: its channels, and the exclusive queues that end with it."""

from __future__ import annotations

from choreo.embedded.channel import Channel
from choreo.embedded.sent import Sink


class Connection:
    """A connection of `user`, made by `Broker.connect`."""

    def open_channel(self, number: int, sink: Sink) -> Channel:
        """Open channel `number`; what the broker sends to it goes to `sink`.

        Raises AmqpError 504 when it is open already.
        """
        raise NotImplementedError

    def close(self) -> None:
        """End all channels, then delete the exclusive queues. May be called twice."""
        raise NotImplementedError
