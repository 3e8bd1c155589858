"""A thread that sees when the event loop stands still, says what holds it up, and in the end ends the process.

While the loop does not turn, no deadline can fire, nothing is acknowledged and no heartbeat is sent. A function that
keeps Python's lock for itself, such as a long call into C, keeps this thread from looking as well; it has its say
afterwards. Against that, systemd's watchdog and /live help.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

import structlog

from choreo.runtime.calling import reaction_on

STALLED: Final = 70  # the exit code: EX_SOFTWARE of sysexits.h
MARGIN: Final = 5.0  # seconds beyond the longest deadline
NOTICED: Final = 1.0  # seconds
_FRAMES: Final = 20  # of the stack, the innermost ones

_logger = structlog.get_logger()


@contextmanager
def watch(
    limit: float, *, armed: Callable[[], bool], end: Callable[[int], Any] = os._exit, noticed: float = NOTICED
) -> Iterator[None]:
    """Watch the running event loop. When it stands still for `limit` seconds while `armed`, call `end`."""
    stall = _Stall(asyncio.get_running_loop(), limit, armed, end, noticed)
    stall.start()
    try:
        yield
    finally:
        stall.stop()


class _Stall:
    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        limit: float,
        armed: Callable[[], bool],
        end: Callable[[int], Any],
        noticed: float,
    ) -> None:
        self._loop = loop
        self._limit = limit
        self._armed = armed
        self._end = end
        self._noticed = noticed
        self._pace = noticed / 4  # of the loop's signs of life, and of the looks at them
        self._thread_id = threading.get_ident()
        self._turned = time.monotonic()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._look, name="stall", daemon=True)

    def start(self) -> None:
        self._turn()
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._timer.cancel()

    def _turn(self) -> None:
        self._turned = time.monotonic()
        self._timer = self._loop.call_later(self._pace, self._turn)

    def _look(self) -> None:
        looked, turned, still, told = time.monotonic(), self._turned, 0.0, 0.0
        while not self._stopped.wait(self._pace):
            now = time.monotonic()
            if turned != self._turned:
                if told:
                    _logger.warning("event loop turns again", seconds=round(self._turned - turned, 1))
                turned, still, told = self._turned, 0.0, 0.0
            else:
                # Only what this thread has seen: a process that was stopped as a whole is not to blame.
                still += min(now - looked, 2 * self._pace)
                if still >= max(2 * told, self._noticed):
                    told = still
                    _logger.warning("event loop blocked", seconds=round(now - turned, 1), **self._culprit())
                if still >= self._limit and self._armed():
                    self._give_up(now - turned)
            looked = now

    def _give_up(self, seconds: float) -> None:
        _logger.critical(
            "event loop blocked beyond every deadline",
            seconds=round(seconds, 1),
            next=f"the process ends with {STALLED}, what it held is delivered again",
            **self._culprit(),
        )
        self._end(STALLED)

    def _culprit(self) -> dict[str, Any]:
        frame = sys._current_frames().get(self._thread_id)  # noqa: SLF001 - there is no other way to another's stack
        task = asyncio.current_task(self._loop)
        culprit = {"task": task.get_name() if task is not None else None, "stack": _stack(frame)}
        reaction = reaction_on(frame)
        return culprit if reaction is None else {"agent": reaction.agent, "reaction": reaction.name} | culprit


def _stack(frame: FrameType | None) -> str:
    if frame is None:
        return ""
    lines = traceback.extract_stack(frame)[-_FRAMES:]
    return " > ".join(f"{line.filename}:{line.lineno} {line.name}" for line in lines)
