"""Participants with nothing but an AMQP client: `amqp-publish` starts a reaction, `amqp-consume` reads JSON."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
from pydantic import SecretStr

from choreo import Agent, Event
from choreo.config.broker_url import BrokerUrl
from choreo.config.settings import Settings
from choreo.rabbit.session import connect
from choreo.runtime.worker import State, Worker
from choreo.topology import Binding, Names, Queue, Topology
from choreo.transport import Connect

pytestmark = pytest.mark.skipif(
    not (shutil.which("amqp-publish") and shutil.which("amqp-consume")),
    reason="AMQP TOOLS WERE NOT FOUND, no foreign client reads and writes our events: apt-get install amqp-tools",
)


class Knocked(Event, topic="test-tools.knocked"):
    name: str


class Opened(Event, topic="test-tools.opened", terminal=True):
    greeting: str


doors = Agent("doors")


@doors.on
async def open_door(knocked: Knocked) -> Opened:
    return Opened(greeting=f"Grüezi, {knocked.name}")


@asynccontextmanager
async def working(agent: Agent, settings: Settings, opener: Connect) -> AsyncIterator[None]:
    """Have a worker of this process consume for `agent`, and drain at the end."""
    worker = Worker([agent], settings, opener)
    consuming = asyncio.Event()
    worker.watch(lambda worker: consuming.set() if worker.state is State.CONSUMING else None)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(worker.run())
        try:
            async with asyncio.timeout(20):
                await consuming.wait()
            yield
        finally:
            worker.stop()
    assert running.result()


async def tool(*command: str) -> str:
    """Run a program to its end and return what it printed."""
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        async with asyncio.timeout(20):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0
    return output.decode()


async def test_body_and_routing_key_are_a_whole_event(broker_url: str, namespace: str):
    """amqp-publish sets no header, no id, no content type; the reaction runs, and its event is plain JSON."""
    opener = partial(connect, BrokerUrl.parse_all(broker_url), name="test")
    names = Names(namespace)
    reader = Queue(f"{namespace}.reader", "work", None, {"x-queue-type": "classic"})
    url = broker_url.removesuffix("/")  # which would mean a virtual host without a name to these tools
    async with working(doors, Settings(url=SecretStr(broker_url), namespace=namespace), opener):
        session = await opener()
        await session.declare(Topology((), (reader,), (Binding(names.events, reader.name, "#"),)))
        await session.close()

        body = json.dumps({"name": "Heidi"})
        await tool("amqp-publish", "-u", url, "-e", names.events, "-r", "test-tools.knocked", "-b", body)
        first, second = [await tool("amqp-consume", "-u", url, "-q", reader.name, "-c", "1", "cat") for _ in range(2)]
    assert json.loads(first) == {"name": "Heidi"}
    assert json.loads(second) == {"greeting": "Grüezi, Heidi"}
