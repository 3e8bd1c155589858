"""The line from a process to its supervisor: signs of life on one descriptor, its last stacks on another.

Both are inherited, so they need no folder and no name, and nobody else can write there. What is said has the form of
systemd's protocol.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import socket
from collections.abc import Callable, Sequence
from typing import Final

from choreo import forks
from choreo.observe.systemd import Notifier

VARIABLE: Final = "CHOREO_SUPERVISED"  # the two descriptors, while the process does not know them yet
DEADLINE: Final = "X_CHOREO_DEADLINE"  # seconds that the event loop may stand still, as each sign of life says
LEFT_OUT: Final = "X_CHOREO_LEFT_OUT"  # names of agents, parted by commas
INTERVAL: Final = 1.0  # seconds between two of them


class Line(Notifier):
    """Tells the supervisor what systemd is told elsewhere, and with each sign of life how long the next may take."""

    def __init__(self, signs: socket.socket) -> None:
        super().__init__(None)
        self.watchdog_interval = INTERVAL
        self.deadline: Callable[[], float] = lambda: 0.0
        self._signs = signs

    def watchdog(self) -> None:
        """Still alive."""
        self._send(f"WATCHDOG=1\n{DEADLINE}={self.deadline():g}")

    def left_out(self, names: Sequence[str]) -> None:
        """Some agents are not run: in development what is good starts without what is broken."""
        if names:
            self._send(f"{LEFT_OUT}={', '.join(names)}")

    def _send(self, assignment: str) -> None:
        with contextlib.suppress(OSError):  # it is gone, which standard input says too, or has too much to read
            self._signs.send(assignment.encode(errors="replace"))


def line() -> Line | None:
    """Return the line to the supervisor of this process, if it has one; from then on its last stacks go there too.

    The variable is taken away: what this process starts has another supervisor, or none.
    """
    signs, _, stacks = os.environ.pop(VARIABLE, "").partition(",")
    if not signs.isdecimal() or not stacks.isdecimal():
        return None
    for each in (int(signs), int(stacks)):
        os.set_inheritable(each, False)  # noqa: FBT003 - the library's signature
        forks.keep_private(each)
    faulthandler.enable(int(stacks))
    found = socket.socket(fileno=int(signs))
    found.settimeout(0)
    return Line(found)
