"""Many events, one after the other: paced, each confirmed, a bounded number on the way. The first failure ends it."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Self

from choreo import duration
from choreo.errors import ChoreoError, PartlyDone, PublishRefused, PublishUnknown, UsageError
from choreo.message import Message
from choreo.retry import LONGEST_DELAY
from choreo.runtime.publisher import Publisher

WINDOW: Final = 500  # events on the way at once; more do not make the broker any faster

_SLOWEST: Final = 1e-6  # events per second: one in twelve days


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast, and when: `interval` in seconds from one event to the next, `delay` in seconds until delivery."""

    interval: float = 0.0
    delay: float = 0.0

    @classmethod
    def parse(cls, rate: str | None, delay: str | None) -> Self:
        """Read --rate and --delay. Raises UsageError that says what they may be."""
        return cls(0.0 if rate is None else 1 / _per_second(rate), 0.0 if delay is None else _later(delay))


def _per_second(rate: str) -> float:
    try:
        number = float(rate)
    except ValueError:
        number = math.nan
    if math.isfinite(number) and number >= _SLOWEST:
        return number
    raise UsageError(f"--rate {rate!r:.80} is not allowed", "allowed: a number of events per second: 50, or 0.5")


def _later(delay: str) -> float:
    try:
        seconds = duration.seconds(delay)
    except ValueError:
        seconds = math.inf
    if seconds <= LONGEST_DELAY:
        return seconds
    longest = duration.text(LONGEST_DELAY)
    raise UsageError(
        f"--delay {delay!r:.80} is not allowed", f"allowed: a length of time up to {longest}: {duration.FORMS}"
    )


@dataclass(slots=True)
class Tally:
    """What became of `total` events. `failure` is the first one, of the event that came from line `line`.

    `unsaid`: it is that whoever was to hear of an event that was confirmed could not be told.
    """

    total: int
    confirmed: int = 0
    refused: int = 0
    unknown: int = 0
    unsaid: bool = False
    failure: ChoreoError | None = None
    line: int | None = None

    def __str__(self) -> str:
        unsent = self.total - self.confirmed - self.refused - self.unknown
        counts = [f"{self.refused} refused", f"{self.unknown} unknown", f"{unsent} not sent"]
        rest = ", ".join(each for each in counts if not each.startswith("0 "))
        return f"{self.confirmed} of {self.total} events confirmed{', ' if rest else ''}{rest}"

    def failed(self, error: ChoreoError, line: int | None) -> None:
        """Count one that was not confirmed."""
        if isinstance(error, PublishRefused):
            self.refused += 1
        elif isinstance(error, PublishUnknown):
            self.unknown += 1
        if self.failure is None:
            self.failure, self.line = error, line

    def check(self) -> None:
        """Raise the first failure, or PartlyDone when some events were confirmed in spite of it."""
        if self.failure is None:
            return
        if self.total == 1 and not self.confirmed:
            raise self.failure
        first = f"line {self.line}: {self.failure.message}" if self.line else self.failure.message
        if self.unsaid and self.total > 1:  # they are sent in order, and nothing was refused before it ended
            first = f"{first}; the first {self.confirmed} are confirmed, whatever stdout shows of them"
        kind = PartlyDone if self.confirmed else type(self.failure)
        raise kind(f"{self}; the first failure: {first}", self.failure.way_out)


class Sending:
    """Publishes messages of one topic at a pace; `on_confirmed` is called with each confirmed one, in their order."""

    def __init__(self, publisher: Publisher, topic: str, pace: Pace, on_confirmed: Callable[[Message], None]) -> None:
        self._publisher = publisher
        self._topic = topic
        self._pace = pace
        self._on_confirmed = on_confirmed
        self._stopped: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._outstanding: deque[tuple[int | None, Message, asyncio.Task[None]]] = deque()

    def stop(self) -> None:
        """Send nothing more. What is on the way is still waited for."""
        if not self._stopped.done():
            self._stopped.set_result(None)

    def abort(self) -> None:
        """Send nothing more, and do not wait either: what is on the way counts as unknown."""
        self.stop()
        for *_, task in self._outstanding:
            task.cancel()

    async def send(self, messages: Iterator[tuple[int | None, Message]], total: int) -> Tally:
        """Publish `messages`, each with the line it came from, and return what became of all `total` of them."""
        tally = Tally(total)
        start = asyncio.get_running_loop().time()
        try:
            for number in range(total):
                # Due times count from the start, so that a late event does not make all later ones late.
                if not await self._turn(tally, start + number * self._pace.interval):
                    break
                line, message = next(messages)  # only now: it says when it was made
                publish = self._publisher.send(message, self._topic, delay=self._pace.delay or None)
                self._outstanding.append((line, message, asyncio.create_task(publish)))
            while self._outstanding:
                await asyncio.wait({self._outstanding[0][2]})
                self._settle(tally)
        finally:
            tasks = [task for *_, task in self._outstanding]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return tally

    async def _turn(self, tally: Tally, due: float) -> bool:
        """Wait until one more may be sent; False: none may."""
        loop = asyncio.get_running_loop()
        while True:
            self._settle(tally)
            if self._stopped.done():
                return False
            # The first one goes alone: when nobody listens, one refusal says so as well as five hundred.
            full = len(self._outstanding) >= (WINDOW if tally.confirmed else 1)
            early = due - loop.time()
            if not full and early <= 0:
                return True
            first = [self._outstanding[0][2]] if self._outstanding else []
            await asyncio.wait(
                {self._stopped, *first},
                timeout=None if full else early,
                return_when=asyncio.FIRST_COMPLETED,
            )

    def _settle(self, tally: Tally) -> None:
        """Count what has been answered at the head of the line."""
        while self._outstanding and self._outstanding[0][2].done():
            line, message, task = self._outstanding.popleft()
            if task.cancelled():
                tally.unknown += 1
                continue
            try:
                task.result()
            except ChoreoError as error:
                tally.failed(error, line)
                self.stop()
            else:
                tally.confirmed += 1
                self._say(tally, message, line)

    def _say(self, tally: Tally, message: Message, line: int | None) -> None:
        """Tell of a confirmed event. Who cannot be told gets no more of them, and what is on the way is counted."""
        try:
            self._on_confirmed(message)
        except ChoreoError as error:
            tally.unsaid = tally.failure is None
            self._on_confirmed = lambda _: None
            tally.failed(error, line)
            self.stop()
