"""What a worker says of its session with the broker, and the session that it is told to use."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from choreo import Event, connect
from choreo.rabbit.node import Node

if TYPE_CHECKING:
    from tests.conftest import Running

Start = Callable[..., "Running"]

AGENT = """
import asyncio
from pathlib import Path

from choreo import Agent, Event

class Placed(Event, topic="test-session.placed", external=True):
    order: str

class Done(Event, topic="test-session.done", terminal=True):
    order: str

agent = Agent("desk")

@agent.on
async def work(placed: Placed) -> Done:
    print("begun", placed.order, flush=True)
    while Path("hold").exists():
        await asyncio.sleep(0.01)
    return Done(order=placed.order)
"""


class Placed(Event, topic="test-session.placed", external=True):
    order: str


@pytest.fixture
def start(project: Path, start_choreo: Start, namespace: str) -> Callable[..., Running]:
    """Starts the agent's worker on the broker at a URL, with further variables; returns it when it consumes."""
    (project / "agents" / "desk.py").write_text(AGENT)

    def start_one(url: str, **environment: str) -> Running:
        running = start_choreo("run", "desk", env={"CHOREO_URL": url, "CHOREO_NAMESPACE": namespace} | environment)
        running.wait_for('"state": "consuming"')
        return running

    return start_one


async def test_plain_session_does_the_same_work(start: Callable[..., Running], broker_url: str, namespace: str) -> None:
    """CHOREO_LANE=false: through aiormq's own channels, for the worker and for a publisher."""
    worker = await asyncio.to_thread(start, broker_url, CHOREO_LANE="false")
    async with connect(broker_url, namespace=namespace, lane=False) as publisher:
        for order in ("1", "2"):
            await publisher.publish(Placed(order=order))
    for order in ("1", "2"):
        await asyncio.to_thread(worker.wait_for, f"begun {order}")


async def test_worker_says_that_its_publishes_wait(
    start: Callable[..., Running], fresh_node: Node, project: Path, namespace: str
) -> None:
    """While the broker is short of memory the worker goes on consuming, and says what does not go on, until it does."""
    worker = await asyncio.to_thread(start, fresh_node.url)
    (project / "hold").touch()
    async with connect(fresh_node.url, namespace=namespace) as publisher:
        await publisher.publish(Placed(order="1"))
    await asyncio.to_thread(worker.wait_for, "begun 1")
    await asyncio.to_thread(fresh_node.ctl, "set_vm_memory_high_watermark", "0.0001")
    (project / "hold").unlink()
    await asyncio.to_thread(worker.wait_for, "publishes wait: the broker blocks publishers, low on memory")
    await asyncio.to_thread(fresh_node.ctl, "set_vm_memory_high_watermark", "0.6")
    await asyncio.to_thread(worker.wait_for, '"state": "consuming"', times=3)
    states = [json.loads(line) for line in worker.stderr if '"event": "worker"' in line]
    assert [each["state"] for each in states] == ["consuming"] * 3, "it was ready all the time"
    assert states[0]["status"] == states[2]["status"] != states[1]["status"]
