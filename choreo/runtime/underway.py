"""What runs in this process for the events of one agent, so that no event has two tries here at the same time.

A try may outlast its delivery: a thread goes on after its deadline, since nothing can stop it; and when the session is
lost the broker delivers again what still runs. The next try of that event waits for the one before it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from choreo.envelope import Envelope
from choreo.errors import ReactionTimeout
from choreo.reaction import Reaction


@dataclass(slots=True)
class _Event:
    """How many run for it, which are several only where two deliveries have one id, and who waits for their end."""

    running: int = 0
    waiting: list[asyncio.Future[None]] = field(default_factory=list)


class Underway:
    """Tries under way, by the id of their event."""

    def __init__(self) -> None:
        self._events: dict[str, _Event] = {}

    def __bool__(self) -> bool:
        return bool(self._events)

    def begin(self, event_id: str) -> None:
        """Note that a try has begun."""
        event = self._events.get(event_id)
        if event is None:
            event = self._events[event_id] = _Event()
        event.running += 1

    def end(self, event_id: str) -> None:
        """Note that a try has ended."""
        event = self._events[event_id]
        event.running -= 1
        if not event.running:
            del self._events[event_id]
            for each in event.waiting:
                if not each.done():
                    each.set_result(None)

    async def wait(self, opened: Envelope, reaction: Reaction) -> None:
        """Return when no try of that event runs, after as long as the reaction may take at most.

        Raises ReactionTimeout when one runs even then: that is a failed try as well.
        """
        try:
            async with asyncio.timeout(reaction.timeout):
                while (event := self._events.get(opened.id)) is not None:
                    ended = asyncio.get_running_loop().create_future()
                    event.waiting.append(ended)
                    await ended
        except TimeoutError:
            raise ReactionTimeout(
                f"{reaction.name!r} of agent {reaction.agent} still runs in a thread for {opened.topic} {opened.id},"
                f" {reaction.timeout:g} s after this try was due, so it was not called again",
                "a thread cannot be stopped: give what it waits for a deadline of its own, below timeout=",
            ) from None
