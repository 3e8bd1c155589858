"""What `make bench ARGS=growth` runs: many agents that listen to one event, and one that fails."""

from __future__ import annotations

import choreo
from tests.benchmarks.contenders.choreo_agents import OrderPlaced
from tests.benchmarks.contenders.order import Meter, Task

MOST = 100

meter = Meter(Task.given())


class OrderRefused(choreo.Event, topic="order.refused", external=True):
    order: str


async def count(placed: OrderPlaced) -> None:
    meter.seen()


for number in range(MOST):
    globals()[f"agent_{number}"] = agent = choreo.Agent(f"part-{number}")
    agent.on(count)

failing = choreo.Agent("failing")


@failing.on
async def fail(refused: OrderRefused) -> None:
    raise ValueError(f"the order {refused.order} cannot be worked on, whoever tries it and however often")
