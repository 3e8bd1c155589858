"""The agents of the choreo contender, as a user writes them."""

from __future__ import annotations

from decimal import Decimal

import choreo
from tests.benchmarks.contenders.order import Meter, Task

task = Task.given()


class OrderPlaced(choreo.Event, topic="order.placed"):
    order: str
    customer: str
    total: Decimal
    currency: str
    items: dict[str, int]
    note: str


class OrderSeen(choreo.Event, topic="order.seen"):
    order: str


work = choreo.Agent("work")
sink = choreo.Agent("sink")  # never run while anything is measured: its queue takes what a hop emits
meter = Meter(task)

if task.work == "consume":

    @work.on
    async def consume(placed: OrderPlaced) -> None:
        meter.seen()

else:

    @work.on
    async def hop(placed: OrderPlaced) -> OrderSeen:
        meter.seen()
        return OrderSeen(order=placed.order)


@sink.on
async def swallow(event: OrderSeen) -> None: ...
