"""FastStream on uvloop, with a pydantic model as its handler's parameter."""

from __future__ import annotations

import asyncio
import logging

import uvloop
from faststream.rabbit import Channel, QueueType, RabbitBroker, RabbitExchange, RabbitQueue

from tests.benchmarks.contenders.order import Meter, Order, Task, fields, pipelined

task = Task.given()
broker = RabbitBroker(
    task.url, default_channel=Channel(prefetch_count=task.prefetch), logger=None, log_level=logging.ERROR
)
exchange = RabbitExchange("plain.events", declare=False)
meter = Meter(task)


async def publish(number: int) -> None:
    placed = Order.model_validate(fields(number))
    await broker.publish(placed, exchange=exchange, routing_key="order.placed", persist=True)


if task.work in {"consume", "hop"}:

    @broker.subscriber(RabbitQueue("plain.work", queue_type=QueueType.QUORUM, durable=True, declare=False))  # type: ignore[untyped-decorator]
    async def handle(placed: Order) -> None:
        if task.work == "hop":
            await broker.publish({"order": placed.order}, exchange=exchange, routing_key="order.seen", persist=True)
        meter.seen()


async def main() -> None:
    async with broker:
        if task.work == "sample":
            await publish(0)
        elif task.work == "publish":
            await pipelined(task, publish)
        else:
            await broker.start()
            await asyncio.Event().wait()


uvloop.run(main())
