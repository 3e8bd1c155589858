"""What runs in this process for the events of one agent: no event has two attempts at a time, and one can be ended.

An attempt may outlast its delivery: a thread goes on after its deadline, since nothing can stop it; and when the
session is lost the broker delivers again what still runs. The next attempt of that event waits for the one before it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from choreo.envelope import Envelope
from choreo.errors import ChoreoError, ReactionTimeout
from choreo.reaction import Reaction
from choreo.transport import Delivery

T = TypeVar("T")


@dataclass(slots=True)
class _Event:
    """How many run for it, which are several only where two deliveries have one id, and who waits for their end."""

    running: int = 0
    waiting: list[asyncio.Future[None]] = field(default_factory=list)


class Underway:
    """Tries under way, by the id of their event; those that are waited for also by their delivery."""

    def __init__(self) -> None:
        self._events: dict[str, _Event] = {}
        self._tasks: dict[int, asyncio.Task[Any]] = {}  # by id() of the delivery
        self._given_up: dict[int, ChoreoError] = {}

    def __bool__(self) -> bool:
        return bool(self._events)

    async def until_done(self, event_id: str, delivery: Delivery, given: Awaitable[T], ending: asyncio.Event) -> T:
        """Return what `given`, an attempt for `delivery`, comes to.

        Raises what `give_up` says, unless the worker is `ending`.
        """
        task, key = asyncio.current_task(), id(delivery)
        assert task is not None
        self._tasks[key] = task
        self._begin(event_id)
        try:
            return await given
        except asyncio.CancelledError:
            error = self._given_up.get(key)
            if error is None or ending.is_set():
                raise
            raise error from None
        finally:
            del self._tasks[key]
            if self._given_up.pop(key, None) is not None:
                task.uncancel()  # also where the reaction has not let itself be cancelled
            self._end(event_id)

    def give_up(self, delivery: Delivery, error: ChoreoError) -> None:
        """End the attempt for `delivery`, with `error`; nothing happens when none is waited for."""
        key = id(delivery)
        if (task := self._tasks.get(key)) is not None and key not in self._given_up:
            self._given_up[key] = error
            task.cancel()

    def goes_on(self, event_id: str, over: asyncio.Future[None]) -> None:
        """Note that an attempt that nobody waits for any more runs in a thread until `over`."""
        self._begin(event_id)
        over.add_done_callback(lambda _: self._end(event_id))

    async def wait(self, opened: Envelope, reaction: Reaction) -> None:
        """Return when no attempt of that event runs, after as long as the reaction may take at most.

        Raises ReactionTimeout when one runs even then: that is a failed try as well.
        """
        try:
            async with asyncio.timeout(reaction.timeout):
                while (event := self._events.get(opened.id)) is not None:
                    ended = asyncio.get_running_loop().create_future()
                    event.waiting.append(ended)
                    await ended
        except TimeoutError:
            raise ReactionTimeout(
                f"{reaction.name!r} of agent {reaction.agent} still runs in a thread for {opened.topic} {opened.id},"
                f" {reaction.timeout:g} s after this attempt was due, so it was not called again",
                "a thread cannot be stopped: give what it waits for a deadline of its own, below timeout=",
            ) from None

    def _begin(self, event_id: str) -> None:
        event = self._events.get(event_id)
        if event is None:
            event = self._events[event_id] = _Event()
        event.running += 1

    def _end(self, event_id: str) -> None:
        event = self._events[event_id]
        event.running -= 1
        if not event.running:
            del self._events[event_id]
            for each in event.waiting:
                if not each.done():
                    each.set_result(None)
