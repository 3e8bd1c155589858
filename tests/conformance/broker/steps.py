"""Steps that many behaviours begin or end with."""

from __future__ import annotations

import asyncio

from tests.conformance.broker.driver import Arrived, Client


async def queue(client: Client, name: str, **arguments: object) -> str:
    given = {each.replace("_", "-"): value for each, value in arguments.items()}
    await client.call("queue_declare", name, durable=True, arguments=given)
    return name


async def fill(client: Client, to: str, *bodies: str) -> None:
    for body in bodies:
        assert await client.publish(body, key=to) == "ack"


async def drain(client: Client, queue: str) -> list[str]:
    bodies = []
    while (got := await client.get(queue, no_ack=True)) is not None:
        bodies.append(got.body)
    return bodies


async def take(client: Client, queue: str) -> Arrived:
    """Get a message that has to be there, or to come within some seconds, not settled."""
    for _ in range(100):
        if (got := await client.get(queue)) is not None:
            return got
        await asyncio.sleep(0.05)
    raise AssertionError(f"{queue} stays empty")
