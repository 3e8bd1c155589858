"""One timer for many deadlines. Nearly all publishes have the same timeout, so they end in the order they began in."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Generic, Protocol, TypeVar

_FEW: Final = 1024


class Bounded(Protocol):
    """What has a deadline until it is answered."""

    @property
    def answer(self) -> asyncio.Future[Any]:
        """Done when the deadline no longer matters."""
        ...


T = TypeVar("T", bound=Bounded)


class Deadlines(Generic[T]):
    """Calls `passed` with whatever has no answer `timeout` seconds after it was added.

    A timer of its own for each costs ten times as much as its place here.
    """

    def __init__(self, timeout: float, passed: Callable[[T, float], None]) -> None:
        self.timeout = timeout
        self._passed = passed
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[float, T]] = deque()
        self._most = _FEW  # kept before those that have their answer are looked for
        self._timer: asyncio.TimerHandle | None = None

    def add(self, each: T) -> None:
        """Begin the time of `each`, and forget what has been answered since."""
        waiting = self._waiting
        while waiting and waiting[0][1].answer.done():
            waiting.popleft()
        if len(waiting) >= self._most:
            # Behind one without an answer they stand for as long as it may wait. Seldom enough to cost nothing.
            waiting = self._waiting = deque(one for one in waiting if not one[1].answer.done())
            self._most = max(_FEW, 2 * len(waiting))
        deadline = self._loop.time() + self.timeout
        waiting.append((deadline, each))
        if self._timer is None:
            self._timer = self._loop.call_at(deadline, self._look)

    @property
    def running(self) -> bool:
        """Whether it may still have to call."""
        return self._timer is not None

    def stop(self) -> None:
        """Forget everything: all of it has been answered otherwise."""
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        now = self._loop.time()
        while self._waiting:
            deadline, each = self._waiting[0]
            if each.answer.done():
                self._waiting.popleft()
            elif deadline <= now:
                self._waiting.popleft()
                self._passed(each, self.timeout)
            else:
                self._timer = self._loop.call_at(deadline, self._look)
                return
