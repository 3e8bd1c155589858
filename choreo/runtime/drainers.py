"""The tasks that carry an agent's deliveries, one after the other each: as many as can be under way at once."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Awaitable, Callable
from typing import Final

from choreo.logger import get_logger
from choreo.runtime.arrivals import Arrivals
from choreo.runtime.delivery import Courier
from choreo.runtime.tasks import Failed, owned
from choreo.transport import Delivery, Session

_SLICE: Final = 0.01  # seconds
_PARTS: Final = 4  # of what may be held: what is acknowledged goes out while there is more to do, and more comes
_DEFECT_PAUSE: Final = 15.0  # seconds

Arrived = tuple[Session, Delivery]

_logger = get_logger()


class Slice:
    """How long all drainers of a process together work until the event loop has to turn.

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
        """Begin again when the loop has turned, before any drainer goes on."""
        if not self._turning:
            self._turning = True
            asyncio.get_running_loop().call_soon(self._has_turned)

    def _has_turned(self) -> None:
        self._turning, self._turned = False, time.monotonic()


class Drainers:
    """The drainers of one agent, whose deliveries `courier` carries; the first is started by what arrives first.

    `concurrency`: how many reactions run at once. `held`: how many deliveries may be, each of which gets a drainer of
    its own when all wait for something. Each begins with a copy of `context`: who makes another one necessary may be in
    the middle of a reaction, which has its own. `pause` waits for that many seconds, or until the worker stops.
    `failed` is told when one ends that should not have: its place is lost, and what it held stays unsettled.
    """

    def __init__(
        self,
        courier: Courier,
        context: contextvars.Context,
        *,
        concurrency: int,
        held: int,
        slice: Slice,  # noqa: A002 - what it is
        pause: Callable[[float], Awaitable[None]],
        failed: Failed,
    ) -> None:
        self.courier = courier
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
        self.courier.ending.set()
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
        name = f"{self.courier.agent.name}-{len(self._tasks)}"
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
                    await self.courier.deliver(session, delivery, seat.leave, seat.hold)
                except Exception:
                    # Nothing of the user's code ends here, so this is a defect of choreo's. It must not cost a place in
                    # the prefetch window for ever, nor become a loop without a pause.
                    _logger.exception("delivery failed inside choreo", agent=self.courier.agent.name)
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
                if self.courier.ending.is_set():
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
