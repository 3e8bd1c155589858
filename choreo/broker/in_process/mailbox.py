"""What a broker says to a client in the same process, on its way."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Mailbox(Generic[T]):
    """Brings things to `take` in the order in which they were put: in a later turn of the loop, or after `latency`."""

    def __init__(self, take: Callable[[T], None], latency: Callable[[], float] | None) -> None:
        self._take = take
        self._latency = latency
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[T] = deque()
        self._bringing = False
        self._empty = asyncio.Event()
        self._empty.set()
        self._ended = False

    def put(self, each: T) -> None:
        """Send `each` on its way."""
        if self._ended:
            return
        self._waiting.append(each)
        self._empty.clear()
        if self._latency is not None:
            self._loop.call_later(self._latency(), self._bring, 1)
        elif not self._bringing:
            self._bringing = True
            self._loop.call_soon(self._bring_all)

    async def empty(self) -> None:
        """Return when everything has arrived."""
        await self._empty.wait()

    def end(self) -> None:
        """Bring nothing more."""
        self._ended = True
        self._waiting.clear()
        self._empty.set()

    def _bring_all(self) -> None:
        self._bringing = False
        self._bring(len(self._waiting))  # what comes meanwhile waits for the next turn

    def _bring(self, count: int) -> None:
        for _ in range(count):
            if not self._waiting:
                return
            self._take(self._waiting.popleft())
        if not self._waiting:
            self._empty.set()
