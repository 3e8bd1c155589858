"""Deliveries that cost their session each time: their reaction stands still for longer than the broker waits.

Such a reaction may well come to its end, but nobody is left to take the acknowledgement, so it begins again. The broker
ends that at its delivery limit, after twenty rounds of perhaps minutes each. What this process has seen with its own
eyes is a dead letter earlier: a suspect (see `window`) that runs alone and costs one more session.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

from choreo.errors import EnvelopeError
from choreo.message import Reason
from choreo.reaction import Reaction
from choreo.runtime.stall import Standstill
from choreo.runtime.window import SUSPECT
from choreo.transport import Delivery, came_back, likeness

_KNOWN: Final = 1_000  # that are not dead yet: another worker may have got them


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
