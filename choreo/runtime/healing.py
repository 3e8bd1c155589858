"""What is declared may be deleted while a worker runs, by people and their programs: it is declared again.

A work queue is missed by its consumer. Everything else is missed by whoever publishes to it, and that may be others: so
the worker looks too. A binding that was taken away shows nowhere over AMQP, and is made again now and then.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NoReturn

from choreo.errors import ChoreoError
from choreo.logger import get_logger
from choreo.topology import Topology
from choreo.transport import Session

QUEUES_EVERY: Final = 6  # looks at the exchanges, which cost a broker next to nothing, for one at queues and bindings
_APART: Final = 1.0  # seconds, at least, between two declarations over publishes that came back
_FRUITLESS: Final = 5.0  # and when the last one has found everything there

Heal = Callable[[Session], Awaitable[bool]]

_logger = get_logger()


async def nothing(_: Session) -> bool:
    """Heal nothing."""
    return False


async def report_gone(session: Session, queues: Sequence[str]) -> None:
    """Say so when a queue that was there is gone: what it held is lost, and declaring it anew would hide that."""
    with contextlib.suppress(ChoreoError):  # what ends the session is said elsewhere
        for queue in queues:
            if await session.stats(queue) is None:
                _logger.error("queue gone", queue=queue, lost="what it held", next="it is declared again, empty")


class Healer:
    """Declares `topology` again where it is missing; `shared` is the part of it that is no agent's own."""

    def __init__(self, topology: Topology, shared: Topology) -> None:
        self._topology = topology
        self._exchanges = Topology(topology.exchanges, (), ())
        self._bindings = Topology((), (), tuple(each for each in topology.bindings if each not in shared.bindings))
        self._healing = asyncio.Lock()
        self._healed = self._not_before = float("-inf")  # times of the loop

    async def heal(self, session: Session) -> bool:
        """Declare everything anew, after a publish that came back; return whether to publish again at once."""
        return await self._heal(session, self._topology, asked=True)

    async def watch(self, session: Session, period: float) -> NoReturn:
        """Look every `period` seconds, as long as the session lasts."""
        look = 0
        while True:
            await asyncio.sleep(period)
            look += 1
            if look % QUEUES_EVERY:
                await self._heal(session, self._exchanges)
            else:
                await self._heal(session, self._topology)
                with contextlib.suppress(ChoreoError):  # it has been said, or ends the session
                    await session.declare(self._bindings)

    async def _heal(self, session: Session, within: Topology, *, asked: bool = False) -> bool:
        """Declare everything if something is missing; `asked`: a binding may be, which nothing else shows."""
        clock = asyncio.get_running_loop().time
        began = clock()
        async with self._healing:
            if self._healed >= began:
                return True  # by somebody else, who was first
            if asked and began < self._not_before:
                return False
            try:
                missing = await session.missing(within)
                if missing or asked:
                    await session.declare(self._topology)
                    self._healed = clock()
            except ChoreoError as error:
                if not session.lost.done():
                    _logger.error("topology incomplete", why=error.message, way_out=error.way_out)  # noqa: TRY400
                self._not_before = clock() + _FRUITLESS
                return False
            self._not_before = clock() + (_APART if missing else _FRUITLESS)
        if missing:
            lost = "what its queues held"
            _logger.error("topology incomplete", missing=list(missing), lost=lost, next="declared again, empty")
        return bool(missing) or asked
