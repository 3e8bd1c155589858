"""FastStream on uvloop, with a pydantic model as its handler's parameter."""

from __future__ import annotations

import asyncio
import logging

import uvloop
from faststream.rabbit import Channel, RabbitBroker, RabbitExchange, RabbitQueue

from tests.benchmarks.contenders.order import PREFETCH, WINDOW, Clock, Order, arguments, fields

workload, events, url, namespace = arguments()
broker = RabbitBroker(url, default_channel=Channel(prefetch_count=PREFETCH), logger=None, log_level=logging.ERROR)
exchange = RabbitExchange(f"{namespace}.events", declare=False)
count = 0
clock: Clock


def seen() -> None:
    """Count one event."""
    global clock, count  # noqa: PLW0603 - a script
    if count == 0:
        clock = Clock()
    count += 1
    if count == events:
        clock.report(events)


if workload != "publish":

    @broker.subscriber(RabbitQueue(f"{namespace}.bench", declare=False))  # type: ignore[untyped-decorator]
    async def consume(placed: Order) -> None:
        if workload == "hop":
            await broker.publish({"order": placed.order}, exchange=exchange, routing_key="order.seen", persist=True)
        seen()


async def main() -> None:
    await broker.start()
    if workload == "publish":
        slots = asyncio.Semaphore(WINDOW)

        async def one(number: int) -> None:
            async with slots:
                placed = Order.model_validate(fields(number))
                await broker.publish(placed, exchange=exchange, routing_key="order.placed", persist=True)

        await one(0)
        started = Clock()
        for begin in range(0, events, 5000):
            await asyncio.gather(*(one(number) for number in range(begin, min(begin + 5000, events))))
        started.report(events)
    await asyncio.Event().wait()


uvloop.run(main())
