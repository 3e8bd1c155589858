"""How much an agent holds: one by one while suspects come, the whole window otherwise, and in which order suspects run.

The broker is a fake that delivers what came back before what is new, as a quorum queue does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

import choreo
from choreo.errors import BrokerUnreachable, ChoreoError, EnvelopeError
from choreo.event import Event
from choreo.message import ATTEMPT, DELIVERY_COUNT, Message
from choreo.retry import Retry
from choreo.runtime.holding import affordable, longest_way, needed, shares
from choreo.runtime.overdue import ROUNDS
from choreo.runtime.subscription import Subscription
from choreo.runtime.suspects import SUSPECT, Turns
from choreo.transport import Delivery, OnDelivery, OnTimeout, came_back
from tests.waiting import eventually


class FakeQueue:
    """A queue and the session that consumes from it. A message is its body and how often it came back."""

    def __init__(self, *messages: tuple[str, int], with_ids: bool = False) -> None:
        self.with_ids = with_ids
        self.ready = [self.message(body, count) for body, count in messages]
        self.consumers: list[FakeConsumer] = []
        self.widest = 0
        self.acknowledged: list[str] = []
        self.closing = asyncio.Event()  # a request to close is answered
        self.closing.set()

    async def consume(
        self, queue: str, *, prefetch: int, on_delivery: OnDelivery, hold: float, on_timeout: OnTimeout
    ) -> FakeConsumer:
        self.consumers.append(FakeConsumer(self, queue, prefetch, on_delivery, on_timeout))
        self.deliver()
        return self.consumers[-1]

    def put(self, body: str, count: int = 0) -> None:
        self.ready.append(self.message(body, count))
        self.deliver()

    def message(self, body: str, count: int) -> Message:
        name = body if self.with_ids else None
        return Message(body.encode(), {DELIVERY_COUNT: count} if count else {}, message_id=name)

    def deliver(self) -> None:
        for consumer in self.consumers:
            while self.ready and consumer.open and len(consumer.unsettled) < consumer.prefetch:
                self.ready.sort(key=lambda message: not message.headers)  # what came back is first
                consumer.take(self.ready.pop(0))
        self.widest = max(self.widest, sum(len(each.unsettled) for each in self.consumers))

    def take_back(self, *names: str) -> None:
        """End whatever receives over its deliveries `names`, as the consumer timeout does."""
        for consumer in self.consumers:
            late = [each for each in consumer.unsettled if each.message.body.decode() in names]
            for each in late:
                consumer.unsettled.remove(each)
                headers = {DELIVERY_COUNT: each.message.headers.get(DELIVERY_COUNT, 0) + 1}
                self.ready.append(Message(each.message.body, headers, message_id=each.message.message_id))
            if late:
                consumer.open = False
                consumer.on_timeout(ChoreoError("a delivery was held for too long", "raise it"))
                asyncio.get_running_loop().call_soon(self.deliver)

    def held(self) -> list[str]:
        return [each.message.body.decode() for consumer in self.consumers for each in consumer.unsettled]


class FakeConsumer:
    def __init__(
        self, fake: FakeQueue, queue: str, prefetch: int, on_delivery: OnDelivery, on_timeout: OnTimeout
    ) -> None:
        self.queue, self.prefetch, self.open, self.closed = queue, prefetch, True, False
        self.on_timeout = on_timeout
        self.tag = 0
        self.unsettled: list[Delivery] = []
        self._fake, self._on_delivery = fake, on_delivery

    def take(self, message: Message) -> None:
        self.tag += 1
        delivery = Delivery(message, "", "", self.tag, redelivered=bool(message.headers), consumer=self)
        self.unsettled.append(delivery)
        asyncio.get_running_loop().call_soon(self._on_delivery, delivery)

    def acknowledge(self, delivery: Delivery) -> None:
        if delivery in self.unsettled:  # else it was taken back
            self.unsettled.remove(delivery)
            self._fake.acknowledged.append(delivery.message.body.decode())
        self._fake.deliver()

    def requeue(self, delivery: Delivery) -> None:
        count = came_back(delivery) + 1
        self.unsettled.remove(delivery)
        self._fake.put(delivery.message.body.decode(), count)

    async def cancel(self) -> None:
        await asyncio.sleep(0)
        self.open = False

    async def close(self) -> None:
        await self._fake.closing.wait()
        self.closed = True


class Agent:
    """What runs: each delivery until it is told to end."""

    def __init__(self) -> None:
        self.running: dict[str, Delivery] = {}
        self.begun: list[str] = []
        self.ends = 0
        self.given_up: dict[str, ChoreoError] = {}

    def begin(self, delivery: Delivery) -> None:
        name = delivery.message.body.decode()
        assert name not in self.running, "never twice at once"
        self.begun.append(name)
        self.running[name] = delivery

    def give_up(self, delivery: Delivery, error: ChoreoError) -> None:
        self.given_up[delivery.message.body.decode()] = error

    def end(self, name: str) -> None:
        delivery = self.running.pop(name)
        self.ends += 1
        delivery.consumer.acknowledge(delivery)

    async def runs(self, *names: str) -> None:
        await eventually(lambda: sorted(self.running) == sorted(names), what=f"running {names}")


class Scene:
    def __init__(self, fake: FakeQueue, prefetch: int, turns: Turns | None = None) -> None:
        session: Any = fake
        self.agent = Agent()
        self.subscription = Subscription(
            session, "queue", prefetch, turns or Turns(1), self.agent.begin, end=self.agent.give_up
        )


@pytest.fixture
async def scenes() -> AsyncIterator[list[Scene]]:
    """Windows of a test, to be given up at its end."""
    opened: list[Scene] = []
    yield opened
    for scene in opened:
        scene.subscription.abandon()


async def play(scenes: list[Scene], fake: FakeQueue, prefetch: int = 10, turns: Turns | None = None) -> Agent:
    scenes.append(Scene(fake, prefetch, turns))
    await scenes[-1].subscription.open()
    return scenes[-1].agent


class Placed(Event, topic="test-window.placed"):
    pass


class Gone(Event, topic="test-window.gone"):
    pass


class Busy(Exception):
    """What policies below name."""


def gave_up(placed: Placed, error: Exception) -> Gone:
    return Gone()


@pytest.mark.parametrize(
    ("options", "seconds"),
    [
        ({}, 40),
        ({"timeout": "20m"}, 1210),
        ({"retry": Retry(on=Busy, attempts=5, immediate=2)}, 120),
        ({"retry": Retry(on=Busy, attempts=1), "otherwise": gave_up}, 80),
        ({"retry": Retry(on=Busy, immediate=1), "otherwise": gave_up, "timeout": 5}, 45),
    ],
    ids=["plain", "timeout", "immediate", "otherwise", "all"],
)
def test_longest_way_of_a_delivery_counts_everything_that_happens_in_the_process(
    options: dict[str, Any], seconds: float
) -> None:
    """Each try and the last word may take the deadline, and what they emit the publish timeout of 10 s here."""
    shop = choreo.Agent("shop")

    @shop.on(**options)
    async def work(placed: Placed) -> None: ...

    assert longest_way(shop.reactions[0], publish_timeout=10) == seconds


@pytest.mark.parametrize(
    ("prefetch", "concurrency", "longest", "held"),
    [
        (100, 16, 40, 100),  # the defaults: 42 rounds
        (1000, 16, 40, 16 * 42 - 1),
        (100, 16, 560, 47),  # three rounds, and one delivery more while the window opens
        (100, 16, 900, 16),  # one round: as many as can run at once
        (100, 16, 100_000, 16),  # one that no window helps
        (4, 16, 100_000, 4),
        (100, 1, 1680, 1),
        (100, 1, 0, 100),  # an agent without reactions
    ],
)
def test_window_is_no_wider_than_the_broker_is_patient(
    prefetch: int, concurrency: int, longest: float, held: int
) -> None:
    """Whatever waits in the window must be settled before the broker takes it back, half an hour by default."""
    assert affordable(prefetch, concurrency, longest) == held


def wide(fake: FakeQueue) -> bool:
    return fake.consumers[-1].open and fake.consumers[-1].prefetch > 1


def test_what_a_publisher_writes_makes_no_suspect() -> None:
    """The count is the broker's, which marks what it delivers again; before that the header is anybody's."""
    consumer: Any = None
    for redelivered, count, back in [(False, 7, 0), (True, 7, 7), (True, None, 0), (True, "many", 0)]:
        message = Message(b"", {} if count is None else {DELIVERY_COUNT: count})
        assert came_back(Delivery(message, "", "", 0, redelivered=redelivered, consumer=consumer)) == back


async def test_whole_window_when_the_first_delivery_is_no_suspect(scenes: list[Scene]) -> None:
    """It does not wait for that one to end; the narrow subscription is closed when it has ended."""
    fake = FakeQueue(("back once", SUSPECT - 1), *((f"{n}", 0) for n in range(5)))
    agent = await play(scenes, fake)
    await agent.runs("back once", "0", "1", "2", "3", "4")
    narrow = fake.consumers[0]
    assert not narrow.open
    assert not narrow.closed
    agent.end("back once")
    await eventually(lambda: narrow.closed)


async def test_whole_window_when_nothing_comes(scenes: list[Scene]) -> None:
    """An idle worker is ready for a burst."""
    fake = FakeQueue()
    agent = await play(scenes, fake)
    await eventually(lambda: wide(fake))
    for name in ("1", "2", "3"):
        fake.put(name)
    await agent.runs("1", "2", "3")


async def test_suspects_run_one_by_one_before_anything_else(scenes: list[Scene]) -> None:
    """While one runs, nothing else is held that could be buried with it; afterwards the window is whole."""
    fake = FakeQueue(("1", 0), ("2", 0), ("suspect", SUSPECT), ("another", SUSPECT + 5))
    agent = await play(scenes, fake)
    for suspect in ("suspect", "another"):
        await agent.runs(suspect)
        assert fake.held() == [suspect]
        assert fake.widest == 1
        agent.end(suspect)
    await agent.runs("1", "2")


async def test_window_of_one_stays_narrow(scenes: list[Scene]) -> None:
    """With a prefetch of 1 every delivery runs alone, suspect or not, on one subscription."""
    fake = FakeQueue(("suspect", SUSPECT), ("1", 0), ("2", 0))
    agent = await play(scenes, fake, prefetch=1)
    for name in ("suspect", "1", "2"):
        await agent.runs(name)
        agent.end(name)
    fake.put("late", SUSPECT)
    await agent.runs("late")
    assert len(fake.consumers) == 1


async def test_suspect_in_a_wide_window_waits_until_it_is_alone(scenes: list[Scene]) -> None:
    """It is neither run beside the others nor given back, which would count as well; the next window is narrow."""
    fake = FakeQueue(("1", 0), ("2", 0))
    agent = await play(scenes, fake)
    await agent.runs("1", "2")
    await eventually(lambda: wide(fake))
    fake.put("suspect", SUSPECT)
    await eventually(lambda: not wide(fake))
    fake.put("3")
    agent.end("1")
    await agent.runs("2")
    assert sorted(fake.held()) == ["2", "suspect"]
    agent.end("2")
    await agent.runs("suspect")
    assert fake.held() == ["suspect"]
    fake.put("another", SUSPECT)
    agent.end("suspect")
    await agent.runs("another")
    assert fake.held() == ["another"], "narrow again"
    agent.end("another")
    await agent.runs("3")


async def test_what_is_set_aside_is_given_back_at_the_end(scenes: list[Scene]) -> None:
    """A drain hands back suspects that have not run, and takes no more."""
    fake = FakeQueue(("1", 0))
    agent = await play(scenes, fake)
    await agent.runs("1")
    await eventually(lambda: wide(fake))
    fake.put("suspect", SUSPECT)
    await eventually(lambda: not wide(fake))
    await scenes[0].subscription.cancel()
    fake.put("2")
    assert sorted(message.body.decode() for message in fake.ready) == ["2", "suspect"]
    assert fake.held() == ["1"]
    agent.end("1")


async def test_stop_does_not_cut_off_a_request_that_is_under_way(scenes: list[Scene]) -> None:
    """A subscription that is just being closed is closed first: brokers and clients lose the connection over half a
    request, and with it acknowledgements."""
    fake = FakeQueue(("1", 0))
    agent = await play(scenes, fake)
    await agent.runs("1")
    await eventually(lambda: wide(fake))
    fake.closing.clear()
    agent.end("1")
    await asyncio.sleep(0.05)  # the narrow subscription waits for its goodbye
    asyncio.get_running_loop().call_later(0.1, fake.closing.set)
    await scenes[0].subscription.cancel()
    assert fake.consumers[0].closed


async def test_suspects_of_one_process_take_turns_and_the_least_suspicious_is_first(scenes: list[Scene]) -> None:
    """Who was only there when another agent's reaction ended the process came back less often: it ends before that one
    has its turn. No turn is given before every window knows what its queue begins with."""
    turns = Turns(2)
    culprit, innocent = FakeQueue(("culprit", SUSPECT + 1)), FakeQueue()
    crashing = await play(scenes, culprit, turns=turns)
    await asyncio.sleep(0)  # its suspect has arrived; the other queue has said nothing yet
    innocent.ready.append(Message(b"innocent", {DELIVERY_COUNT: SUSPECT}))
    other = await play(scenes, innocent, turns=turns)
    await other.runs("innocent")
    await crashing.runs()
    other.end("innocent")
    await crashing.runs("culprit")
    crashing.end("culprit")


async def test_subscription_that_holds_nothing_has_not_held_it_for_too_long(scenes: list[Scene]) -> None:
    """What looks like a consumer timeout is the end of a queue that another of the same name has replaced."""
    fake = FakeQueue()
    await play(scenes, fake)
    await eventually(lambda: wide(fake))
    fake.consumers[-1].on_timeout(ChoreoError("a delivery was held for too long", "raise it"))
    await eventually(lambda: len(fake.consumers) > 2 and wide(fake), what="another subscription")
    assert not scenes[-1].subscription.failed.done(), "what the broker says is so"
    fake.consumers[-1].on_timeout(ChoreoError("perhaps a delivery was held for too long", "raise it"), guessed=True)
    with pytest.raises(BrokerUnreachable, match="deleted"):
        await scenes[-1].subscription.failed


async def test_queue_that_was_replaced_is_missed_though_its_consumer_was_replaced_too(scenes: list[Scene]) -> None:
    """The narrow consumer was the old queue's. The wide one may receive from a queue that has other arguments."""
    fake = FakeQueue()
    await play(scenes, fake)
    await eventually(lambda: wide(fake))
    await eventually(lambda: fake.consumers[0].closed)
    fake.consumers[0].on_timeout(ChoreoError("perhaps a delivery was held for too long", "raise it"), guessed=True)
    with pytest.raises(BrokerUnreachable, match="deleted"):
        await scenes[-1].subscription.failed


async def test_turn_does_not_wait_for_ever(scenes: list[Scene], monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker takes back what is held for too long: after a while a suspect runs beside that of another agent."""
    monkeypatch.setattr("choreo.runtime.suspects.PATIENCE", 0.2)
    turns = Turns(2)
    one = await play(scenes, FakeQueue(("1", SUSPECT)), turns=turns)
    another = await play(scenes, FakeQueue(("2", SUSPECT)), turns=turns)
    await one.runs("1")
    await another.runs("2")


async def test_several_suspects_in_a_wide_window_run_least_suspicious_first(
    scenes: list[Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other, each alone; those that would wait too long are given back."""
    monkeypatch.setattr("choreo.runtime.suspects.PATIENCE", 0.5)
    monkeypatch.setattr("choreo.runtime.subscription.PATIENCE", 0.5)
    fake = FakeQueue(("1", 0))
    agent = await play(scenes, fake)
    await eventually(lambda: wide(fake))
    for name, count in (("worst", 9), ("first", 2), ("second", 3)):
        fake.put(name, count)
    await eventually(lambda: not wide(fake))
    agent.end("1")
    await agent.runs("first")
    agent.end("first")
    await agent.runs("second")
    await eventually(lambda: fake.consumers[-1].open, what="a narrow window")
    assert sorted(fake.held()) == ["second", "worst"]
    assert came_back(fake.consumers[-1].unsettled[0]) == 10
    await agent.runs("second")
    agent.end("second")
    await agent.runs("worst")


async def test_what_the_broker_takes_back_from_a_run_that_goes_on_is_settled_with_it(scenes: list[Scene]) -> None:
    """Once, with one run: however often the broker ends the subscription meanwhile; neighbours come and go."""
    fake = FakeQueue(("long", 0), with_ids=True)
    agent = await play(scenes, fake)
    await agent.runs("long")
    for count in range(1, 5):
        fake.take_back("long")
        await eventually(lambda: "long" in fake.held(), what="the copy")
        fake.put(f"short {count}")
        await agent.runs("long", f"short {count}")
        agent.end(f"short {count}")
    assert agent.begun.count("long") == 1
    agent.end("long")
    assert fake.acknowledged.count("long") == 1
    assert not fake.held()
    assert not fake.ready


async def test_what_was_not_taken_back_stays_ours(scenes: list[Scene]) -> None:
    """From 4.3 on a broker takes back the late deliveries alone: the others of that subscription are settled on it."""
    fake = FakeQueue(("long", 0), ("other", 0), with_ids=True)
    agent = await play(scenes, fake)
    await agent.runs("long", "other")
    fake.take_back("long")
    await eventually(lambda: fake.held().count("long") == 1, what="the copy")
    agent.end("other")
    assert fake.acknowledged == ["other"]
    agent.end("long")
    assert fake.acknowledged == ["other", "long"]
    await eventually(lambda: sum(not each.closed for each in fake.consumers) == 1, what="only one subscription")


async def test_what_ends_before_it_is_delivered_again_does_not_run_again(scenes: list[Scene]) -> None:
    """Its acknowledgement came too late for the broker, which delivers it once more: that copy is settled at once."""
    fake = FakeQueue(("long", 0), with_ids=True)
    agent = await play(scenes, fake)
    await agent.runs("long")
    fake.take_back("long")
    agent.end("long")
    assert fake.acknowledged == []
    await eventually(lambda: fake.acknowledged == ["long"], what="the copy is settled")
    assert agent.begun == ["long"]
    fake.put("long", 1)
    await agent.runs("long")


async def test_next_try_of_an_event_is_no_copy_of_the_one_before(scenes: list[Scene]) -> None:
    """A run may end in a retry while its own copy is with somebody else. That retry has the same id, body and way: it
    runs, also where another worker had it first and gave it back."""
    fake = FakeQueue(("long", 0), with_ids=True)
    agent = await play(scenes, fake)
    await agent.runs("long")
    fake.take_back("long")
    fake.ready.clear()  # another worker has got the copy
    agent.end("long")
    fake.ready.append(Message(b"long", {ATTEMPT: 1, DELIVERY_COUNT: 1}, message_id="long"))
    fake.deliver()
    await agent.runs("long")


async def test_what_was_done_is_not_remembered_for_ever(scenes: list[Scene], monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies come to somebody else, or never: what was kept to know them by goes with the time in which they come."""
    monkeypatch.setattr("choreo.runtime.overdue._EXPECTED", 0.05)
    fake = FakeQueue(*((f"{number}", 0) for number in range(5)), with_ids=True)
    agent = await play(scenes, fake)
    await agent.runs("0", "1", "2", "3", "4")
    fake.take_back("0", "1", "2", "3", "4")
    fake.ready.clear()
    overdue = scenes[0].subscription._overdue
    for number in range(4):
        agent.end(f"{number}")
    assert len(overdue._done) == 4
    await asyncio.sleep(0.1)
    agent.end("4")
    assert len(overdue._done) == 1


async def test_message_without_an_id_runs_after_one_that_looks_the_same(scenes: list[Scene]) -> None:
    """It may be another one: it is not settled with the first, and never runs beside it."""
    fake = FakeQueue(("long", 0))
    agent = await play(scenes, fake)
    await agent.runs("long")
    fake.take_back("long")
    await eventually(lambda: fake.held() == ["long"], what="the copy")
    assert agent.begun == ["long"]
    agent.end("long")
    await agent.runs("long")
    agent.end("long")
    assert (agent.begun, fake.acknowledged) == (["long", "long"], ["long"])


async def test_run_that_costs_too_many_subscriptions_is_given_up(scenes: list[Scene]) -> None:
    """After as many rounds as stay below the broker's own limit, with what the broker said and the way out."""
    fake = FakeQueue(("long", 0), with_ids=True)
    agent = await play(scenes, fake)
    await agent.runs("long")
    for _ in range(ROUNDS - 1):  # and the one that it began with
        assert not agent.given_up
        fake.take_back("long")
        await eventually(lambda: fake.held() == ["long"], what="the copy")
    error = agent.given_up["long"]
    assert isinstance(error, EnvelopeError)
    assert (error.reason, error.way_out) == ("overdue", "raise it")
    assert f"{ROUNDS} times" in error.message
    assert agent.begun == ["long"]


@pytest.mark.parametrize(("longest", "seconds"), [(0.0, 1800), (40.0, 1800), (610.0, 2350), (3600.0, 7260)])
def test_brokers_are_asked_for_what_reactions_need(longest: float, seconds: float) -> None:
    """Never for less than they wait unasked: what is held stands behind others that take their time too."""
    assert needed(longest) == seconds


@pytest.mark.parametrize("concurrency", [1, 4, 100])
@pytest.mark.parametrize("longest", [0.0, 1.0, 35.0, 1_000.0, 5_000.0])
@pytest.mark.parametrize("prefetch", [1, 2, 8, 100, 1_000])
def test_retries_have_a_share_of_what_may_be_held(prefetch: int, longest: float, concurrency: int) -> None:
    """At least one each, as many of the queue as can run at once, no more than is set, and together affordable."""
    found, retries = shares(prefetch, concurrency, longest)
    assert min(prefetch, concurrency) <= found <= prefetch
    assert 1 <= retries <= max(1, prefetch // 8)
    total = affordable(prefetch + retries, concurrency, longest)
    assert found + retries <= max(total, min(prefetch, concurrency) + retries)
