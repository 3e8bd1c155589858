"""What has arrived for one agent and has not begun, and the tasks that run it: as many as can be under way at once."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, Generic, TypeVar

from choreo.logger import get_logger
from choreo.runtime.delivery import DeliveryProcessor
from choreo.runtime.tasks import Failed, owned
from choreo.transport import Delivery, Session

_SLICE: Final = 0.01  # seconds
_PARTS: Final = 4  # of what may be held: what is acknowledged goes out while there is more to do, and more comes
_DEFECT_PAUSE: Final = 15.0  # seconds

T = TypeVar("T")
Arrived = tuple[Session, Delivery]

_logger = get_logger()


class Slice:
    """How long all tasks of a process together work until the event loop has to turn.

    Reactions that never wait keep it from heartbeats and acknowledgements.
    """

    def __init__(self) -> None:
        self._turned = 0.0
        self._turning = False

    @property
    def over(self) -> bool:
        """Whether the loop has to turn now."""
        return time.monotonic() - self._turned > _SLICE

    def renew(self) -> None:
        """Begin again when the loop has turned, before any task goes on."""
        if not self._turning:
            self._turning = True
            asyncio.get_running_loop().call_soon(self._has_turned)

    def _has_turned(self) -> None:
        self._turning, self._turned = False, time.monotonic()


class TaskPool:
    """The tasks of one agent, whose deliveries `processor` carries; the first is started by what arrives first.

    `concurrency`: how many reactions run at once. `held`: how many deliveries may be, each of which gets a task of
    its own when all wait for something. Each begins with a copy of `context`: who makes another one necessary may be in
    the middle of a reaction, which has its own. `pause` waits for that many seconds, or until the worker stops.
    `failed` is told when one ends that should not have: its place is lost, and what it held stays unsettled.
    """

    def __init__(
        self,
        processor: DeliveryProcessor,
        context: contextvars.Context,
        *,
        concurrency: int,
        held: int,
        slice: Slice,  # noqa: A002 - what it is
        pause: Callable[[float], Awaitable[None]],
        failed: Failed,
    ) -> None:
        self.processor = processor
        self.arrived: Arrivals[Arrived] = Arrivals(concurrency, max(1, held // _PARTS), self._another)
        self._held = held
        self._slice = slice
        self._pause = pause
        self._failed = failed
        self._context = context
        self._size = len(context)
        self._values = tuple((variable.get, value) for variable, value in context.items())
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def running(self) -> list[asyncio.Task[None]]:
        """All that have not ended."""
        return [task for task in self._tasks if not task.done()]

    def cancel(self) -> None:
        """Cancel what still runs; each requeues its delivery."""
        self.processor.ending.set()
        self.arrived.close()  # else whoever is cancelled wakes the next, and starts one more
        for task in self.running:
            task.cancel()

    def forget(self) -> None:
        """Know none of them any more. One may not let itself be cancelled: that is tried once."""
        self._tasks.clear()

    def _another(self) -> bool:
        """Start one more, unless there is one for each delivery that may be held."""
        if len(self._tasks) >= self._held:
            return False
        name = f"{self.processor.agent.name}-{len(self._tasks)}"
        self._tasks.append(owned(self._work(), name, self._failed, context=self._context.copy()))
        return True

    async def _work(self) -> None:
        seat = self.arrived.seat()
        task = asyncio.current_task()
        assert task is not None
        following: Arrived | None = None
        while True:
            try:
                if (following := following or await seat.take()) is None:
                    return
                (session, delivery), following = following, None
                try:
                    await self.processor.deliver(session, delivery, seat.leave, seat.hold)
                except Exception:
                    # Nothing of the user's code ends here, so this is a defect of choreo's. It must not cost a place in
                    # the prefetch window for ever, nor become a loop without a pause.
                    _logger.exception("delivery failed inside choreo", agent=self.processor.agent.name)
                    try:
                        await self._pause(_DEFECT_PAUSE)
                    finally:
                        delivery.consumer.requeue(delivery)
                if task.cancelling():
                    await asyncio.sleep(0)  # a reaction has cancelled itself and ended: it must not hit the next one
                if seat.spent or self._slice.over:
                    self._slice.renew()
                    await seat.rest()
                if not self._clean():
                    seat.leave()
                    self._succeed(task)  # what a reaction has left there is not meant for others
                    return
                following = seat.take_now()
            except asyncio.CancelledError:
                seat.leave()
                if self.processor.ending.is_set():
                    raise
                while task.cancelling():  # somebody's timer that fired late, not the worker
                    task.uncancel()

    def _clean(self) -> bool:
        """Say whether the task's context has still what it began with, and nothing else.

        The very same: to compare two values is code of the user's, which may fail, or find them alike. A variable that
        is there cannot be taken away, so where their number is the same, so are they [0.3 us, == of contexts 0.1].
        """
        if len(contextvars.copy_context()) != self._size:
            return False
        for get, value in self._values:  # noqa: SIM110 - a generator would take twice as long
            if get() is not value:
                return False
        return True

    def _succeed(self, task: asyncio.Task[None]) -> None:
        """Have another one go on in place of `task`, with a context of its own."""
        if task in self._tasks:  # else all are being ended
            self._tasks.remove(task)
            self._another()


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
