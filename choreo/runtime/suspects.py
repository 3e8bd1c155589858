"""Deliveries that came back again and again: they may be what has ended the process, or cost it its session.

Suspects run one at a time, see `Turns`, so that one that ends the process takes no other with it. And a reaction may
stand still for longer than the broker waits for a heartbeat: it may well come to its end, but nobody is left to take
the acknowledgement, so it begins again. The broker ends that at its delivery limit, after twenty rounds of perhaps
minutes each. What this process has seen with its own eyes is a dead letter earlier, see `Rounds`: a suspect that costs
one more session.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import random
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final

from choreo.errors import EnvelopeError
from choreo.message import Reason
from choreo.reaction import Reaction
from choreo.runtime.loop_watchdog import Standstill
from choreo.transport import Delivery, came_back, likeness

SUSPECT: Final = 2  # times that a delivery came back unsettled
PATIENCE: Final = 60.0  # seconds that a suspect waits for others; a broker takes back what is held for too long
_KNOWN: Final = 1_000  # that are not dead yet: another worker may have got them


class Turns:
    """Lets the suspects of all agents in a process run one at a time, the one that came back least often first.

    Who ended the process came back each time, who was only there did not: it runs first, and ends. Among equals the lot
    decides, so that no innocent one stands behind the culprit every time.
    """

    def __init__(self, subscriptions: int) -> None:
        self._unheard = subscriptions
        self._waiting: list[tuple[int, float, asyncio.Event]] = []
        self._running = False

    def heard(self) -> None:
        """Note that one more window knows what its queue begins with. Nobody has a turn before all do."""
        self._unheard -= 1
        asyncio.get_running_loop().call_soon(self._next)  # when its suspect, if there is one, has asked as well

    @asynccontextmanager
    async def take(self, suspect: Delivery) -> AsyncIterator[None]:
        """Wait for the turn of `suspect`, at most a minute, and hold it."""
        turn = asyncio.Event()
        entry = (came_back(suspect), random.random(), turn)  # noqa: S311 - no secret
        heapq.heappush(self._waiting, entry)
        self._next()
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    await turn.wait()
            yield
        finally:
            if turn.is_set():
                self._running = False
            else:
                self._waiting.remove(entry)
                heapq.heapify(self._waiting)
            self._next()

    def _next(self) -> None:
        if self._waiting and not self._running and not self._unheard:
            heapq.heappop(self._waiting)[2].set()
            self._running = True


class Rounds:
    """What one agent's deliveries have cost."""

    def __init__(self) -> None:
        self._suspect: tuple[object, Reaction] | None = None  # the last one that began
        self._guilty: dict[object, float] = {}

    def begin(self, delivery: Delivery, reaction: Reaction) -> None:
        """Note that a delivery that came back begins again. Raises EnvelopeError when it has cost enough."""
        if came_back(delivery) < SUSPECT:
            return
        key = likeness(delivery)
        seconds = self._guilty.pop(key, None)
        if seconds is not None:
            raise EnvelopeError(
                Reason.STALLED,
                f"reaction {reaction.name!r} of agent {reaction.agent} kept the whole process from running for"
                f" {seconds:.0f} s; the broker waits for a heartbeat for less, ended the session and delivered this"
                f" again, {came_back(delivery)} times",
                "move what takes so long into a process of its own; a thread does not help against a call that keeps"
                " Python's global lock",
            )
        self._suspect = key, reaction

    def lost(self, reaction: Reaction, seconds: float) -> None:
        """Count a session that was lost while `reaction` kept everything from running, `seconds` long."""
        if self._suspect is not None and self._suspect[1] is reaction:
            if len(self._guilty) >= _KNOWN:
                self._guilty.pop(next(iter(self._guilty)))
            self._guilty[self._suspect[0]] = seconds
            self._suspect = None


def cause_of_loss(found: Standstill | None, heartbeat: float, rounds: Mapping[str, Rounds]) -> dict[str, str]:
    """Return why a session was lost just now, for its line in the log, if `found` is why; count it in `rounds`."""
    if found is None or not 0 < heartbeat < found.seconds or time.monotonic() - found.ended > heartbeat:
        return {}
    cause = f"nothing ran in this process for {found.seconds:.0f} s, and the broker waits for a heartbeat for less"
    if found.reaction is None:
        return {"cause": cause}
    rounds[found.reaction.agent].lost(found.reaction, found.seconds)
    return {"cause": f"{cause}: reaction {found.reaction.name!r} of agent {found.reaction.agent} held everything up"}
