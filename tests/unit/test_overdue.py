"""A reaction that is ended from outside, because the broker takes its delivery back again and again."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

import choreo
from choreo.errors import EnvelopeError
from choreo.event import Event
from choreo.message import Message, Reason
from choreo.runtime.delivery import DeliveryProcessor
from choreo.runtime.underway import Underway
from choreo.topology import Names
from choreo.transport import Confirmed, Delivery


class Asked(Event, topic="test-overdue.asked", external=True):
    pass


async def test_reaction_that_is_given_up_ends_in_a_dead_letter_with_the_reason() -> None:
    """It is cancelled, stored with what the broker said, and settled; the next delivery runs as ever."""
    agent, began, ends = choreo.Agent("overdue-desk"), asyncio.Event(), list[str]()

    @agent.on
    async def answer(asked: Asked) -> None:
        began.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            ends.append("cancelled")
            raise

    published: list[Message] = []
    settled: list[Delivery] = []

    async def publish(message: Message, **_: Any) -> Confirmed:
        published.append(message)
        return Confirmed()

    session: Any = SimpleNamespace(publish=publish, lost=asyncio.get_running_loop().create_future())
    consumer: Any = SimpleNamespace(acknowledge=settled.append)
    with ThreadPoolExecutor() as executor:
        processor = DeliveryProcessor(agent, Names("test"), executor, 2**20, 10.0)
        delivery = Delivery(
            Message(b"{}"), "test.events", "test-overdue.asked", 1, redelivered=False, consumer=consumer
        )
        processor.underway.give_up(delivery, EnvelopeError(Reason.OVERDUE, "nothing runs yet"))
        running = asyncio.create_task(processor.deliver(session, delivery))
        await began.wait()
        processor.underway.give_up(delivery, EnvelopeError(Reason.OVERDUE, "taken back 15 times", "raise it"))
        await running
    assert ends == ["cancelled"]
    assert settled == [delivery]
    (letter,) = published
    assert letter.headers["choreo-dead-reason"] == "overdue"
    assert "taken back 15 times; raise it" in letter.headers.values()
    assert (processor.counters.dead, bool(processor.underway)) == (1, False)


async def test_reaction_that_takes_no_notice_leaves_its_task_as_it_was() -> None:
    """It is asked once to end. What it gives all the same counts, and the next one in that task is not cancelled."""
    underway = Underway()
    delivery = Delivery(Message(b"{}"), "", "", 1, redelivered=False, consumer=cast("Any", None))
    asked, ending = list[str](), asyncio.Event()

    async def stubborn() -> str:
        for _ in range(2):
            underway.give_up(delivery, EnvelopeError(Reason.OVERDUE, "taken back 15 times"))
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                asked.append("to end")
        return "done"

    assert await underway.until_done("event", delivery, stubborn(), ending) == "done"
    task = asyncio.current_task()
    assert task is not None
    assert (asked, task.cancelling(), bool(underway)) == (["to end"], 0, False)
