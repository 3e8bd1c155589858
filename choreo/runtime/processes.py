"""Several processes of the same agents under one supervisor: one ready state, signals passed on, restarts with backoff.

Each process is `choreo run` itself and gives a sign of life every second, by which it also says how long its event loop
may stand still. One that hangs beyond that is ended and started again alone, with its stacks in the log.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

from choreo.config.settings import Settings
from choreo.errors import BrokerUnreachable, ConfigurationError, InternalError, UsageError
from choreo.logger import get_logger
from choreo.observe import supervisor
from choreo.runtime.service import Stop, endpoint, signals, watchdog
from choreo.runtime.starting import Start
from choreo.runtime.tasks import owned
from choreo.runtime.worker import SUBSCRIBING

# A process that ends with one of these before it was ever ready would end so again: nothing is gained by a restart.
_HOPELESS: Final = frozenset((UsageError.exit_code, ConfigurationError.exit_code, BrokerUnreachable.exit_code))
_FIRST_PAUSE: Final = 0.2  # seconds before a restart; doubled each time, forgotten after a minute of good running
_LONGEST_PAUSE: Final = 30.0
_GOOD_RUN: Final = 60.0
_LOOK: Final = 0.5  # seconds between two looks at whether all are alive
_SILENT: Final = 5.0  # seconds without a sign of life, after which a process is said not to be alive
_MARGIN: Final = 5.0  # seconds on top of a process's own deadline, for it to end by itself
_LAST_WORDS: Final = 3.0  # seconds for its stacks before a process that hangs is killed
_STACKS: Final = 65_536  # bytes, as much as a pipe holds
_GRACE: Final = 5.0  # seconds on top of the drain time before a process that does not end is killed

_logger = get_logger()


class _Process:
    """One process, and the next one in its place."""

    def __init__(self, number: int, command: Sequence[str]) -> None:
        self.number = number
        self.ready = False
        self.status = "starting"
        self.was_ready = False
        self.had_begun = False  # to take messages: what ends it from then on may be one of them
        self.left_out: list[str] = []  # agents that it does not run
        self.stacks = ""  # where it stood when it ended, if it died of a fault or an abort
        self._command = command
        self._last_sign: float | None = None  # none before its event loop turns
        self._deadline = 0.0
        self._ending = False
        self._child: asyncio.subprocess.Process | None = None

    @property
    def silent(self) -> float:
        """For how many seconds a process that runs has given no sign of life."""
        return time.monotonic() - self._last_sign if self._last_sign is not None else 0.0

    async def run(self, stopping: asyncio.Event) -> int:
        """Run once to the end; return the exit code, negative for a signal."""
        loop = asyncio.get_running_loop()
        self.ready = self.was_ready = self.had_begun = self._ending = False
        self.status, self.stacks, self.left_out = "starting", "", []
        signs, its_signs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        stacks, its_stacks = os.pipe()
        os.set_blocking(its_stacks, False)  # what does not fit is cut off, and nobody waits for it
        signs.settimeout(0)
        environment = {**os.environ, supervisor.VARIABLE: f"{its_signs.fileno()},{its_stacks}"}
        for name in ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"):  # are the supervisor's own
            environment.pop(name, None)
        try:
            # A session of its own: Ctrl-C in a terminal reaches the supervisor alone, which passes on one signal.
            self._child = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                env=environment,
                start_new_session=True,
                pass_fds=(its_signs.fileno(), its_stacks),
            )
        except BaseException:
            os.close(stacks)
            signs.close()
            raise
        finally:
            its_signs.close()
            os.close(its_stacks)
        if stopping.is_set():  # said while the process was made, when there was nobody to pass it on to
            self.signal(signal.SIGTERM)
        loop.add_reader(signs, self._notified, signs)
        try:
            return await self._child.wait()
        finally:
            loop.remove_reader(signs)
            signs.close()
            os.set_blocking(stacks, False)
            with open(stacks, "rb", buffering=0) as pipe:  # noqa: PTH123, ASYNC230 - a descriptor; it does not block
                self.stacks = (pipe.read(_STACKS) or b"").decode(errors="replace").strip()
            self.ready, self.status, self._last_sign = False, "stopped", None

    def signal(self, number: int) -> None:
        """Pass a signal on."""
        if self._child is not None and self._child.returncode is None:
            self._child.send_signal(number)

    async def end_if_hung(self, patience: float) -> None:
        """End the process when it has hung beyond its own deadline and some seconds, or beyond `patience`."""
        if self._ending or self.silent <= min(self._deadline + _MARGIN, patience):
            return
        self._ending = True
        _logger.error(
            "process hangs",
            process=self.number,
            seconds=round(self.silent, 1),
            status=self.status,
            next="it is ended and started again, its stacks follow",
        )
        self.signal(signal.SIGABRT)
        self.signal(signal.SIGCONT)  # one that was stopped hears of it only then
        await asyncio.sleep(_LAST_WORDS)
        if self._ending:
            self.signal(signal.SIGKILL)

    def _notified(self, signs: socket.socket) -> None:
        for line in signs.recv(4096).decode(errors="replace").splitlines():
            name, _, value = line.partition("=")
            if name == "READY":
                self.ready = self.was_ready = True
            elif name == "STOPPING":
                self.ready = False
            elif name == "WATCHDOG":
                self._last_sign = time.monotonic()
            elif name == supervisor.DEADLINE:
                self._deadline = float(value)
            elif name == supervisor.LEFT_OUT:
                self.left_out = value.split(", ")
            elif name == "STATUS":
                self.status = value
                self.had_begun = self.had_begun or value.startswith(SUBSCRIBING)
                self.ready = self.was_ready and value.startswith("consuming")


class Supervisor:
    """Keeps a process of each of `commands` running until a signal ends them all.

    `on_ready` is called once, when all are ready for the first time, with the names of agents that they left out.
    """

    def __init__(
        self,
        commands: Sequence[Sequence[str]],
        settings: Settings,
        start: Start,
        watched: Sequence[Path] = (),
        on_ready: Callable[[Sequence[str]], None] = lambda _: None,
    ) -> None:
        self._commands = commands
        self._settings = settings
        self._watched = watched
        self._on_ready = on_ready
        self._processes: list[_Process] = []
        self._stopping = asyncio.Event()
        self._hopeless: int | None = None
        self._reloading = False
        self._changed = asyncio.Event()
        self._start = start
        self._notifier = start.notifier

    async def run(self) -> int:
        """Return the exit code: 0 when all processes drained, else the first one that says why not."""
        stop = Stop(self._drain, lambda: self._signal(signal.SIGKILL))
        self._processes = [_Process(number, command) for number, command in enumerate(self._commands, start=1)]
        async with (
            signals(stop),
            endpoint(
                self._settings,
                stop,
                self._start,
                ready=lambda: (self.ready, self.status),
                live=self._live,
            ),
            watchdog(self._notifier, self._fail),
            self._background(),
        ):
            codes = await asyncio.gather(*(self._keep(process) for process in self._processes))
        if self._hopeless is not None:
            return self._hopeless
        return next((code if code > 0 else stop.exit_code(drained=False) for code in codes if code), 0)

    @property
    def ready(self) -> bool:
        """Whether every process is, and none of them hangs."""
        return all(process.ready for process in self._processes) and self._live()[0]

    @property
    def status(self) -> str:
        """How many processes are ready, and what the first other one says."""
        count = sum(process.ready for process in self._processes)
        other = next((f"; process {each.number}: {each.status}" for each in self._processes if not each.ready), "")
        hung = "" if self._live()[0] else f"; {self._live()[1]}"
        return f"{count} of {len(self._commands)} processes are ready{hung}{other}"

    async def _keep(self, process: _Process) -> int:
        """Run one process, again and again until stopped; return its last exit code."""
        pause, ever_ready = _FIRST_PAUSE, False
        while True:
            began = time.monotonic()
            code = await process.run(self._stopping)
            if self._stopping.is_set():
                # One that had not begun to work yet when it was told to stop has cut nothing off.
                return 0 if code == -signal.SIGTERM and not process.was_ready else code
            ever_ready = ever_ready or process.was_ready
            if not ever_ready and code in _HOPELESS and not self._watched:
                self._hopeless = code
                self._drain()
                return code
            if self._reloading or time.monotonic() - began > _GOOD_RUN:
                pause = _FIRST_PAUSE
            about: dict[str, Any] = {"process": process.number, "code": code}
            if process.stacks:
                about["stacks"] = process.stacks
            log = partial(_logger.error if code else _logger.info, "process ended", **about)
            if self._watched and code and not process.had_begun:
                # What a broken file has to say it says once; the next change may fix it.
                log(restart="when a file changes")
                await self._next_change()
            else:
                log(restart_in=round(pause, 1))
                await self._sleep(pause)
                pause = _FIRST_PAUSE if self._reloading else min(pause * 2, _LONGEST_PAUSE)
            self._reloading = False
            if self._stopping.is_set():
                return 0

    def _fail(self, task: str, error: BaseException) -> None:
        """End: nobody would do what the supervisor's own `task` did, which has ended with `error`."""
        _logger.critical("task failed inside choreo", task=task, exc_info=error, next="all processes drain")
        self._hopeless = InternalError.exit_code
        self._drain()

    def _drain(self) -> None:
        self._stopping.set()
        self._notifier.stopping()
        self._signal(signal.SIGTERM)

    def _signal(self, number: int) -> None:
        for process in self._processes:
            process.signal(number)

    def _live(self) -> tuple[bool, str]:
        """Say whether every process gives signs of life, as far as its event loop has begun."""
        for process in self._processes:
            if process.silent > _SILENT:
                return False, f"process {process.number} has given no sign of life for {process.silent:.0f} s"
        return True, "alive"

    async def _end_hung(self) -> None:
        """End each process that hangs; it is started again like any that has ended."""
        # What systemd would allow a single process it allows each of these.
        interval = self._notifier.watchdog_interval
        patience = 2 * interval if interval else float("inf")
        ending: set[asyncio.Task[None]] = set()
        while True:
            for process in self._processes:
                task = owned(process.end_if_hung(patience), f"end of process {process.number}", self._fail)
                ending.add(task)
                task.add_done_callback(ending.discard)
            await asyncio.sleep(_LOOK)

    @asynccontextmanager
    async def _background(self) -> AsyncIterator[None]:
        tasks = [
            owned(self._report(), "report", self._fail),
            owned(self._end_stragglers(), "end of stragglers", self._fail),
            owned(self._end_hung(), "end of hung processes", self._fail),
        ]
        if self._watched:
            tasks.append(owned(self._reload(), "reload", self._fail))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()

    async def _report(self) -> None:
        """Tell systemd, once, that all are ready, and whenever the status changes."""
        announced, said = False, ""
        while True:
            if self.ready and not announced:
                announced = True
                self._start.over()
                self._notifier.ready()
                self._on_ready(sorted({name for process in self._processes for name in process.left_out}))
            if self.status != said:
                said = self.status
                self._start.going_on()
                self._notifier.status(said)
            await asyncio.sleep(0.1)

    async def _end_stragglers(self) -> None:
        """Kill what has not ended by itself when the drain time is well over."""
        await self._stopping.wait()
        await asyncio.sleep(self._settings.drain + _GRACE)
        self._signal(signal.SIGKILL)

    async def _reload(self) -> None:
        """Stop all processes when a watched file changes; they are started again at once."""
        from watchfiles import PythonFilter, awatch

        async for changes in awatch(*self._watched, watch_filter=PythonFilter(), stop_event=self._stopping):
            _logger.info("reload", changed=sorted({Path(path).name for _, path in changes}))
            self._reloading = True
            self._signal(signal.SIGTERM)
            self._changed.set()

    async def _next_change(self) -> None:
        self._changed.clear()
        waiting = [asyncio.ensure_future(each.wait()) for each in (self._changed, self._stopping)]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for each in waiting:
            each.cancel()

    async def _sleep(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return


def command(arguments: Sequence[str]) -> list[str]:
    """Return how a process of its own is started. Secrets go by the environment, never here."""
    # Without -P, whatever module lies in the working folder would come before Python's own.
    return [sys.executable, "-P", "-m", "choreo", "run", *arguments]
