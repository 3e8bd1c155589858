"""Random plans, played on two brokers: whoever takes part sees the same on both.

What the core does is expected of the embedded broker over AMQP, and of a real node. `--model-steps` says how many steps
are played, `--model-seed` chooses others. A plan that fails is made shorter and printed, and CHOREO_TEST_PLAN plays it
again.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from random import Random
from typing import Any

import pytest

from choreo.broker.server.background import EmbeddedBroker
from choreo.testing.rabbitmq.node import Node
from tests.conformance.broker.driver import AmqpDriver, Closed, EmbeddedDriver
from tests.conformance.broker.model import Plan, Play

AT_ONCE = 8  # plans; most of a node's time is waiting
OLDEST = 4, 3  # release that does as the core
LIMIT = 100.0  # seconds for a plan
PAUSES = 0.0, 0.05, 0.15  # seconds after each step
SHORTENING = 30.0  # seconds for making a plan shorter


@dataclass(frozen=True)
class Other:
    """A broker that is compared with the core; for `patience` see Play."""

    url: str
    patience: float
    pauses: Sequence[float] = PAUSES

    async def difference(self, plan: Plan) -> str:
        """Say where they differ, if they do whatever the pause: what takes time may be done in another order."""
        expected = await Play(plan, EmbeddedDriver()).run()
        seen: list[Any] = []
        for pause in self.pauses:
            driver = AmqpDriver(self.url, pause=0)
            play = Play(plan, driver, expected, self.patience, pause)
            try:
                async with asyncio.timeout(LIMIT):
                    seen = await play.run()
            except Closed as closed:  # where nothing was asked that could be refused
                seen = [*play.seen, closed]
            finally:
                await driver.close()
            if seen == expected:
                return ""
        pairs = enumerate(zip_longest(expected, seen), start=1)
        at, core, other = next((at, core, other) for at, (core, other) in pairs if core != other)
        return f"after step {at}\n  core:  {core}\n  other: {other}"


async def shortened(plan: Plan, other: Other) -> Plan:
    """Leave out whatever steps the difference does not need, many at once first, as long as there is time."""
    end, size = time.monotonic() + SHORTENING, len(plan.steps)
    while (size := size // 2) and time.monotonic() < end:
        at = len(plan.steps)
        while (at := at - size) > -size and time.monotonic() < end:
            shorter = plan._replace(steps=plan.steps[: max(at, 0)] + plan.steps[at + size :])
            if await other.difference(shorter):
                plan = shorter
    return plan


async def compare(plans: Iterator[Plan], other: Other) -> None:
    """Play all plans; fail with the first one that differs."""
    plan = await first_that_differs(plans, other)
    if plan is not None:
        short = await shortened(plan, other)
        found = await other.difference(short) or "it differed only once"
        again = f"CHOREO_TEST_PLAN='{short.dumps()}' pytest tests/conformance/broker/test_model.py"
        pytest.fail(f"{found}\nplay it again:\n  {again}", pytrace=False)


async def first_that_differs(plans: Iterator[Plan], other: Other) -> Plan | None:
    """Play all plans, several at once, until one differs."""

    async def work() -> Plan | None:
        for plan in plans:
            if await other.difference(plan):
                return plan
        return None

    tasks = [asyncio.create_task(work()) for _ in range(AT_ONCE)]
    try:
        for task in asyncio.as_completed(tasks):
            if (plan := await task) is not None:
                return plan
    finally:
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return None


Plans = Callable[[], Iterator[Plan]]


@pytest.fixture
def plans(request: pytest.FixtureRequest) -> Plans:
    """Makes plans."""

    def made() -> Iterator[Plan]:
        if given := os.environ.get("CHOREO_TEST_PLAN"):
            yield Plan.loads(given)
            return
        random, left = Random(request.config.getoption("--model-seed")), request.config.getoption("--model-steps")
        while left > 0:
            yield (plan := Plan.random(random))
            left -= len(plan.steps)

    return made


@pytest.mark.timeout(0)  # see LIMIT
async def test_over_amqp_clients_see_what_the_core_does(served: EmbeddedBroker, plans: Plans) -> None:
    await compare(plans(), Other(served.url, 2.0, PAUSES[:1]))


@pytest.mark.timeout(0)  # see LIMIT
@pytest.mark.real_node("RabbitMQ to be compared with")
async def test_rabbitmq_clients_see_what_the_core_does(node: Node, plans: Plans) -> None:
    if tuple(map(int, node.version.split("."))) < OLDEST:
        pytest.skip(f"{node.version} differs from what the core follows, and its queues crash: 4.3 or newer is asked")
    await compare(plans(), Other(node.url, 1.0))
