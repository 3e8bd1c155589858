"""What time it is: the system says so, or a rehearsal, whose time is its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Final


def _system() -> datetime:
    return datetime.now(UTC)


_now: Final[ContextVar[Callable[[], datetime]]] = ContextVar("now", default=_system)
_monotonic: Final[ContextVar[Callable[[], float]]] = ContextVar("monotonic", default=time.monotonic)


def now() -> datetime:
    """Return the time, in UTC."""
    return _now.get()()


def monotonic() -> float:
    """Return seconds that never run backwards."""
    return _monotonic.get()()


@contextmanager
def told(now: Callable[[], datetime], monotonic: Callable[[], float]) -> Iterator[None]:
    """Within it, and in the tasks that begin within it, these two say what time it is."""
    tokens = _now.set(now), _monotonic.set(monotonic)
    try:
        yield
    finally:
        _now.reset(tokens[0])
        _monotonic.reset(tokens[1])
