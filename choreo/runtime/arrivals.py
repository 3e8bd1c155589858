"""What has arrived for one agent and has not begun, and the tasks that wait for it."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Arrivals(Generic[T]):
    """A queue for a pool of tasks, of which it wakes one at a time.

    A task that never waits takes everything there is, without a turn of the loop for each. Whoever takes one and leaves
    more behind wakes the next task, which goes on when the first one waits for something.
    """

    def __init__(self) -> None:
        self._arrived: deque[T] = deque()
        self._idle: deque[asyncio.Future[None]] = deque()
        self._woken = False  # one has been, and has not begun yet
        self._closed = False

    def put(self, each: T) -> None:
        """Add `each`."""
        self._arrived.append(each)
        self._wake()

    async def get(self) -> T | None:
        """Wait for the next one. None: it was closed."""
        while not self._arrived:
            if self._closed:
                return None
            turn = asyncio.get_running_loop().create_future()
            self._idle.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.cancelled():
                    self._forget(turn)
                else:  # woken and cancelled in one turn of the loop: somebody else has to take it
                    self._woken = False
                    self._wake()
                raise
            self._woken = False
        each = self._arrived.popleft()
        if self._arrived:
            self._wake()
        return each

    def take_all(self) -> list[T]:
        """Return what nobody has taken, and forget it."""
        taken = list(self._arrived)
        self._arrived.clear()
        return taken

    def close(self) -> None:
        """Let everybody who waits go home."""
        self._closed = True
        while self._idle:
            self._woken = False
            self._wake()

    def _wake(self) -> None:
        while self._idle and not self._woken:
            turn = self._idle.popleft()
            if not turn.done():  # cancelled, and its task has not learned of it yet
                turn.set_result(None)
                self._woken = True

    def _forget(self, turn: asyncio.Future[None]) -> None:
        if turn in self._idle:
            self._idle.remove(turn)
