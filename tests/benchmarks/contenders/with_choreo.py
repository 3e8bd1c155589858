"""choreo as its users run it: `choreo run` with an agent, `choreo.connect()` to publish; every default as it is."""

from __future__ import annotations

import sys

import choreo
from choreo import cli
from tests.benchmarks.contenders.order import Task, body, fields, pipelined

task = Task.given()
plain = sys.argv[1:] == ["plain"]


async def publish() -> None:
    from tests.benchmarks.contenders.choreo_agents import OrderPlaced

    async with choreo.connect() as publisher:
        await pipelined(task, lambda n: publisher.publish(OrderPlaced.model_validate(fields(n))))


async def declare() -> None:
    """Declare what both agents need, as a worker does when it starts, and publish one order: choreo's way, or plain."""
    from choreo.config.settings import load
    from choreo.message import Message
    from choreo.rabbit.session import connect
    from choreo.topology import Names, Topology
    from tests.benchmarks.contenders.choreo_agents import OrderPlaced, sink, work

    session = await connect(load().brokers(), name="bench")
    await session.declare(Topology.of([work, sink], task.namespace))
    if plain:
        events = Names(task.namespace).events
        await session.publish(Message(body(0)), exchange=events, routing_key="order.placed", timeout=10)
    await session.close()
    if not plain:
        async with choreo.connect() as publisher:
            await publisher.publish(OrderPlaced.model_validate(fields(0)))


if __name__ == "__main__":
    if task.work in {"publish", "sample"}:
        import uvloop

        uvloop.run(publish() if task.work == "publish" else declare())
    else:
        sys.argv = ["choreo", "run", "tests.benchmarks.contenders.choreo_agents:work", "--prefetch", str(task.prefetch)]
        cli.main()
