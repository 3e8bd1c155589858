"""Scheduled events that are due: published to all who are bound, and nothing of one waits for another's queue."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from choreo import dead_letter
from choreo.broker import in_process
from choreo.message import Message
from choreo.runtime.due import DueEvents
from choreo.testing import VirtualLoop
from choreo.topology import Binding, Names, Queue, Topology, schedule_key
from choreo.transport import Confirmed, Delivery, Publication, Refused, Session, Unknown, nacked

NAMES = Names("shop")
PLACED = "order.placed"


class Stage:
    """A broker with a worker's part in scheduled events, and queues of others."""

    def __init__(self, host: in_process.Host, session: in_process.InProcessSession) -> None:
        self.host = host
        self.session = session
        self.loop = asyncio.get_running_loop()
        self.heard: list[tuple[str, Delivery, float]] = []

    async def queue(self, name: str, topic: str = PLACED, *, read: bool = True, **arguments: Any) -> None:
        """Bind a queue to the events, as anybody may."""
        quorum = {"x-queue-type": "quorum", "x-delivery-limit": 20} | arguments
        queue = Queue(name, "work", None, quorum)
        await self.session.declare(Topology((), (queue,), (Binding(NAMES.events, name, topic),)))
        if read:
            await self.read(name)

    async def read(self, name: str) -> None:
        def note(delivery: Delivery) -> None:
            self.heard.append((name, delivery, self.loop.time()))
            delivery.consumer.acknowledge(delivery)

        await self.session.consume(name, prefetch=100, on_delivery=note)

    async def schedule(self, seconds: int, topic: str = PLACED, **message: Any) -> None:
        sent = Message(b"{}", **message)
        key = schedule_key(topic, seconds)
        answer = await self.session.publish(sent, exchange=NAMES.delay, routing_key=key, timeout=10)
        assert answer == Confirmed()

    def delete(self, name: str) -> None:
        self.session.open_channel(lambda *_: None).queue_delete(name)

    def letters(self) -> list[dead_letter.DeadLetter]:
        found = in_process.look(self.host, NAMES.dlq("unclaimed"))
        return [dead_letter.read(each, agent="unclaimed") for each in found]

    def waiting(self) -> dict[str, int]:
        return {queue.queue: queue.messages for queue in self.host.broker.queues() if queue.messages}


def rehearse(
    scenario: Callable[[Stage], Awaitable[None]], *, wrapped: Callable[[Session], Any] = lambda it: it
) -> None:
    async def main() -> None:
        host = in_process.Host(clock=asyncio.get_running_loop().time)
        session = await in_process.connect(host)
        await session.declare(Topology.of([], NAMES.namespace))
        due = DueEvents(wrapped(session), NAMES)
        await due.open()
        await scenario(Stage(host, session))
        await due.cancel()
        await session.close()
        host.close()

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main())


def test_whoever_is_bound_when_the_time_comes_gets_it() -> None:
    """Also who was bound only meanwhile; nobody who is gone by then; each once, as it was published."""

    async def scenario(stage: Stage) -> None:
        await stage.queue("early")
        await stage.queue("gone", read=False)
        headers = {"mine": "kept", "x-death": []}
        await stage.schedule(5, message_id="m", headers=headers, correlation_id="c")
        await asyncio.sleep(2)
        await stage.queue("late", "order.*")
        stage.delete("gone")
        await asyncio.sleep(10)
        assert sorted(name for name, _, _ in stage.heard) == ["early", "late"]
        for _, delivery, when in stage.heard:
            assert when == pytest.approx(5, abs=0.5)
            assert (delivery.exchange, delivery.routing_key) == (NAMES.events, PLACED)
            assert (delivery.message.message_id, delivery.message.correlation_id) == ("m", "c")
            assert delivery.message.headers == {"mine": "kept"}
        assert stage.waiting() == {}

    rehearse(scenario)


def test_an_event_that_nobody_is_bound_to_is_a_dead_letter_when_it_is_due() -> None:
    """It is in the dead-letter queue of what is unclaimed, with topic, id, reason and words."""

    async def scenario(stage: Stage) -> None:
        await stage.schedule(86_400, "order.lost", message_id="m", headers={"ce-id": "m"})
        await asyncio.sleep(86_399)
        assert stage.letters() == []
        await asyncio.sleep(2)
        (letter,) = stage.letters()
        assert (letter.id, letter.topic, letter.reason, letter.agent) == ("m", "order.lost", "unclaimed", "unclaimed")
        assert "nobody was bound" in str(letter.error)

    rehearse(scenario)


def test_a_full_queue_holds_up_nothing_but_its_own_copies() -> None:
    """Two hundred events for a full queue, and every other delay is in time; what was refused is published again ever
    more seldom, waits in the delays where it is seen, and arrives when there is room."""

    async def scenario(stage: Stage) -> None:
        limit = {"x-max-length": 1, "x-overflow": "reject-publish"}
        await stage.queue("full", "a.go", read=False, **limit)
        await stage.queue("free", "b.go")
        for _ in range(200):
            await stage.schedule(1, "a.go")
        await asyncio.sleep(5)
        assert sum(stage.waiting().values()) >= 200
        await stage.schedule(1, "b.go")
        began = stage.loop.time()
        await asyncio.sleep(2)
        assert [name for name, _, _ in stage.heard] == ["free"]
        assert stage.heard[0][2] - began == pytest.approx(1, abs=0.5)
        await asyncio.sleep(3600)
        held = stage.waiting()
        assert sum(held.values()) >= 200
        assert set(held) <= {"full", *(NAMES.level(level) for level in range(9))}
        assert stage.letters() == []
        await stage.session.declare(Topology((), (), (Binding(NAMES.events, "free", "a.go"),)))
        stage.heard.clear()
        stage.delete("full")
        await asyncio.sleep(300)
        assert len(stage.heard) >= 198, "the queue held one or two itself"
        assert set(stage.waiting()) == set()

    rehearse(scenario)


class Answering:
    """A session that gives an answer of the test's own to what is published to the events."""

    def __init__(self, session: Session, answer: Publication) -> None:
        self._session = session
        self._answer: Publication | None = answer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    async def publish(self, message: Message, *, exchange: str, **options: Any) -> Publication:
        if exchange == NAMES.events and self._answer is not None:
            answer, self._answer = self._answer, None
            return answer
        return await self._session.publish(message, exchange=exchange, **options)


@pytest.mark.parametrize("answer", [Unknown("no answer within 600 s"), Refused("missing", "there is no such exchange")])
def test_an_event_without_an_answer_is_given_back_and_tried_again(answer: Publication) -> None:
    """It stays in the queue of what is due, and is published by whoever gets it next."""

    async def scenario(stage: Stage) -> None:
        await stage.queue("free")
        await stage.schedule(1, message_id="m")
        await asyncio.sleep(4)
        assert stage.heard == []
        await asyncio.sleep(10)
        assert [delivery.message.message_id for _, delivery, _ in stage.heard] == ["m"]
        assert stage.waiting() == {}

    rehearse(scenario, wrapped=lambda session: Answering(session, answer))


def test_an_event_that_the_broker_never_takes_is_a_dead_letter() -> None:
    """For want of a permission, or because it is too large: it would come back for ever."""

    async def scenario(stage: Stage) -> None:
        await stage.queue("free")
        await stage.schedule(1, message_id="m")
        await asyncio.sleep(4)
        assert [(letter.reason, letter.error) for letter in stage.letters()] == [("refused", "no permission")]
        assert stage.heard == []

    rehearse(scenario, wrapped=lambda session: Answering(session, Refused("rejected", "no permission")))


class Full(Answering):
    """A session whose broker takes no dead letters: their queue is full."""

    def __init__(self, session: Session) -> None:
        super().__init__(session, Confirmed())

    async def publish(self, message: Message, *, exchange: str, **options: Any) -> Publication:
        if exchange == NAMES.unclaimed:
            return nacked(exchange, "")
        return await self._session.publish(message, exchange=exchange, **options)


def test_dead_letters_that_are_not_taken_hold_up_no_other_event() -> None:
    """More of them than are on the way at a time, at the head of the queue: what is due meanwhile is in time, and they
    wait in the delays, where they are seen."""

    async def scenario(stage: Stage) -> None:
        await stage.queue("free")
        for _ in range(250):
            await stage.schedule(1, "order.lost")
        await asyncio.sleep(3)
        await stage.schedule(1)
        began = stage.loop.time()
        await asyncio.sleep(60)
        assert [when - began for _, _, when in stage.heard] == [pytest.approx(1, abs=0.5)]
        assert sum(stage.waiting().values()) == 250

    rehearse(scenario, wrapped=Full)


def test_a_session_that_is_lost_under_it_loses_nothing() -> None:
    """What is on the way then is delivered again, to another worker."""

    async def main() -> None:
        host = in_process.Host(clock=asyncio.get_running_loop().time)
        sessions = [await in_process.connect(host) for _ in range(3)]
        await sessions[0].declare(Topology.of([], NAMES.namespace))
        stage = Stage(host, sessions[0])
        await stage.queue("free")
        stuck = asyncio.get_running_loop().create_future()

        class Stuck(Answering):
            async def publish(self, message: Message, **options: Any) -> Publication:
                return Unknown(str(await stuck))

        first = DueEvents(Stuck(sessions[1], Confirmed()), NAMES)
        await first.open()
        for number in range(20):
            await stage.schedule(1, message_id=str(number))
        await asyncio.sleep(3)
        assert stage.heard == []
        first.abandon()
        await sessions[1].close()
        second = DueEvents(sessions[2], NAMES)
        await second.open()
        await asyncio.sleep(1)
        assert {each.message.message_id for _, each, _ in stage.heard} == {str(number) for number in range(20)}
        assert len(stage.heard) == 20
        await second.cancel()
        host.close()

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main())
