"""Loops through a participant that keeps no hops: what comes back from it looks as if it began a transaction.

Only what it keeps can tell: the correlation id, or the id of the event that it answers. Where it keeps nothing and says
the same again, the message gets the same id (see `message.identity`). A stream of events that somebody really sends
under one correlation looks just alike, so the bound is generous, and counts for an hour and in one process.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from choreo import clock
from choreo.agent import Agent
from choreo.envelope import Envelope
from choreo.errors import NotEmitted
from choreo.message import HOPS, Message, Reason

_PERIOD: Final = 3_600.0  # seconds
_KNOWN: Final = 10_000  # correlations, and ids of emitted events: what circulates is among the last ones


class Returns:
    """What one agent has emitted for events without hops, by correlation."""

    def __init__(self) -> None:
        self._counts: dict[str, tuple[int, float]] = {}  # and until when they count
        self._answered: dict[str, str] = {}  # the correlation of an emitted event, by its id

    def count(self, agent: Agent, cause: Envelope, messages: Iterable[Message]) -> None:
        """Note that `messages` are about to be emitted for `cause`, which has no hops.

        Raises NotEmitted when `agent` has done so too often under that correlation.
        """
        answered = self._answered
        correlation = answered.get(cause.correlation_id, cause.correlation_id)
        now = clock.monotonic()
        count, until = self._counts.pop(correlation, (0, 0.0))
        if now >= until:
            count, until = 0, now + _PERIOD
            if len(self._counts) >= _KNOWN:
                del self._counts[next(iter(self._counts))]
        self._counts[correlation] = count + 1, until
        if count >= agent.max_returns:
            raise NotEmitted(
                Reason.LOOP,
                f"agent {agent.name} has emitted {count} times within an hour for events of the correlation"
                f" {correlation} that came without {HOPS}, and max_returns is {agent.max_returns}: it seems that a"
                " participant sends back what it gets",
                "let it keep the headers of what it answers, or raise max_returns= of the agent",
            )
        for message in messages:
            if len(answered) >= _KNOWN:
                del answered[next(iter(answered))]
            answered[str(message.message_id)] = correlation
