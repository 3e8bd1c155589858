"""An embedded broker and its time, shared by the sessions of one event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from itertools import count

from choreo.broker.core import Broker
from choreo.message import Message
from choreo.transport import Publication

Answered = Callable[[Message, str, str, Publication], None]


class Host:
    """An embedded broker in this process, and its clock.

    `clock`: seconds since 1970; it has to keep step with the event loop's own time. `latency`: asked for the seconds
    that each single thing takes from the broker to its client, 0 unless given. `answered`: told at
    once of every message that the broker has answered for, with exchange and routing key.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.time,
        latency: Callable[[], float] | None = None,
        answered: Answered | None = None,
    ) -> None:
        numbers = count(1)
        self.broker = Broker(clock(), lambda: f"{next(numbers):022d}")
        self.latency = latency
        self.answered = answered
        self._clock = clock
        self._alarm: asyncio.TimerHandle | None = None
        self._winding = False
        self._closed = False

    def close(self) -> None:
        """Stop the clock: nothing happens by itself any more."""
        self._closed = True
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def catch_up(self) -> None:
        """Bring the broker up to date. Before each thing that it is asked for, since that may wind its alarm too."""
        if self._closed:
            return
        self.broker.advance(self._clock())
        if not self._winding:
            self._winding = True
            asyncio.get_running_loop().call_soon(self._wind)

    def _wind(self) -> None:
        """Have the broker woken when something is due."""
        self._winding = False
        if self._closed:
            return
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        due = self.broker.next_due()
        if due is not None:
            wait = max(0.0, due - self._clock())
            self._alarm = asyncio.get_running_loop().call_later(wait, self._ring, due)

    def _ring(self, due: float) -> None:
        self.broker.advance(due)  # the clock may be short of it by what floating point leaves of a sum
        self.catch_up()
