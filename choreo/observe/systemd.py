"""Tells systemd how this process is doing, as sd_notify(3) describes: READY, STATUS, WATCHDOG and others."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence

from choreo.censor import censored

# A datagram waits for room in the receiver's queue. The loop must not stand still for a service manager that
# does not read; one lost STATUS or WATCHDOG is followed by the next.
_PATIENCE = 0.2
_STATUS_LIMIT = 500


class Notifier:
    """Sends to the socket `address` (None: nobody listens, every method does nothing). Never raises.

    `watchdog_interval` is how often to call `watchdog`, in seconds: half of what systemd allows. None when it
    does not watch this process.
    """

    def __init__(self, address: str | None, watchdog_interval: float | None = None) -> None:
        self._address = address
        self.watchdog_interval = watchdog_interval if address else None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Notifier:
        """Read NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID; by default from this process's environment."""
        given = os.environ if environment is None else environment
        address = given.get("NOTIFY_SOCKET", "")
        if address[:1] not in (
            "/",
            "@",
        ):  # sd_notify(3) knows vsock too, which a virtual machine's manager uses
            return cls(None)
        return cls("\0" + address[1:] if address[0] == "@" else address, _watchdog_interval(given))

    def ready(self) -> None:
        """Start-up is over: units ordered after this one may start."""
        self._send("READY=1")

    def stopping(self) -> None:
        """The drain began."""
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """Show `text` in `systemctl status`."""
        # A line of its own would be another assignment, such as MAINPID=.
        self._send("STATUS=" + " ".join(censored(text).split())[:_STATUS_LIMIT])

    def left_out(self, names: Sequence[str]) -> None:
        """Some agents are not run, for whoever asked for that; systemd has no word for it."""

    @property
    def takes_time(self) -> bool:
        """Whether somebody gives up on a start that takes too long, by default."""
        return self._address is not None

    def extend(self, seconds: float) -> None:
        """Start-up goes on: do not give up on it for so long from now."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1_000_000)}")

    def watchdog(self) -> None:
        """Still alive; systemd kills the process when this does not come in time."""
        self._send("WATCHDOG=1")

    def _send(self, assignment: str) -> None:
        if self._address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
                out.settimeout(_PATIENCE)
                out.sendto(assignment.encode(errors="replace"), self._address)
        except OSError:
            pass  # the manager went away, or restarts; the work does not depend on it


def _watchdog_interval(given: Mapping[str, str]) -> float | None:
    if given.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None  # meant for our parent, whose environment we inherited
    microseconds = given.get("WATCHDOG_USEC", "")
    return int(microseconds) / 2_000_000 if microseconds.isdecimal() and int(microseconds) else None
