"""aio-pika by hand, as its documentation does it, on uvloop."""

from __future__ import annotations

import asyncio

import aio_pika
import uvloop
from aio_pika.abc import AbstractIncomingMessage

from tests.benchmarks.contenders.order import Meter, Order, Task, body, fields, pipelined

task = Task.given()


def message(content: bytes) -> aio_pika.Message:
    return aio_pika.Message(content, content_type="application/json", delivery_mode=aio_pika.DeliveryMode.PERSISTENT)


async def main() -> None:
    connection = await aio_pika.connect(task.url)
    async with connection:
        channel = await connection.channel()
        await channel.set_qos(task.prefetch)
        exchange = await channel.get_exchange("plain.events")
        if task.work == "sample":
            await exchange.publish(message(body(0)), "order.placed")
        elif task.work == "publish":

            async def publish(number: int) -> None:
                order = Order.model_validate(fields(number))
                await exchange.publish(message(order.model_dump_json().encode()), "order.placed")

            await pipelined(task, publish)
        else:
            await consume(channel, exchange)


async def consume(channel: aio_pika.abc.AbstractChannel, exchange: aio_pika.abc.AbstractExchange) -> None:
    meter = Meter(task)

    async def on_message(arrived: AbstractIncomingMessage) -> None:
        placed = Order.model_validate_json(arrived.body)
        if task.work == "hop":
            await exchange.publish(message(b'{"order":"%s"}' % placed.order.encode()), "order.seen")
        await arrived.ack()
        meter.seen()

    queue = await channel.get_queue("plain.work")
    await queue.consume(on_message)
    await asyncio.Event().wait()


uvloop.run(main())
