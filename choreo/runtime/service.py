"""A worker as a service: signals begin the drain, systemd and the health endpoint are told the truth of it."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from types import FrameType
from typing import Final

from choreo.agent import Agent
from choreo.config.settings import Settings
from choreo.logger import get_logger
from choreo.observe.health import Health
from choreo.observe.supervisor import Line
from choreo.observe.systemd import Notifier
from choreo.runtime import lifespan, loop_watchdog, policies
from choreo.runtime.calling import CHILD_CAME_BACK
from choreo.runtime.starting import Start
from choreo.runtime.tasks import Failed, owned, unsaid
from choreo.runtime.worker import GRACE, State, Worker
from choreo.transport import Connect, Management

DRAINED: Final = 0
OUT_OF_TIME: Final = 75
INTERRUPTED: Final = 130

_ENDING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# Seconds after the drain time, or the second signal, for code of the user's that does not let itself be cancelled. A
# supervisor kills after 5.
_GRACE: Final = GRACE + 0.5

_LONGEST_WAIT: Final = 60.0  # seconds for the port of the health endpoint

_logger = get_logger()


class Stop:
    """What the signals say. The first one begins the drain, the second ends at once; `interrupted`: by a person."""

    def __init__(self, begin: Callable[[], None], at_once: Callable[[], None]) -> None:
        self._begin = begin
        self._at_once = at_once
        self.count = 0
        self.interrupted = False

    def __call__(self, signum: int) -> None:
        """Take one signal."""
        self.count += 1
        self.interrupted = signum == signal.SIGINT
        _logger.info("signal", name=signal.Signals(signum).name, count=self.count)
        (self._begin if self.count == 1 else self._at_once)()

    def exit_code(self, *, drained: bool) -> int:
        """Return how the process ends."""
        if drained:
            return DRAINED
        return INTERRUPTED if self.count > 1 and self.interrupted else OUT_OF_TIME


async def serve(
    agents: Sequence[Agent],
    settings: Settings,
    connector: Callable[[Settings, str], Connect],
    start: Start | None = None,
    on_ready: Callable[[], None] = lambda: None,
    *,
    management: Management | None,
) -> int:
    """Run `agents` in this process until a signal ends it; return the exit code. Raises what Worker.run raises.

    `connector` returns what opens sessions, under a name that the broker shows. `start`: how the process began, if it
    has said something already. `on_ready` is called once, when all consume for the first time; then `management` is
    asked for policies that destroy, if there is one.
    """
    name = f"choreo {' '.join(agent.name for agent in agents)} {os.getpid()}"
    worker = Worker(agents, settings, connector(settings, name))
    loop = asyncio.get_running_loop()

    def end_within(seconds: float) -> None:
        """End by force what does not let itself be cancelled; what was finished until then still counts."""
        loop.call_later(seconds, lambda: os._exit(stop.exit_code(drained=worker.drained)))

    def drain() -> None:
        worker.stop()
        end_within(settings.drain + _GRACE)

    def at_once() -> None:
        worker.abort()
        end_within(_GRACE)

    stop = Stop(drain, at_once)
    start = start or Start("its agents are there")
    notifier = start.notifier
    asked: list[asyncio.Task[None]] = []  # ends with the loop at the latest

    def consuming() -> None:
        asked.append(owned(policies.report(agents, settings.namespace, management), "policies", unsaid))
        on_ready()

    worker.watch(_reporter(start, consuming))
    async with (
        signals(stop),
        endpoint(settings, stop, start, ready=lambda: (worker.ready, worker.status)),
    ):
        longest = max((reaction.timeout for agent in agents for reaction in agent.reactions), default=0.0)

        def deadline() -> float:
            """Return the longest time that the loop may stand still for what runs now."""
            return (lifespan.START_TIMEOUT if worker.entering else longest) + loop_watchdog.MARGIN

        if isinstance(notifier, Line):
            notifier.deadline = deadline
            loop.add_reader(0, _orphaned, stop)  # a pipe that ends when the supervisor does
        # From the start on: a message may be there before the worker is.
        async with watchdog(notifier, worker.fail):
            with loop_watchdog.watch(deadline) as watch:
                worker.standstill = watch.standstill
                try:
                    drained = await worker.run()
                except Exception as error:
                    if (told := lifespan.failure(error)) is not None:
                        raise told from error
                    raise
    return stop.exit_code(drained=drained)


@asynccontextmanager
async def signals(stop: Stop) -> AsyncIterator[None]:
    """Hand the signals that ask for an end to `stop`, SIGHUP of a closed terminal among them.

    Only those to this process. A loop's own handlers are told by a byte in a pipe, into which forked children write.
    """
    loop = asyncio.get_running_loop()

    def received(number: int, _frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(stop, number)

    for number in _ENDING:
        loop.add_signal_handler(number, _nothing)  # the byte wakes the loop up, whatever it waits for
        signal.signal(number, received)
    _handling.append((loop, threading.get_ident()))
    try:
        yield
    finally:
        _handling.clear()
        for number in _ENDING:
            loop.remove_signal_handler(number)


_handling: list[tuple[asyncio.AbstractEventLoop, int]] = []  # the loop that gets them, and its thread; or none
_unblocked = threading.local()  # the signal mask of a thread that is just forking


def _nothing() -> None:
    pass


def _before_fork() -> None:
    """Hold the signals back: what reaches the child before it has handlers of its own, Python would drop."""
    if _handling:
        _unblocked.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)


def _after_fork() -> None:
    mask = _unblocked.__dict__.pop("mask", None)
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _in_child() -> None:
    """Have the signals do in a forked child what they do in any process, and have it never be a second worker."""
    while _handling:
        loop, thread = _handling.pop()
        if thread == threading.get_ident():
            # Should the child of a reaction ever give the loop its turn, that is the end of it.
            loop.call_soon(os._exit, CHILD_CAME_BACK)
        signal.set_wakeup_fd(-1)
        for number in _ENDING:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    _after_fork()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_in_child)


def _alive() -> tuple[bool, str]:
    return True, "alive"


@asynccontextmanager
async def endpoint(
    settings: Settings,
    stop: Stop,
    start: Start,
    ready: Callable[[], tuple[bool, str]],
    live: Callable[[], tuple[bool, str]] = _alive,
) -> AsyncIterator[None]:
    """Serve /live and /ready where that is wanted. That an answer comes at all shows that the loop turns.

    A port that is in use may be that of the worker that this one replaces: it has as long as a broker has at the start.
    """
    port = start.health_port(settings)
    if port is None:
        yield
        return
    health = Health(live, ready, settings.health_host, port)
    if sockets := start.sockets():
        await health.take(sockets)
    else:
        await health.start(min(settings.wait, _LONGEST_WAIT), given_up=lambda: stop.count > 0)
    try:
        yield
    finally:
        await health.stop()


@asynccontextmanager
async def watchdog(notifier: Notifier, failed: Failed) -> AsyncIterator[None]:
    """Tell whoever watches, as often as they ask for, that the loop turns. `failed`: see `tasks`."""

    async def ping(interval: float) -> None:
        while True:
            notifier.watchdog()
            await asyncio.sleep(interval)

    task = owned(ping(notifier.watchdog_interval), "watchdog", failed) if notifier.watchdog_interval else None
    try:
        yield
    finally:
        if task is not None:
            task.cancel()


def _reporter(start: Start, on_ready: Callable[[], None]) -> Callable[[Worker], None]:
    announced, notifier = False, start.notifier

    def report(worker: Worker) -> None:
        nonlocal announced
        start.going_on()
        if worker.ready and not announced:
            announced = True
            start.over()
            notifier.ready()
            on_ready()
        if worker.state is State.DRAINING:
            notifier.stopping()
        notifier.status(worker.status)

    return report


def _orphaned(stop: Stop) -> None:
    """Drain when the supervisor is gone, however it went: nobody else would ever stop this process."""
    if not os.read(0, 1024):
        asyncio.get_running_loop().remove_reader(0)
        stop(signal.SIGTERM)
