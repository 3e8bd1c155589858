"""aio-pika's tour: see `tests/foreign/test_tour.py` for what it has to print."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

from aio_pika import DeliveryMode, Message, connect_robust
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage
from aio_pika.exceptions import (
    ChannelClosed,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    PublishError,
    QueueEmpty,
)

WORK, DEAD = os.environ["FOREIGN_WORK"], os.environ["FOREIGN_DEAD"]
HEADERS: Any = {"number": 42, "large": 1 << 40, "nested": {"list": [1, "two", True, None]}}
ARGUMENTS: Any = {
    "x-queue-type": "quorum",
    "x-delivery-limit": 10,
    "x-dead-letter-exchange": "",
    "x-dead-letter-routing-key": DEAD,
}
CODES: dict[type[ChannelClosed], int] = {ChannelNotFoundEntity: 404, ChannelPreconditionFailed: 406}  # it keeps none

inbox: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()


async def publish(channel: AbstractChannel, queue: str, *bodies: bytes) -> None:
    messages = [Message(body, headers=HEADERS, delivery_mode=DeliveryMode.PERSISTENT) for body in bodies]
    await asyncio.gather(*(channel.default_exchange.publish(each, queue) for each in messages))
    print("confirmed:", len(bodies))


async def refused(connection: AbstractConnection, queue: str, **declaration: Any) -> None:
    other = await connection.channel()
    try:
        await other.declare_queue(queue, **declaration)
    except ChannelClosed as error:
        print("refused:", CODES[type(error)], *error.args)


async def delivered() -> AbstractIncomingMessage:
    message = await inbox.get()
    print("delivered:", message.body.decode(), "again" if message.redelivered else "for the first time")
    return message


async def tour(connection: AbstractConnection) -> None:
    channel = await connection.channel(on_return_raises=True)
    dead = await channel.declare_queue(DEAD, durable=True)
    work = await channel.declare_queue(WORK, durable=True, arguments=ARGUMENTS)
    declared = work.declaration_result
    print("declared:", declared.message_count, "messages,", declared.consumer_count, "consumers")
    await publish(channel, WORK, b"a", b"b", b"c", b"d", b"e")
    try:
        await channel.default_exchange.publish(Message(b"lost"), f"{WORK}.nowhere")
    except PublishError as error:
        returned: Any = error.message
        print("returned:", returned.delivery.reply_code, returned.delivery.reply_text, returned.body.decode())

    for requeue in (True, False):
        got = await work.get()
        again = "again" if got.redelivered else "for the first time"
        print("got:", got.body.decode(), again, got.message_count, "left")
        if requeue:
            headers: Any = got.headers
            print("headers:", json.dumps(headers["nested"]), headers["number"], headers["large"])
            await got.nack()
        else:
            await got.ack()

    await channel.set_qos(2)
    tag = await work.consume(inbox.put)
    b, c = await delivered(), await delivered()
    await channel.declare_queue(DEAD, passive=True)  # and back: a third would be here by then
    print("held:", 2 + inbox.qsize())
    await b.ack()
    await (await delivered()).nack()
    await delivered()
    await c.reject()
    await (await delivered()).ack(multiple=True)
    await work.cancel(tag)
    print("left:", (await channel.declare_queue(WORK, passive=True)).declaration_result.message_count)

    while (letter := await dead.get(fail=False)) is None:
        pass
    deaths: Any = letter.headers["x-death"]
    print("dead:", letter.body.decode(), deaths[0]["reason"], deaths[0]["count"])
    await letter.ack()
    await publish(channel, DEAD, b"large" * 100_000)
    print("large:", len((await dead.get(no_ack=True)).body))
    await publish(channel, DEAD, b"x", b"y", b"z")
    print("purged:", (await dead.purge()).message_count)
    try:
        await dead.get()
    except QueueEmpty:
        print("empty: True")

    await refused(connection, f"{WORK}.nowhere", passive=True)
    await refused(connection, WORK, durable=True, arguments=ARGUMENTS | {"x-dead-letter-routing-key": WORK})
    print("deleted:", (await work.delete(if_unused=False, if_empty=False)).message_count)
    await dead.delete(if_unused=False)
    await refused(connection, WORK, passive=True)


async def main() -> None:
    async with await connect_robust(os.environ["FOREIGN_URL"]) as connection:
        await tour(connection)


asyncio.run(main())
