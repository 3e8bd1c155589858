"""Runs whose delivery the broker has taken back while they go on: what it delivers again waits for their outcome.

A broker takes back what is held for longer than its consumer timeout and delivers it anew, here or elsewhere. To begin
again beside the run that still goes on would only make two of them. So what comes back to this process is held until
that run ends, and is settled as it is; so is what comes back a moment after that. A message without an id may be
another one that merely looks the same: it waits too, and then runs on its own.

That has a bound. Each time the broker takes the copy back as well the round is counted, and a run that has cost too
many is ended: its delivery becomes a dead letter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from choreo.errors import ChoreoError, EnvelopeError
from choreo.message import Reason
from choreo.transport import Delivery, came_back, likeness

# Brokers before 4.3 count them too, and dead-letter a message beyond its delivery limit of 20 while its run goes on.
ROUNDS: Final = 15
_EXPECTED: Final = 60.0  # seconds in which a copy comes; later it was delivered to somebody else
_MOST_DONE: Final = 10_000

End = Callable[[Delivery, ChoreoError], None]
Held = Callable[[Delivery], Iterable[Delivery]]


@dataclass(slots=True)
class _Run:
    """A delivery that was taken back, and what has come for it since. Which tags still count only the broker knows."""

    delivery: Delivery
    rounds: int = 1
    copies: list[Delivery] = field(default_factory=list)


class Overdue:
    """The runs of one agent's queue in one session, as many as may be held.

    `end` ends one with an error. `held` says what other subscriptions hold than that of the delivery it is given: a
    broker may deliver something again before it says that it has taken it back.
    """

    def __init__(self, end: End, held: Held) -> None:
        self._end = end
        self._held = held
        self._error = ChoreoError("")  # the last one
        self._runs: dict[object, list[_Run]] = {}
        # Until when to expect what has run, and is still to be delivered again.
        self._done: dict[object, float] = {}
        # Whether anything runs: an attribute, since each acknowledgement asks [0.1 us].
        self.any = False

    def taken_back(self, deliveries: Iterable[Delivery], error: ChoreoError) -> None:
        """Note that the broker may have taken back each of `deliveries`, and what `error` says of it."""
        self._error = error
        for each in deliveries:
            runs = self._runs.setdefault(likeness(each), [])
            if not any(run.delivery is each or each in run.copies for run in runs):
                runs.append(_Run(each))
        self._count()

    def wait(self, delivery: Delivery) -> bool:
        """Say whether `delivery` is a copy of what runs; it is to be settled when that run ends then."""
        key = likeness(delivery)
        if key not in self._runs:
            self.taken_back((each for each in self._held(delivery) if likeness(each) == key), self._error)
        runs = self._runs.get(key)
        if runs is None:
            return False
        run = min(runs, key=lambda run: len(run.copies))
        run.copies.append(delivery)
        run.rounds = max(run.rounds + 1, came_back(delivery))
        if run.rounds >= ROUNDS:
            self._give_up(run)
        return True

    def ended(self, delivery: Delivery) -> list[Delivery]:
        """Note that the run of `delivery` has ended. Return what has waited for it."""
        key = likeness(delivery)
        runs = self._runs.get(key, [])
        run = next((run for run in runs if run.delivery is delivery), None)
        if run is None:
            return []
        runs.remove(run)
        if not runs:
            del self._runs[key]
        self._count()
        return run.copies

    def expect(self, delivery: Delivery) -> None:
        """Note that `delivery` is done with while no copy of it was here: the next one needs no run of its own."""
        if is_sure(delivery):
            now = asyncio.get_running_loop().time()
            while self._done and (len(self._done) >= _MOST_DONE or next(iter(self._done.values())) < now):
                del self._done[next(iter(self._done))]
            self._done[likeness(delivery)] = now + _EXPECTED

    def is_done(self, delivery: Delivery) -> bool:
        """Say whether `delivery` is a copy that was expected, once."""
        until = self._done.pop(likeness(delivery), 0.0) if self._done else 0.0
        return until > asyncio.get_running_loop().time()

    def clear(self) -> None:
        """Forget everything: with its session, what is held goes too."""
        self._runs.clear()
        self._done.clear()
        self._count()

    def _count(self) -> None:
        self.any = bool(self._runs)

    def _give_up(self, run: _Run) -> None:
        self._end(
            run.delivery,
            EnvelopeError(
                Reason.OVERDUE,
                f"the broker has taken this back {run.rounds} times while its reaction ran: {self._error.message}",
                self._error.way_out,
            ),
        )


def is_sure(delivery: Delivery) -> bool:
    """Say whether a message like this one is the same one."""
    return delivery.message.message_id is not None
