"""Each behaviour is asked of the embedded core, of the embedded broker over AMQP, and of a real node.

The embedded one follows the newest release; a behaviour that older ones do not have is marked with `since`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from choreo.broker.server.background import EmbeddedBroker
from choreo.testing.rabbitmq.node import Node
from tests.conformance.broker.driver import AmqpDriver, Client, Driver, EmbeddedDriver


@pytest.fixture(scope="session")
def served() -> Iterator[EmbeddedBroker]:
    """The embedded broker that is reached over AMQP; tests share it as they share the node."""
    with EmbeddedBroker("4.3.6", port=0) as broker:
        yield broker


REAL = pytest.param("rabbitmq", marks=pytest.mark.real_node("RabbitMQ to be compared with"))


@pytest.fixture(params=["core", "over_amqp", REAL])
async def broker(request: pytest.FixtureRequest) -> AsyncIterator[Driver]:
    """The broker that is asked."""
    if request.param == "core":
        yield EmbeddedDriver()
        return
    if request.param == "over_amqp":
        driver = AmqpDriver(request.getfixturevalue("served").url, pause=0)
    else:
        node: Node = request.getfixturevalue("node")
        newer = request.node.get_closest_marker("since")
        if newer is not None and tuple(map(int, node.version.split("."))) < newer.args:
            pytest.skip(f"{node.version} does otherwise")
        driver = AmqpDriver(node.url, pause=0.3)
    yield driver
    await driver.close()


@pytest.fixture
async def client(broker: Driver) -> Client:
    """A client with one channel."""
    return await broker.client()


@pytest.fixture
def name(namespace: str) -> Callable[[str], str]:
    """Makes names that no other test has."""
    return lambda short: f"{namespace}.{short}"
