"""The play: orders are placed, what happens to them is watched, and everybody is told how it ended."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from agents.events import OrderPlaced
from choreo import Agent, Publisher
from choreo.config.settings import Settings
from choreo.rabbit import session
from choreo.runtime.worker import Worker
from choreo.transport import Session
from demo.ledger import Ledger
from demo.processes import Processes
from demo.screen import Screen

PACE = 0.1  # seconds between two orders, and between two looks at what happens


@dataclass(frozen=True, slots=True)
class Play:
    """Everything that takes part. `settings` say where."""

    orders: Sequence[OrderPlaced]
    ledger: Ledger
    screen: Screen
    watcher: Agent
    processes: Processes
    settings: Settings

    async def run(self, *, deadline: float, afterwards: Callable[[], None], stay: bool) -> bool:
        """Place all orders and follow them, at most `deadline` seconds; return whether each of them has ended.

        `afterwards` is called then. With `stay`, what happens is shown until SIGINT comes. Raises what keeps an
        order from being placed, and ChoreoError when an agent ends.
        """
        async with self._watching(), Publisher(self.settings, self._connect, source="shop") as shop:
            await self.processes.ready()
            placing = asyncio.create_task(self._place(shop))
            with self.screen:
                try:
                    async with asyncio.timeout(deadline):
                        await self._follow(lambda: placing.done() and not self.ledger.open)
                        await placing
                except TimeoutError:
                    placing.cancel()
            all_ended = not self.ledger.open
            afterwards()
            if stay:
                ended = asyncio.Event()
                asyncio.get_running_loop().add_signal_handler(signal.SIGINT, ended.set)
                await self._follow(ended.is_set)
        return all_ended

    async def _place(self, shop: Publisher) -> None:
        for order in self.orders:
            await shop.publish(order, correlation_id=order.order)
            await asyncio.sleep(PACE)

    async def _follow(self, over: Callable[[], bool]) -> None:
        while not over():
            self.processes.check()
            for line in self.processes.news():
                story = self.ledger.heard(line)
                if story is not None:
                    self.screen.happened(story, story.news)
            self.screen.refresh()
            await asyncio.sleep(PACE)

    @contextlib.asynccontextmanager
    async def _watching(self) -> AsyncIterator[None]:
        """Run the watcher in this process; its queue is bound before the first order is placed."""
        begun = asyncio.Event()
        worker = Worker([self.watcher], self.settings, self._connect)
        worker.watch(lambda _: begun.set())
        working = asyncio.create_task(worker.run())
        working.add_done_callback(lambda _: begun.set())
        try:
            await begun.wait()
            yield
        finally:
            worker.stop()
            await working

    async def _connect(self) -> Session:
        return await session.connect(self.settings.brokers(), name="choreo demo")
