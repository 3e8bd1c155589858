"""An asyncio event loop whose time is its own: when nothing can run, it is the time of the next timer.

An hour costs nothing, and the same program does the same in the same order each time. Threads do not spoil that: while
one that the loop has started is at work, the loop waits for it and time stands still.
"""

from __future__ import annotations

import asyncio
import math
import selectors
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextvars import Context
from pathlib import Path
from types import FrameType
from typing import Any, Final, TypeVar, TypeVarTuple, Unpack

from choreo.errors import NothingLeft
from choreo.logger import get_logger

HORIZON: Final = 366 * 86_400.0  # seconds of virtual time
_THREAD_PATIENCE: Final = 5.0  # seconds, real ones
_OUTSIDE_PATIENCE: Final = 0.05  # seconds, real ones

_ASYNCIO: Final = str(Path(asyncio.__file__).parent)

_logger = get_logger()

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time, which begins with 0: ``asyncio.Runner(loop_factory=VirtualLoop)``.

    A function in an executor runs while the loop stands still, one at a time. It may call back into the loop, which
    then turns; one that hangs for five real seconds is no longer waited for.
    `patience`: real seconds that sockets, and threads that the loop knows nothing of, get before time moves; by default
    0.05 while there are sockets, else none.
    """

    def __init__(self, *, patience: float | None = None) -> None:
        self._patience = patience
        self._now = 0.0
        self._word = threading.Event()  # somebody has called from another thread
        self._threads = 0  # at work, and waited for
        self._asked = False  # by one of them, which may wait for the answer
        self._watchers: list[tuple[float, asyncio.Future[bool]]] = []
        super().__init__(_Selector(self))
        # asyncio adds it to the time to see what is due, and its usual nanosecond vanishes in the floats of a month.
        self._clock_resolution = 1e-6
        self._own_files = len(self._selector_map)

    def time(self) -> float:
        """Return the virtual time, in seconds."""
        return self._now

    def call_later(
        self, delay: float, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """As in every loop: it is later, also when `delay` is lost in the last bit of the time."""
        when = self._now + delay
        if when == self._now and delay > 0:
            when = math.nextafter(when, math.inf)
        return self.call_at(when, callback, *args, context=context)

    async def quiet(self) -> None:
        """Return when nothing can run any more at this point of time."""
        await self._watch(float("-inf"))

    async def later(self) -> bool:
        """Return when time has moved, and nothing can run any more. False: it does not move, no timer is set."""
        return await self._watch(self._now)

    def call_soon_threadsafe(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """As in every loop; one that waits for a thread goes on."""
        handle = super().call_soon_threadsafe(callback, *args, context=context)
        self._asked = self._threads > 0
        self._word.set()
        return handle

    def run_in_executor(self, executor: Executor | None, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        """Run `func` in a thread of `executor` as soon as it is its turn, and nothing else meanwhile."""
        answer: asyncio.Future[T] = self.create_future()
        self.call_soon(self._begin, answer, executor, func, args)
        return answer

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # noqa: ARG002 - asyncio's name
        """Let go of the threads; those that hang are not waited for."""
        executor, self._default_executor = getattr(self, "_default_executor", None), None
        if executor is not None:
            executor.shutdown(wait=False, cancel_futures=True)

    def _begin(
        self, answer: asyncio.Future[T], executor: Executor | None, func: Callable[..., T], args: tuple[Any, ...]
    ) -> None:
        if answer.cancelled():
            return
        self._word.clear()
        self._threads += 1
        running = super().run_in_executor(executor, func, *args)
        running.add_done_callback(lambda _: self._ended(running, answer))
        # A thread may be done before asyncio looks. From Python 3.13.1 on nobody calls from another thread then.
        if not running.done():
            self._word.wait(_THREAD_PATIENCE)

    def _ended(self, running: asyncio.Future[T], answer: asyncio.Future[T]) -> None:
        self._threads = max(0, self._threads - 1)
        self._asked = False
        error = None if running.cancelled() else running.exception()
        if answer.done():
            return
        if running.cancelled():
            answer.cancel()
        elif error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(running.result())

    async def _watch(self, since: float) -> bool:
        future: asyncio.Future[bool] = self.create_future()
        self._watchers.append((since, future))
        return await future

    @property
    def _selector_map(self) -> Mapping[Any, Any]:
        selector: selectors.BaseSelector = self._selector  # type: ignore[attr-defined]
        return selector.get_map()

    def _idle(self, look: Callable[[float], list[Any]], timeout: float | None) -> list[Any]:
        """Return what came in from outside, or tell those who wait for quiet, or let time move."""
        if found := look(self._outside()):
            return found
        if self._threads:
            if found := look(_OUTSIDE_PATIENCE if self._asked else _THREAD_PATIENCE):
                return found
            if not self._asked:
                _logger.warning("thread hangs", seconds=_THREAD_PATIENCE, next="time moves on without it")
                self._threads = 0
        if self._tell(self._now):
            return []
        if timeout is None:
            if self._tell(float("inf"), moved=False):
                return []
            raise NothingLeft(f"nothing is left to do, {self._awaited()}", "the test waits for what nobody will do")
        self._now += timeout
        if self._now > HORIZON:
            raise NothingLeft(f"a year of virtual time has passed, {self._awaited()}", "something waits for ever")
        return []

    def _outside(self) -> float:
        if self._patience is not None:
            return self._patience
        return _OUTSIDE_PATIENCE if len(self._selector_map) > self._own_files else 0.0

    def _tell(self, now: float, *, moved: bool = True) -> bool:
        """Wake those who have waited since before `now`. Say whether there were any."""
        told = [each for each in self._watchers if each[0] < now]
        self._watchers = [each for each in self._watchers if each[0] >= now]
        waiting = [future for _, future in told if not future.done()]
        for future in waiting:
            future.set_result(moved)
        return bool(waiting)

    def _awaited(self) -> str:
        """Say what the tasks wait for that are still there."""
        places = []
        for task in asyncio.all_tasks(self):
            frames = [each for each in _frames(task.get_coro()) if not each.f_code.co_filename.startswith(_ASYNCIO)]
            if frames:
                code, line = frames[-1].f_code, frames[-1].f_lineno
                places.append(f"{task.get_name()} waits in {code.co_filename}:{line} {code.co_name}")
        return "and " + "; ".join(sorted(places)[:10]) if places else "and no task waits"


def _frames(awaited: Any) -> Iterator[FrameType]:
    """Yield the frames of a coroutine that waits, the innermost last."""
    while (frame := getattr(awaited, "cr_frame", None)) is not None:
        yield frame
        awaited = awaited.cr_await


class _Selector(selectors.DefaultSelector):
    """Asked to wait, it asks the loop."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return what is ready; with a timeout other than 0, let virtual time pass."""
        look = super().select
        return look(0) if timeout is not None and timeout <= 0 else self._loop._idle(look, timeout)  # noqa: SLF001
