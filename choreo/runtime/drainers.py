"""The tasks that carry an agent's deliveries, one after the other each: as many as can be under way at once."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from choreo.runtime.arrivals import Arrivals
from choreo.runtime.delivery import Courier
from choreo.transport import Delivery, Session

_SLICE: Final = 0.01  # seconds
_PARTS: Final = 4  # of what may be held: what is acknowledged goes out while there is more to do, and more comes
_DEFECT_PAUSE: Final = 15.0  # seconds

Arrived = tuple[Session, Delivery]

_logger = structlog.get_logger()


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
        """Begin anew when the loop has turned, before any drainer goes on."""
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
    ) -> None:
        self.courier = courier
        self.arrived: Arrivals[Arrived] = Arrivals(concurrency, max(1, held // _PARTS), self._another)
        self._held = held
        self._slice = slice
        self._pause = pause
        self._context = context
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def running(self) -> list[asyncio.Task[None]]:
        """All that have not ended."""
        return [task for task in self._tasks if not task.done()]

    def cancel(self) -> None:
        """Cancel what still runs; each hands its delivery back."""
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
        self._tasks.append(asyncio.create_task(self._work(), name=name, context=self._context.copy()))
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
                    await self.courier.deliver(session, delivery, seat.leave)
                except Exception:
                    # Nothing of the user's code ends here, so this is a defect of choreo's. It must not cost a place in
                    # the prefetch window for ever, nor become a loop without a pause.
                    _logger.exception("delivery failed inside choreo", agent=self.courier.agent.name)
                    await self._pause(_DEFECT_PAUSE)
                    delivery.consumer.requeue(delivery)
                if task.cancelling():
                    await asyncio.sleep(0)  # a reaction has cancelled itself and ended: it must not hit the next one
                if seat.spent or self._slice.over:
                    self._slice.renew()
                    await seat.rest()
                if contextvars.copy_context() != self._context:
                    seat.leave()
                    self._succeed(task)  # what a reaction has left there is not meant for others
                    return
                following = seat.take_now()
            except asyncio.CancelledError:
                if self.courier.ending.is_set():
                    raise
                while task.cancelling():  # somebody's timer that fired late, not the worker
                    task.uncancel()

    def _succeed(self, task: asyncio.Task[None]) -> None:
        """Have another one go on in place of `task`, with a context of its own."""
        if task in self._tasks:  # else all are being ended
            self._tasks.remove(task)
            self._another()
