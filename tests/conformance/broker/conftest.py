"""Each behaviour is asked of the embedded core and of a real node; the embedded one follows the newest release."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from choreo.rabbit.node import Node
from tests.conformance.broker.driver import Client, Driver, EmbeddedDriver, NodeDriver


@pytest.fixture(params=["embedded", "rabbitmq"])
async def broker(request: pytest.FixtureRequest) -> AsyncIterator[Driver]:
    """The broker that is asked."""
    if request.param == "embedded":
        yield EmbeddedDriver()
        return
    node: Node = request.getfixturevalue("node")
    newer = request.node.get_closest_marker("since")
    if newer is not None and tuple(map(int, node.version.split("."))) < newer.args:
        pytest.skip(f"{node.version} does otherwise")
    driver = NodeDriver(node.url)
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
