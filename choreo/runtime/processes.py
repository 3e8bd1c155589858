"""Several processes of the same agents under one supervisor: one ready state, signals passed on, restarts with backoff.

Each process is `choreo run` itself and reports by systemd's notify protocol, here to the supervisor's own sockets.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import structlog

from choreo.errors import BrokerUnreachable, ConfigurationError, UsageError
from choreo.observe.systemd import Notifier
from choreo.runtime.service import SUPERVISED, Stop, endpoint, signals, watchdog
from choreo.runtime.worker import SUBSCRIBING
from choreo.settings import Settings

# A process that ends with one of these before it was ever ready would end so again: nothing is gained by a restart.
_HOPELESS: Final = frozenset((UsageError.exit_code, ConfigurationError.exit_code, BrokerUnreachable.exit_code))
_FIRST_PAUSE: Final = 0.2  # seconds before a restart; doubled each time, forgotten after a minute of good running
_LONGEST_PAUSE: Final = 30.0
_GOOD_RUN: Final = 60.0
_GRACE: Final = 5.0  # seconds on top of the drain time before a process that does not end is killed

_logger = structlog.get_logger()


class _Process:
    """One process, and the next one in its place."""

    def __init__(self, number: int, command: Sequence[str], folder: Path) -> None:
        self.number = number
        self.ready = False
        self.status = "starting"
        self.was_ready = False
        self.had_begun = False  # to take messages: what ends it from then on may be one of them
        self.last_sign = time.monotonic()
        self._command = command
        self._address = str(folder / f"{number}.sock")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(self._address)
        self._child: asyncio.subprocess.Process | None = None

    async def run(self, stopping: asyncio.Event) -> int:
        """Run once to the end; return the exit code, negative for a signal."""
        loop = asyncio.get_running_loop()
        self.ready = self.was_ready = self.had_begun = False
        self.status, self.last_sign = "starting", time.monotonic()
        environment = {**os.environ, "NOTIFY_SOCKET": self._address, SUPERVISED: "1"}
        environment.pop("WATCHDOG_PID", None)
        # A session of its own: Ctrl-C in a terminal reaches the supervisor alone, which passes on one signal, not two.
        self._child = await asyncio.create_subprocess_exec(
            *self._command, stdin=asyncio.subprocess.PIPE, env=environment, start_new_session=True
        )
        if stopping.is_set():  # said while the process was made, when there was nobody to pass it on to
            self.signal(signal.SIGTERM)
        loop.add_reader(self._socket, self._notified)
        try:
            return await self._child.wait()
        finally:
            loop.remove_reader(self._socket)
            self.ready, self.status = False, "stopped"

    def signal(self, number: int) -> None:
        """Pass a signal on."""
        if self._child is not None and self._child.returncode is None:
            self._child.send_signal(number)

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()

    def _notified(self) -> None:
        self.last_sign = time.monotonic()
        for line in self._socket.recv(4096).decode(errors="replace").splitlines():
            name, _, value = line.partition("=")
            if name == "READY":
                self.ready = self.was_ready = True
            elif name == "STOPPING":
                self.ready = False
            elif name == "STATUS":
                self.status = value
                self.had_begun = self.had_begun or value.startswith(SUBSCRIBING)
                self.ready = self.was_ready and value.startswith("consuming")


class Supervisor:
    """Keeps a process of each of `commands` running until a signal ends them all.

    `on_ready` is called once, when all are ready for the first time.
    """

    def __init__(
        self,
        commands: Sequence[Sequence[str]],
        settings: Settings,
        watched: Sequence[Path] = (),
        on_ready: Callable[[], None] = lambda: None,
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
        self._notifier = Notifier.from_environment()

    async def run(self) -> int:
        """Return the exit code: 0 when all processes drained, else the first one that says why not."""
        stop = Stop(self._drain, lambda: self._signal(signal.SIGKILL))
        with tempfile.TemporaryDirectory(prefix="choreo-") as folder:
            self._processes = [
                _Process(number, command, Path(folder)) for number, command in enumerate(self._commands, start=1)
            ]
            async with (
                signals(stop),
                endpoint(self._settings.health_host, self._settings.health_port, lambda: (self.ready, self.status)),
                watchdog(self._notifier, self._all_alive),
                self._background(),
            ):
                codes = await asyncio.gather(*(self._keep(process) for process in self._processes))
            for process in self._processes:
                process.close()
        if self._hopeless is not None:
            return self._hopeless
        return next((code if code > 0 else stop.exit_code(drained=False) for code in codes if code), 0)

    @property
    def ready(self) -> bool:
        """Whether every process is."""
        return all(process.ready for process in self._processes)

    @property
    def status(self) -> str:
        """How many processes are ready, and what the first other one says."""
        count = sum(process.ready for process in self._processes)
        other = next((f"; process {each.number}: {each.status}" for each in self._processes if not each.ready), "")
        return f"{count} of {len(self._commands)} processes are ready{other}"

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
            log = _logger.error if code else _logger.info
            if self._watched and code and not process.had_begun:
                # What a broken file has to say it says once; the next change may mend it.
                log("process ended", process=process.number, code=code, restart="when a file changes")
                await self._next_change()
            else:
                log("process ended", process=process.number, code=code, restart_in=round(pause, 1))
                await self._sleep(pause)
                pause = _FIRST_PAUSE if self._reloading else min(pause * 2, _LONGEST_PAUSE)
            self._reloading = False
            if self._stopping.is_set():
                return 0

    def _drain(self) -> None:
        self._stopping.set()
        self._notifier.stopping()
        self._signal(signal.SIGTERM)

    def _signal(self, number: int) -> None:
        for process in self._processes:
            process.signal(number)

    def _all_alive(self) -> bool:
        """Whether every process has given a sign of life within the watchdog's time."""
        patience = 2 * (self._notifier.watchdog_interval or 0)
        running = [process for process in self._processes if process.status != "stopped"]
        return all(time.monotonic() - process.last_sign < patience for process in running)

    @asynccontextmanager
    async def _background(self) -> AsyncIterator[None]:
        tasks = [asyncio.ensure_future(self._report()), asyncio.ensure_future(self._end_stragglers())]
        if self._watched:
            tasks.append(asyncio.ensure_future(self._reload()))
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
                self._notifier.ready()
                self._on_ready()
            if self.status != said:
                said = self.status
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
