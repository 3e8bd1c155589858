"""What `choreo dev` runs beside its broker, and what it proposes to type."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import Any

from choreo.agent import Agent
from choreo.errors import ChoreoError
from choreo.graph.choreography import Choreography
from choreo.operate import example
from choreo.runtime.service import Stop, signals


async def beside(failed: Future[ChoreoError], serving: Coroutine[Any, Any, int]) -> int:
    """Return what `serving` returns, which ends by SIGTERM. Raises what `failed` says: the broker had to end before."""
    work = asyncio.ensure_future(serving)
    ended = asyncio.wrap_future(failed)
    await asyncio.wait((work, ended), return_when=asyncio.FIRST_COMPLETED)
    if ended.done():
        os.kill(os.getpid(), signal.SIGTERM)
        await work
        raise ended.result()
    return await work


async def nobody(ready: Callable[[], None]) -> int:
    """Call `ready`, and wait for a signal that asks for an end; return the exit code."""
    ended = asyncio.Event()
    async with signals(Stop(ended.set, ended.set)):
        ready()
        await ended.wait()
    return 0


def ways_in(agents: Sequence[Agent]) -> list[tuple[str, str | None]]:
    """Return the topics that come from outside, else those that are taken at all, each with an example as JSON."""
    events = Choreography.of(agents).events
    taken = [event for event in events if event.consumers and event.kind is not None]
    outside = [event for event in taken if event.external] or [event for event in taken if not event.emitters] or taken
    return [(event.topic, example.of(event.kind)) for event in outside if event.kind is not None]
