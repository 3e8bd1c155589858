"""What has arrived for one agent and has not begun, and the tasks that take it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")
Hold = Callable[[asyncio.Future[None], float], None]


def no_place(_over: asyncio.Future[None], _at_most: float) -> None:
    """Hold nothing; see `Seat.hold`."""


class Arrivals(Generic[T]):
    """A queue for a pool of tasks, of which `places` may be busy at once.

    One task is woken at a time: a task that never waits takes `share` in a row, without a turn of the loop for each.
    Whoever takes one and leaves more behind wakes the next, which goes on when the first one waits for something. When
    all tasks wait for something, `more` is called to start another one, and may decline.
    """

    def __init__(self, places: int, share: int, more: Callable[[], bool]) -> None:
        self._free = places
        self._share = share
        self._more = more
        self._taken = 0  # since the loop has turned
        self._resting = 0  # tasks that let the loop turn, and then go on
        self._arrived: deque[T] = deque()
        self._idle: deque[asyncio.Future[None]] = deque()
        self._woken = False  # one has been, or has been started, and has not begun yet
        self._closed = False

    def __len__(self) -> int:
        """How many wait to be taken."""
        return len(self._arrived)

    def put(self, each: T) -> None:
        """Add `each`."""
        self._arrived.append(each)
        if not self._woken:
            self._wake()

    def seat(self) -> Seat[T]:
        """Return what a task of the pool takes with; it asks for it when it begins."""
        self._woken = False
        return Seat(self)

    def take_all(self) -> list[T]:
        """Return what nobody has taken, and forget it."""
        taken = list(self._arrived)
        self._arrived.clear()
        return taken

    def close(self) -> None:
        """Let everybody who waits go home. What is added from now on is taken by nobody."""
        self._closed = True
        while self._idle:
            turn = self._idle.popleft()
            if not turn.done():
                turn.set_result(None)

    def _has_turned(self) -> None:
        self._taken = 0

    def _wake(self) -> None:
        if self._woken or self._closed or self._free < 1 or not self._arrived:
            return
        while self._idle:
            turn = self._idle.popleft()
            if not turn.done():  # else it was cancelled, and its task has not learned of it yet
                turn.set_result(None)
                self._woken = True
                return
        self._woken = self._more()

    def _hold(self, over: asyncio.Future[None], at_most: float) -> None:
        self._free -= 1

        def give_back(_: object = None) -> None:
            if timer.cancelled():
                return
            timer.cancel()
            self._free += 1
            self._wake()

        timer = asyncio.get_running_loop().call_later(at_most, give_back)
        over.add_done_callback(give_back)

    async def _turn(self) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._idle.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # woken and cancelled in one turn of the loop: somebody else has to take it
                self._woken = False
                self._wake()
            elif turn in self._idle:
                self._idle.remove(turn)
            raise
        self._woken = False


# ruff: noqa: SLF001 - pool and seat are two halves of one thing
class Seat(Generic[T]):
    """One task's place in the pool. It is free while the task waits for the broker and none of the user's code runs."""

    __slots__ = ("_arrivals", "_busy")

    def __init__(self, arrivals: Arrivals[T]) -> None:
        self._arrivals = arrivals
        self._busy = False

    @property
    def spent(self) -> bool:
        """Whether the pool has had its share in this turn of the loop, so that the task has to rest."""
        return self._arrivals._taken >= self._arrivals._share

    async def take(self) -> T | None:
        """Wait for the next one and a free place. None: it was closed.

        While another task rests nobody is needed: whoever took one would have to rest as well, after each.
        """
        pool = self._arrivals
        while not pool._closed:
            if not pool._resting and (each := self.take_now()) is not None:
                return each
            await pool._turn()
        return None

    def take_now(self) -> T | None:
        """Return the next one, if there is one and a free place: for a task that has just ended with another.

        It keeps its place for it: to give it away would wake another task, which finds none.
        """
        pool = self._arrivals
        free = pool._free + self._busy
        if pool._closed or not pool._arrived or free < 1:
            self.leave()
            return None
        pool._free = free - 1
        self._busy = True
        if not pool._taken:
            asyncio.get_running_loop().call_soon(pool._has_turned)
        pool._taken += 1
        each = pool._arrived.popleft()
        if not pool._woken:
            pool._wake()
        return each

    async def rest(self) -> None:
        """Let the event loop turn once."""
        pool = self._arrivals
        pool._resting += 1
        try:
            await asyncio.sleep(0)
        finally:
            pool._resting -= 1
            pool._wake()

    def hold(self, over: asyncio.Future[None], at_most: float) -> None:
        """Keep one place more from everybody, for what goes on besides: until `over`, `at_most` seconds.

        That may be one more than there are, while who asks for it has a place too.
        """
        self._arrivals._hold(over, at_most)

    def leave(self) -> None:
        """Give the place to somebody else, if it has not been given yet."""
        if self._busy:
            self._busy = False
            self._arrivals._free += 1
            self._arrivals._wake()
