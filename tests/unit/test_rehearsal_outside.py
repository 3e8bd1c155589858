"""Inside a rehearsal every publisher is the rehearsal's: nothing reaches a broker, whatever CHOREO_URL says."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

import choreo
from choreo import Agent, Context, Event
from choreo.config.broker_url import BrokerUrl
from choreo.config.settings import Settings
from choreo.rabbit.session import Connector
from choreo.testing import Rehearsal


class Placed(Event, topic="test-outside.placed", external=True):
    order: str


class Reminded(Event, topic="test-outside.reminded", external=True):
    order: str


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A broker that must not be reached, named where every publisher looks."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        monkeypatch.setenv("CHOREO_URL", f"amqp://127.0.0.1:{listening.getsockname()[1]}")
        monkeypatch.setenv("CHOREO_NAMESPACE", "production")
        yield listening
        with pytest.raises(BlockingIOError):
            listening.accept()


reader = Agent("reader")
seen: list[str] = []


@reader.on
async def read(reminded: Reminded) -> None:
    seen.append(reminded.order)


async def remind(order: str, delay: str | None = None) -> None:
    async with choreo.connect() as publisher:
        await publisher.publish(Reminded(order=order), delay=delay)


def rehearse(agent: Agent, **options: Any) -> list[str]:
    """Return what the reader has got when `agent` has been told that something was placed."""
    seen.clear()

    async def scenario(rehearsal: Rehearsal) -> None:
        await rehearsal.start(reader, agent)
        await rehearsal.publish(Placed(order="7"))
        await rehearsal.settled()
        assert rehearsal.dead_letters == []

    Rehearsal(**options).run(scenario)
    return list(seen)


@pytest.mark.parametrize("namespace", ["choreo", "tests"])
@pytest.mark.usefixtures("outside")
def test_a_reaction_that_connects_publishes_in_the_rehearsal(namespace: str) -> None:
    """At once and later, in whatever namespace the rehearsal is."""
    agent = Agent("clerk")

    @agent.on
    async def place(placed: Placed) -> None:
        await remind(placed.order)
        await remind("later", delay="2h")

    assert rehearse(agent, settings=Settings(namespace=namespace)) == ["7", "later"]


@pytest.mark.usefixtures("outside")
def test_a_reaction_in_a_thread_publishes_there_too() -> None:
    """A `def` reaction that runs a loop of its own reaches the rehearsal from its thread."""
    agent = Agent("clerk")

    @agent.on
    def place(placed: Placed) -> None:
        asyncio.run(remind(placed.order))

    assert rehearse(agent) == ["7"]


def test_a_publisher_that_was_made_before_publishes_there(outside: socket.socket) -> None:
    """As one of a module is, which connects when it is entered: in a lifespan, for example."""
    before = choreo.connect()

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[Any]:
        async with before as publisher:
            yield publisher

    agent = Agent("clerk", lifespan=lifespan)

    @agent.on
    async def place(placed: Placed, ctx: Context) -> None:
        await ctx.resources.publish(Reminded(order=placed.order))

    assert rehearse(agent) == ["7"]


def test_a_session_that_is_opened_by_hand_is_the_rehearsals(outside: socket.socket) -> None:
    """Whoever asks for a session gets one with the rehearsal's broker."""
    connect = Connector(lambda: [BrokerUrl.parse(f"amqp://127.0.0.1:{outside.getsockname()[1]}")], name="by hand")

    async def scenario(rehearsal: Rehearsal) -> str:
        await rehearsal.start(reader)
        session = await connect()
        try:
            assert (await session.stats("choreo.reader")) is not None
            return session.server.product
        finally:
            await session.close()

    assert Rehearsal().run(scenario) == "choreo, embedded"


async def test_after_a_rehearsal_the_broker_is_the_named_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The diversion ends with the rehearsal, also with one that fails."""

    async def failing(rehearsal: Rehearsal) -> None:
        raise OSError("failed")

    def rehearsed() -> None:
        with pytest.raises(OSError, match="failed"):
            Rehearsal().run(failing)

    await asyncio.to_thread(rehearsed)
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    monkeypatch.setenv("CHOREO_URL", f"amqp://127.0.0.1:{port}")
    with pytest.raises(choreo.ChoreoError, match=str(port)):
        await remind("7")
