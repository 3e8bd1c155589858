"""The worker's way back to a broker: its own time, and one that is there or is not."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
import structlog

from choreo.agent import Agent
from choreo.broker.in_process import Host, InProcessSession, connect
from choreo.config.settings import Settings
from choreo.errors import AccessRefused, BrokerUnreachable, ChoreoError
from choreo.event import Event
from choreo.runtime.worker import State, Worker
from choreo.topology import Topology
from tests.waiting import in_virtual_time


class Placed(Event, topic="worker.placed", external=True):
    pass


class Broker:
    """One that is there, or answers with `failure`; and when it was asked."""

    def __init__(self) -> None:
        self._host = Host(clock=asyncio.get_running_loop().time)
        self._sessions: list[InProcessSession] = []
        self._failure: ChoreoError | None = None
        self.asked: list[float] = []

    async def connect(self) -> InProcessSession:
        self.asked.append(asyncio.get_running_loop().time())
        if self._failure is not None:
            raise self._failure
        self._sessions.append(await connect(self._host))
        return self._sessions[-1]

    def goes(self, failure: ChoreoError) -> None:
        self._failure = failure
        self._sessions[-1].cut(BrokerUnreachable("the cable"))

    def comes_back(self) -> None:
        self._failure = None


@contextlib.asynccontextmanager
async def consuming(broker: Broker) -> AsyncIterator[Worker]:
    agent = Agent("payment")

    @agent.on
    async def charge(placed: Placed) -> None:
        pass

    worker = Worker([agent], Settings(), broker.connect)
    running = asyncio.create_task(worker.run())
    await reached(worker, State.CONSUMING)
    yield worker
    worker.stop()
    assert await running is True


async def reached(worker: Worker, state: State) -> None:
    there = asyncio.Event()
    worker.watch(lambda changed: there.set() if changed.state is state else None)
    if worker.state is not state:
        await there.wait()


@pytest.mark.parametrize("away", [1.0, 30.0, 600.0, 3_600.0])
@in_virtual_time
async def test_a_broker_that_comes_back_is_found_soon_however_long_it_was_away(away: float) -> None:
    """A pause that grows with what has passed would be half of an outage, paid at its end."""
    broker = Broker()
    with structlog.testing.capture_logs():
        async with consuming(broker) as worker:
            for _ in range(3):
                broker.goes(BrokerUnreachable("connection refused"))
                await asyncio.sleep(away)
                assert worker.state is State.WAITING
                before = len(broker.asked)
                broker.comes_back()
                async with asyncio.timeout(3.1):
                    await reached(worker, State.CONSUMING)
                assert len(broker.asked) == before + 1
    assert len(broker.asked) < 10 * away + 10


@in_virtual_time
async def test_a_long_outage_is_said_now_and_then() -> None:
    """Each of the first attempts, then about two a minute; the status knows each."""
    broker = Broker()
    with structlog.testing.capture_logs() as lines:
        async with consuming(broker) as worker:
            broker.goes(BrokerUnreachable("connection refused"))
            await asyncio.sleep(3_600)
            said = [line["attempt"] for line in lines if line["event"] == "not connected"]
            assert said[:17] == [*range(1, 17), 32]
            assert len(said) < 200
            tried = len(broker.asked) - 1
            assert tried - said[-1] < 16
            assert worker.status == f"connection refused (attempt {tried})"
            broker.comes_back()


@in_virtual_time
async def test_a_broker_that_refuses_is_asked_ever_more_seldom() -> None:
    """Each attempt is a line in its log, and may count towards a lockout."""
    broker = Broker()
    with structlog.testing.capture_logs() as lines:
        async with consuming(broker) as worker:
            broker.goes(AccessRefused("no such user"))
            await asyncio.sleep(3_600)
            assert 120 <= len(broker.asked) < 400
            assert sum(line["event"] == "not connected" for line in lines) == len(broker.asked) - 1, "each is said"
            assert max(after - before for before, after in zip(broker.asked, broker.asked[1:], strict=False)) <= 30.01
            broker.comes_back()
            async with asyncio.timeout(31):
                await reached(worker, State.CONSUMING)


@in_virtual_time
async def test_ready_is_not_said_while_something_is_held() -> None:
    """A dead letter that the broker takes nowhere: not ready, with the reason; ready again when it is stored."""
    broker = Broker()
    async with consuming(broker) as worker:
        processor = next(iter(worker._pools.values())).processor
        processor.held.add(1)
        processor.on_held()
        assert not worker.ready
        assert "held: 1, as the broker takes neither retry nor dead letter" in worker.status
        processor.held.clear()
        processor.on_held()
        assert worker.ready
        assert "held" not in worker.status


@pytest.mark.parametrize("names", [("choreo.events", "choreo.dead"), ("choreo.payment.dlq",)])
@in_virtual_time
async def test_what_is_deleted_is_declared_anew_though_nobody_publishes_to_it(names: tuple[str, ...]) -> None:
    """Exchanges within one look, queues within half a minute; the session stays."""
    broker = Broker()
    async with consuming(broker):
        channel = broker._host.broker.connect().open_channel(1, lambda _: None)
        for name in names:
            (channel.queue_delete if name.endswith("dlq") else channel.exchange_delete)(name)
        await asyncio.sleep(5.5 if len(names) > 1 else 30.5)
        topology = Topology.of([Agent("payment")])
        session = await broker.connect()
        assert await session.missing(topology) == ()
        assert len(broker.asked) == 2
