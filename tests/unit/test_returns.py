"""Loops through a participant that keeps no hops end, whatever else it keeps; a long import is none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import structlog

from choreo import Agent, Event
from choreo.broker.core import BasicProperties
from choreo.broker.in_process import Host, connect
from choreo.config.settings import Settings
from choreo.envelope import open_envelope
from choreo.errors import NotEmitted
from choreo.message import Message, Reason
from choreo.runtime.returns import Returns
from choreo.runtime.worker import Worker
from choreo.topology import Names
from choreo.transport import Delivery
from tests.waiting import eventually, in_virtual_time

BOUND = 50
NAMES = Names("choreo")


class Asked(Event, topic="returns.asked", external=True):
    what: str


class Answered(Event, topic="returns.answered"):
    what: str


def kept_correlation(got: Message) -> Message:
    return Message(got.body, correlation_id=got.correlation_id)


def answers_the_id(got: Message) -> Message:
    """As in RPC over AMQP: the correlation id of an answer is the id of what it answers."""
    return Message(got.body, correlation_id=got.message_id)


def kept_nothing(got: Message) -> Message:
    return Message(got.body)


def kept_headers(got: Message) -> Message:
    """A choreo-hops that it keeps, and does not count on."""
    return Message(got.body, headers=dict(got.headers))


@pytest.mark.parametrize(
    ("returned", "expected"),
    [(kept_correlation, BOUND), (answers_the_id, BOUND), (kept_nothing, BOUND + 1), (kept_headers, 20)],
)
@in_virtual_time
async def test_a_loop_through_a_foreign_participant_ends_in_a_dead_letter(
    returned: Callable[[Message], Message], expected: int
) -> None:
    """It takes what the agent emits and publishes it anew for the agent."""
    agent, begun = Agent("desk", max_returns=BOUND, max_hops=20), 0

    @agent.on
    async def answer(asked: Asked) -> Answered:
        nonlocal begun
        begun += 1
        return Answered(what=asked.what)

    host = Host(clock=asyncio.get_running_loop().time)
    worker = Worker([agent], Settings(), lambda: connect(host))
    session = await connect(host)

    def publish(message: Message) -> None:
        properties = BasicProperties(headers=message.headers, correlation_id=message.correlation_id)
        channel.publish(NAMES.events, "returns.asked", properties, message.body)

    def loop(delivery: Delivery) -> None:
        delivery.consumer.acknowledge(delivery)
        if begun < 10 * BOUND:  # a test that fails has to end
            publish(returned(delivery.message))

    with structlog.testing.capture_logs():
        running = asyncio.create_task(worker.run())
        await eventually(lambda: worker.ready)
        channel = session.open_channel(lambda _: None)
        channel.queue_declare("foreign", durable=True, arguments={"x-queue-type": "quorum"})
        channel.queue_bind("foreign", NAMES.events, "returns.answered")
        await session.consume("foreign", prefetch=10, on_delivery=loop)
        publish(Message(b'{"what": "time"}', correlation_id="c"))
        await eventually(lambda: worker.counters["desk"].dead)
        worker.stop()
        await running
    assert (worker.counters["desk"].emitted, worker.counters["desk"].dead) == (expected, 1)
    host.close()


def count(returns: Returns, agent: Agent, correlation: str, number: int = 0) -> None:
    cause = open_envelope(Message(b"{}", message_id=f"{correlation}-{number}", correlation_id=correlation), "a.b")
    returns.count(agent, cause, [Message(b"{}", message_id=f"emitted-{correlation}-{number}")])


def test_a_long_import_under_one_correlation_is_no_loop() -> None:
    """Ten thousand events of one transaction, each of which is followed by another one."""
    returns, agent = Returns(), Agent("desk")
    for number in range(10_000):
        count(returns, agent, "import", number)


def test_what_is_known_is_bounded_and_forgotten_after_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    """A million correlations need no more memory than ten thousand; what circulates stays among them."""
    returns, agent, now = Returns(), Agent("desk", max_returns=100), 0.0
    monkeypatch.setattr("choreo.clock.monotonic", lambda: now)
    for number in range(100):
        count(returns, agent, "loop", number)
        for other in range(500):
            count(returns, agent, f"{number}-{other}")
    assert len(returns._counts) <= 10_000
    assert len(returns._answered) <= 10_000
    with pytest.raises(NotEmitted, match="max_returns is 100") as raised:
        count(returns, agent, "loop", 100)
    assert raised.value.reason == Reason.LOOP
    now = 3_601.0
    count(returns, agent, "loop", 101)
