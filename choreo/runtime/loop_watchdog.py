"""A thread that sees when the event loop stands still, says what holds it up, and in the end ends the process.

While the loop does not turn, no deadline can fire, nothing is acknowledged and no heartbeat is sent. A function that
keeps Python's global lock, such as a long call into C, keeps this thread from looking as well, and in a `def` reaction
it holds up the loop all the same: this thread says so as soon as it gets the lock. Against one that never releases it a
supervisor, systemd's watchdog and /live help.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, Final

from choreo import frames
from choreo.logger import get_logger
from choreo.reaction import Reaction
from choreo.runtime import lifespan
from choreo.runtime.calling import in_threads, reaction_on

STALLED: Final = 70  # the exit code: EX_SOFTWARE of sysexits.h
MARGIN: Final = 5.0  # seconds beyond the longest deadline
NOTICED: Final = 1.0  # seconds
# A thread that waits for Python's lock asks for it every 5 ms and counts a voluntary switch each time; one whose
# process is stopped, or has no processor, counts none.
_ASKED: Final = 20  # times a second

_logger = get_logger()


@dataclass(frozen=True, slots=True)
class Standstill:
    """The last time that the loop did not turn: for how long, when it turned again, and whose fault it was, if known.

    `ended` is a time of `time.monotonic`.
    """

    seconds: float
    ended: float
    reaction: Reaction | None = None


@contextmanager
def watch(
    limit: Callable[[], float], *, end: Callable[[int], Any] = os._exit, noticed: float = NOTICED
) -> Iterator[Watch]:
    """Watch the running event loop. When it stands still for `limit()` seconds, call `end`."""
    found = Watch(asyncio.get_running_loop(), limit, end, noticed)
    found.start()
    try:
        yield found
    finally:
        found.stop()


class Watch:
    """Watches one event loop, from the thread that it runs in; see `watch`."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, limit: Callable[[], float], end: Callable[[int], Any], noticed: float
    ) -> None:
        self._loop = loop
        self._limit = limit
        self._end = end
        self._noticed = noticed
        self._pace = noticed / 4  # of the loop's signs of life, and of the looks at them
        self._thread_id = threading.get_ident()
        self._turned = time.monotonic()
        self._last: Standstill | None = None
        self._blamed: Reaction | None = None  # for the standstill under way
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._look, name="stall", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._turn()
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stopped.set()
        self._timer.cancel()

    async def standstill(self) -> Standstill | None:
        """Return the last standstill, once the thread has had its look at it; None if there was none."""
        now = time.monotonic()
        over = self._last is not None and now - self._last.ended < 2 * self._pace
        if over or now - self._turned > self._noticed:
            await asyncio.sleep(2 * self._pace)
        return self._last

    def _turn(self) -> None:
        now = time.monotonic()
        if now - self._turned > self._noticed:
            self._last, self._blamed = Standstill(now - self._turned, now, self._blamed), None
        self._turned = now
        self._timer = self._loop.call_later(self._pace, self._turn)

    def _look(self) -> None:
        try:
            self._look_on()
        except BaseException as error:
            # Unwatched the process must not go on: it would look alive when its loop stands still.
            _logger.critical("the watch over the event loop has failed", exc_info=error, next=f"end with {STALLED}")
            self._end(STALLED)
            raise

    def _look_on(self) -> None:
        looked, turned, still, told = time.monotonic(), self._turned, 0.0, 0.0
        shown: str | None = None
        asked = _switches()
        while not self._stopped.wait(self._pace):
            now, before, asked = time.monotonic(), asked, _switches()
            missed = now - looked
            kept = missed - self._pace >= self._noticed and asked - before > missed * _ASKED
            if kept:
                self._say_kept(missed, looked)
            if turned != self._turned:
                if told:
                    _logger.warning("event loop turns again", seconds=round(self._turned - turned, 1))
                turned, still, told, shown = self._turned, 0.0, 0.0, None
            else:
                # Only what this thread has seen: a process that was stopped as a whole is not to blame.
                still += min(missed, 2 * self._pace)
                if still >= max(2 * told, self._noticed):
                    told = still
                    culprit = self._culprit()
                    again = shown == culprit.get("stack")
                    shown = culprit.pop("stack", None) if again else culprit.get("stack")
                    _logger.warning("event loop blocked", seconds=round(now - turned, 1), **culprit)
                if still >= self._limit():
                    self._give_up(now - turned)
            looked = now

    def _say_kept(self, seconds: float, since: float) -> None:
        """Say that nothing of this process has run for `seconds`, and which reaction kept everything from it."""
        frame = self._frame()
        reaction = reaction_on(frame)
        culprit = _named(reaction) | frames.report(frame)
        if reaction is None:
            running = in_threads(since + self._pace, since + seconds - self._pace)
            reaction = running[0] if len(running) == 1 else None
            culprit = _named(reaction) or {"among": [f"{each.agent}.{each.name}" for each in running]}
        _logger.warning(
            "event loop blocked",
            seconds=round(seconds, 1),
            why="a call kept Python's global lock: no thread ran, no heartbeat was sent",
            **culprit,
        )
        last = self._last
        if last is not None and last.ended >= since + self._pace:  # the loop has got the lock first
            self._last = Standstill(last.seconds, last.ended, last.reaction or reaction)
        else:
            self._blamed = reaction

    def _give_up(self, seconds: float) -> None:
        _logger.critical(
            "event loop blocked beyond every deadline",
            seconds=round(seconds, 1),
            next=f"the process ends with {STALLED}, what it held is delivered again",
            **self._culprit(),
        )
        self._end(STALLED)

    def _culprit(self) -> dict[str, Any]:
        """Say who holds up the loop. Not knowing it must not end the watch: no other thread would notice."""
        try:
            return self._found()
        except Exception as error:  # noqa: BLE001 - see above
            return {"stack": f"not known: {error!r}"}

    def _found(self) -> dict[str, Any]:
        frame = self._frame()
        task = asyncio.current_task(self._loop)
        reaction = self._blamed = reaction_on(frame)
        named = _named(reaction)
        if not named and (agent := lifespan.agent_on(frame)) is not None:
            named = {"agent": agent.name, "lifespan": True}
        return named | {"task": task.get_name() if task is not None else None} | frames.report(frame)

    def _frame(self) -> FrameType | None:
        return sys._current_frames().get(self._thread_id)  # noqa: SLF001 - there is no other way to another's stack


def _named(reaction: Reaction | None) -> dict[str, Any]:
    return {} if reaction is None else {"agent": reaction.agent, "reaction": reaction.name}


def _switches() -> int:
    """Return how often this thread has given the processor away to wait for something."""
    try:
        return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
    except (
        AttributeError
    ):  # Linux only; elsewhere a call that keeps the lock is not told from a process that was stopped
        return 0
