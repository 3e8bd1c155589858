"""FastStream's worker, `faststream run faststream_app:app`; `python faststream_app.py` sends it messages."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from faststream import AckPolicy, FastStream
from faststream.rabbit import Channel, ExchangeType, QueueType, RabbitBroker, RabbitExchange, RabbitMessage, RabbitQueue

NAME = f"{os.environ['FOREIGN_NAMESPACE']}.faststream"

broker = RabbitBroker(os.environ["FOREIGN_URL"], default_channel=Channel(prefetch_count=2))
app = FastStream(broker)
events = RabbitExchange(NAME, type=ExchangeType.TOPIC, durable=True)
dead = RabbitQueue(f"{NAME}.dead", durable=True)


def queue(name: str, **arguments: Any) -> RabbitQueue:
    """Return a quorum queue that hears the events called `name`."""
    kind: Any = {"queue_type": QueueType.QUORUM, "durable": True, "arguments": arguments}
    return RabbitQueue(f"{NAME}.{name}", routing_key=f"{name}.#", **kind)


@broker.subscriber(queue("sum"), events)
@broker.publisher(exchange=events, routing_key="seen")
async def add(body: dict[str, int]) -> dict[str, int]:
    total = body["one"] + body["other"]
    print("added:", total)
    return {"total": total}


@broker.subscriber(queue("seen"), events)
async def seen(body: dict[str, int]) -> None:
    print("seen:", body["total"])


@broker.subscriber(queue("flaky"), events, ack_policy=AckPolicy.NACK_ON_ERROR)
async def flaky(body: str, message: RabbitMessage) -> None:
    if not message.raw_message.redelivered:
        raise RuntimeError(body)
    print("retried:", body)


LETTERS = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead.name}


@broker.subscriber(queue("hopeless", **LETTERS), events, ack_policy=AckPolicy.REJECT_ON_ERROR)
async def hopeless(body: str) -> None:
    raise RuntimeError(body)


@broker.subscriber(queue("asked"), events)
async def asked(body: str) -> str:
    return f"{body}, and answered"


@app.after_startup
async def ready() -> None:
    await broker.declare_queue(dead)
    print("ready")


async def send() -> None:
    async with broker:
        await broker.publish({"one": 2, "other": 3}, exchange=events, routing_key="sum.small", mandatory=True)
        await broker.publish("failed once", exchange=events, routing_key="flaky", persist=True)
        await broker.publish("failed for good", exchange=events, routing_key="hopeless", persist=True)
        answer = await broker.request("asked", exchange=events, routing_key="asked", timeout=10)
        print("reply:", await answer.decode())


if __name__ == "__main__":
    asyncio.run(send())
