"""What a forked child must not share with this process: its sockets with a broker, its ports, its locks.

A reaction may fork; `multiprocessing` does so by default before Python 3.14. Such a child has a copy of every
descriptor. With the broker's socket in it, the broker would not see that this process has ended, and would give nobody
what it held; with a listening one, the port would stay in use.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress

_private: dict[int, tuple[int, int]] = {}  # what each descriptor was when it was named: device and inode
forked = False  # this process is such a child: a copy of one that had something to keep private


def keep_private(descriptor: int) -> None:
    """Keep `descriptor` from children that are forked, as long as it is what it is now.

    In the child it leads nowhere: whatever is written there by mistake, nobody at the other end hears of it.
    """
    found = os.fstat(descriptor)
    _private[descriptor] = found.st_dev, found.st_ino


def keep_transport_private(transport: asyncio.BaseTransport) -> None:
    """Keep the socket under `transport` from children that are forked."""
    socket = transport.get_extra_info("socket")
    if socket is not None:
        keep_private(socket.fileno())


def _in_child() -> None:
    global forked  # noqa: PLW0603 - a process is forked as a whole
    if not _private:
        return
    forked = True
    nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for descriptor, was in _private.items():
        with suppress(OSError):
            found = os.fstat(descriptor)
            if (found.st_dev, found.st_ino) == was:
                # The number stays taken: whoever closes it later closes nothing else.
                os.dup2(nowhere, descriptor, inheritable=False)
    os.close(nowhere)
    _private.clear()


os.register_at_fork(after_in_child=_in_child)
