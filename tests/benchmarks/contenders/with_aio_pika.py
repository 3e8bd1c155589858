"""aio-pika by hand, as its documentation does it."""

from __future__ import annotations

import asyncio

import aio_pika
import uvloop
from aio_pika.abc import AbstractIncomingMessage

from tests.benchmarks.contenders.order import PREFETCH, WINDOW, Clock, Order, arguments, body

workload, events, url, namespace = arguments()


async def main() -> None:
    connection = await aio_pika.connect(url)
    channel = await connection.channel()
    await channel.set_qos(PREFETCH)
    exchange = await channel.get_exchange(f"{namespace}.events")
    if workload == "publish":
        slots = asyncio.Semaphore(WINDOW)

        async def one(number: int) -> None:
            async with slots:
                message = aio_pika.Message(body(number), delivery_mode=2, content_type="application/json")
                await exchange.publish(message, "order.placed")

        await one(0)
        started = Clock()
        for begin in range(0, events, 5000):
            await asyncio.gather(*(one(number) for number in range(begin, min(begin + 5000, events))))
        started.report(events)
    queue = await channel.get_queue(f"{namespace}.bench")
    count = 0
    clock: Clock

    async def consume(message: AbstractIncomingMessage) -> None:
        nonlocal count, clock
        placed = Order.model_validate_json(message.body)
        if count == 0:
            clock = Clock()
        if workload == "hop":
            reply = aio_pika.Message(b'{"order": "%s"}' % placed.order.encode(), delivery_mode=2)
            await exchange.publish(reply, "order.seen")
        await message.ack()
        count += 1
        if count == events:
            clock.report(events)

    await queue.consume(consume)
    await asyncio.Event().wait()


uvloop.run(main())
