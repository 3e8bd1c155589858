"""Standard streams that cannot end the work: closed ones lead nowhere, and a full disk is no reason to fail."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import Any, Final

_STANDARD: Final = range(3)


def open_closed() -> None:
    """Have standard descriptors that are closed lead nowhere.

    Else the first sockets get their numbers: what is printed goes to the broker, and libuv, which never closes one of
    these three, aborts at the end.
    """
    for descriptor in _STANDARD:
        try:
            os.fstat(descriptor)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
            if nowhere != descriptor:
                os.dup2(nowhere, descriptor)
                os.close(nowhere)
            os.set_inheritable(descriptor, True)


def words_never_fail() -> None:
    """Let no write to stderr fail: words for people decide nothing."""
    found = _unfailing(sys.stderr, 2)
    if found is not None:
        sys.stderr = found


def prints_never_fail() -> None:
    """Let no write to stdout fail: in a worker it is a log as well, and no reaction shall die of a full disk."""
    found = _unfailing(sys.stdout, 1)
    if found is not None:
        sys.stdout = found


def _unfailing(stream: object, descriptor: int) -> io.TextIOWrapper | None:
    """Return what takes the place of `stream`; None where a test, or nothing, stands there."""
    if not isinstance(stream, io.TextIOWrapper):
        return None
    with suppress(OSError, ValueError):
        stream.flush()
    with suppress(OSError, ValueError):
        if stream.fileno() == descriptor:
            raw = io.BufferedWriter(_Unfailing(descriptor, "w", closefd=False))
            return io.TextIOWrapper(raw, stream.encoding, "backslashreplace", line_buffering=True)
    return None


class _Unfailing(io.FileIO):
    """Takes what cannot be written as well."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:  # full, or nobody reads any more
            return len(memoryview(data))
