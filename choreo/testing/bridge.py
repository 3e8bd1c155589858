"""Sessions with the rehearsal's broker for whoever opens one while it runs: on its loop, or on another one in a thread.

Whatever the user's code names as its broker, nothing of a rehearsal reaches it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, TypeVar

from choreo.broker import in_process
from choreo.errors import ChoreoError, UsageError
from choreo.message import Message
from choreo.topology import Topology
from choreo.transport import Consumer, Diversion, Publication, QueueStats, Server, Session, diverted

T = TypeVar("T")


def bridged(host: in_process.Host, home: asyncio.AbstractEventLoop, namespace: str) -> AbstractContextManager[None]:
    """Have everybody in this process get a session with `host` meanwhile, which lives on the loop `home`."""
    return diverted(Diversion(partial(_session, host, home), namespace))


async def _session(host: in_process.Host, home: asyncio.AbstractEventLoop) -> Session:
    """Open a session with the broker of `host`, which lives on the loop `home`, for the running loop."""
    if asyncio.get_running_loop() is home:
        return await in_process.connect(host)
    session = await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(in_process.connect(host), home))
    return BridgedSession(session, home)


class BridgedSession:
    """`session`, used from another loop than `home`, its own: it publishes and looks, and consumes nothing."""

    def __init__(self, session: Session, home: asyncio.AbstractEventLoop) -> None:
        self._session = session
        self._home = home
        self.server: Server = session.server
        self.lost: asyncio.Future[ChoreoError] = asyncio.get_running_loop().create_future()

    async def declare(self, topology: Topology) -> tuple[str, ...]:
        """See transport.Session."""
        return await self._there(self._session.declare, topology)

    async def remove(self, topology: Topology) -> None:
        """See transport.Session."""
        await self._there(self._session.remove, topology)

    async def consume(self, queue: str, **_: Any) -> Consumer:
        """Refuse: deliveries would arrive in the other loop."""
        raise UsageError(
            f"in a rehearsal {queue!r} was to be consumed from another event loop, in a thread",
            "consume on the rehearsal's own loop: rehearsal.start(agent)",
        )

    async def missing(self, topology: Topology) -> tuple[str, ...]:
        """See transport.Session."""
        return await self._there(self._session.missing, topology)

    async def publish(
        self, message: Message, *, exchange: str, routing_key: str, timeout: float, mandatory: bool = True
    ) -> Publication:
        """See transport.Session."""

        async def publish() -> Publication:
            return await self._session.publish(
                message, exchange=exchange, routing_key=routing_key, timeout=timeout, mandatory=mandatory
            )

        return await self._there(publish)

    def watch_blocked(self, callback: Callable[[str | None], None]) -> None:
        """Do nothing: this broker always takes publishes."""

    async def stats(self, queue: str) -> QueueStats | None:
        """See transport.Session."""
        return await self._there(self._session.stats, queue)

    async def close(self) -> None:
        """See transport.Session."""
        if not self.lost.done():
            await self._there(self._session.close)
            self.lost.set_result(UsageError("the session was closed"))

    async def _there(self, call: Callable[..., Coroutine[Any, Any, T]], *arguments: Any) -> T:
        """Await `call` on the loop of the rehearsal."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call(*arguments), self._home))
