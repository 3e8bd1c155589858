"""The fixture `rabbitmq` of choreo's pytest plugin, where there is a RabbitMQ."""

from __future__ import annotations

import pytest

import choreo
from choreo import Agent, Event
from choreo.config.broker_url import BrokerUrl
from choreo.rabbit import session
from choreo.testing.rabbitmq.node import Node
from choreo.testing.rabbitmq.release import INSTALL, find_server
from choreo.topology import Topology
from tests.conftest import MISSING


class Knocked(Event, topic="fixture.knocked", external=True):
    name: str


@pytest.fixture(autouse=True)
def there_is_one() -> None:
    if find_server() is None:
        pytest.skip(f"{MISSING}: {INSTALL}")


@pytest.mark.broker
async def test_it_is_a_node_of_its_own(rabbitmq: Node) -> None:
    """It runs on a port of its own and takes events; no setting names it."""
    agent = Agent("porter")

    @agent.on
    async def open_up(knocked: Knocked) -> None:
        raise NotImplementedError

    declaring = await session.connect(BrokerUrl.parse_all(rabbitmq.url), name="test")
    await declaring.declare(Topology.of([agent]))
    async with choreo.connect(rabbitmq.url) as publisher:
        assert (await publisher.publish(Knocked(name="Ada"))).id
    found = await declaring.stats("choreo.porter")
    assert found is not None
    assert found.ready == 1
    await declaring.close()
