"""choreo, with its defaults: envelope, validation, settlement, confirms."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from functools import partial

import uvloop

import choreo
from choreo.observe import logs
from choreo.rabbit import session
from choreo.runtime.worker import Worker
from choreo.settings import load
from tests.benchmarks.contenders.order import PREFETCH, WINDOW, Clock, arguments, fields

workload, events, url, namespace = arguments()
logs.configure("warning", "json")


class OrderPlaced(choreo.Event, topic="order.placed", external=True):
    order: str
    customer: str
    total: Decimal
    currency: str
    items: dict[str, int]
    note: str


class OrderSeen(choreo.Event, topic="order.seen"):
    order: str


class Sunk(choreo.Event, topic="sunk", external=True):
    pass


agent = choreo.Agent("bench")
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


if workload == "hop":

    @agent.on
    async def hop(placed: OrderPlaced) -> OrderSeen:
        seen()
        return OrderSeen(order=placed.order)

else:

    @agent.on
    async def consume(placed: OrderPlaced) -> None:
        seen()


sink = choreo.Agent("sink")


@sink.on
async def swallow(event: OrderSeen) -> None: ...


async def main() -> None:
    settings = load(namespace=namespace, prefetch=PREFETCH)
    connect = partial(session.connect, settings.brokers(), name="bench")
    if workload == "publish":
        placed = [OrderPlaced.model_validate(fields(number)) for number in range(WINDOW)]
        async with choreo.connect() as publisher:
            slots = asyncio.Semaphore(WINDOW)

            async def one(event: OrderPlaced) -> None:
                async with slots:
                    await publisher.publish(event)

            await one(placed[0])
            started = Clock()
            for begin in range(0, events, 5000):
                await asyncio.gather(*(one(placed[n % WINDOW]) for n in range(begin, min(begin + 5000, events))))
            started.report(events)
    agents = [agent, sink] if workload == "declare" else [agent]
    worker = Worker(agents, settings, connect)
    if workload == "declare":
        worker.watch(lambda worker: worker.stop() if worker.ready else None)
    await worker.run()


uvloop.run(main())
