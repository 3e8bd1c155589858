"""The time before a worker consumes: a signal ends it at once, and whoever supervises it is told what it waits for.

Handlers come first, imports after: a container's first process gets no signal that it has no handler for.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from contextlib import suppress
from types import FrameType
from typing import Final

from choreo.config.settings import Settings
from choreo.logger import get_logger
from choreo.observe import supervisor
from choreo.observe.health_thread import HealthThread
from choreo.observe.systemd import Notifier

_ENDING: Final = (signal.SIGTERM, signal.SIGHUP)  # SIGINT has Python's own handler
_EVERY: Final = 2.0  # seconds between two words to systemd, each of which asks for
_TIME: Final = 20.0  # seconds from then on
# Seconds that one step may take before systemd's own patience counts again: imports, a lifespan (which ends by itself
# after five minutes), an attempt to connect.
_LONGEST_STEP: Final = 330.0

_logger = get_logger()


class Start:
    """From the first line of `choreo run` until all consume. `notifier` is told the truth from then on."""

    def __init__(self, what: str) -> None:
        self.notifier: Notifier = supervisor.line() or Notifier.from_environment()
        for number in _ENDING:
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, _end)
        self._over = threading.Event()
        self._health: HealthThread | None = None
        self.step(what)
        if self.notifier.takes_time:
            threading.Thread(target=self._ask_for_time, name="start", daemon=True).start()

    def step(self, what: str) -> None:
        """Say what is done now; it has as much time as any step."""
        self._began = time.monotonic()
        self._status = f"starting: {what}"
        self.notifier.status(self._status)

    def serve_health(self, settings: Settings) -> None:
        """Answer /live and /ready from now on, where that is wanted; before the imports, which may take long."""
        port = self.health_port(settings)
        if port is not None:
            self._health = HealthThread(settings.health_host, port, lambda: self._status)

    def health_port(self, settings: Settings) -> int | None:
        """Return the port of this process's health endpoint, None for none: a supervisor's is for all its processes."""
        return None if isinstance(self.notifier, supervisor.Line) else settings.health_port

    def sockets(self) -> list[socket.socket]:
        """Return what /live and /ready are asked on, for the event loop that answers from now on; none if nothing."""
        health, self._health = self._health, None
        return health.hand_over() if health is not None else []

    def going_on(self) -> None:
        """Note that something has happened: the next step has its own time."""
        self._began = time.monotonic()

    def over(self) -> None:
        """Note that the start is over."""
        self._over.set()

    def _ask_for_time(self) -> None:
        # A thread of its own: neither imports nor a lifespan that blocks let an event loop turn.
        while True:
            if time.monotonic() - self._began < _LONGEST_STEP:
                self.notifier.extend(_TIME)
            if self._over.wait(_EVERY):
                return


def _end(number: int, _frame: FrameType | None) -> None:
    """End at once. Nothing has begun, so nothing is cut off; and a user's `except:` around an import is not asked."""
    with suppress(Exception):  # it may have come in the middle of another line
        _logger.info("signal", name=signal.Signals(number).name, next="ended, nothing had begun")
    os._exit(0)
