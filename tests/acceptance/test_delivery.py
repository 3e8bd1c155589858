"""What becomes of a delivery: a worker in this process, agents of the test's own, a real node."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import re
import struct
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, NoReturn

import aio_pika
import pytest
import tenacity
from pamqp import commands, encode
from pydantic import SecretStr, field_validator

from choreo import dead_letter, outcome, topology
from choreo.agent import Agent
from choreo.config.settings import Settings
from choreo.dead_letter import DeadLetter
from choreo.envelope import Envelope, seal
from choreo.errors import BrokerUnreachable, PublishRefused, PublishUnknown, UsageError
from choreo.event import Event, upcast
from choreo.message import MAX_HEADER_BYTES, MAX_HEADERS, Message, Reason
from choreo.operate.dlq import DeadLetterQueue
from choreo.rabbit import session as rabbit
from choreo.reaction import Context
from choreo.retry import Retry
from choreo.runtime.publisher import Publisher
from choreo.runtime.worker import State, Worker
from choreo.topology import Binding, Names, Queue, Topology
from choreo.transport import Confirmed, Delivery, QueueStats, Refused, Session
from tests.waiting import eventually


class Placed(Event, topic="test-delivery.placed", version=2):
    order: str
    currency: str = "EUR"

    @upcast(from_version=1)
    @staticmethod
    def francs(body: dict[str, Any]) -> dict[str, Any]:
        return body | {"currency": "CHF"}


class Paid(Event, topic="test-delivery.paid"):
    order: str


class Declined(Event, topic="test-delivery.declined"):
    order: str
    reason: str


class Closed(Event, topic="test-delivery.closed", terminal=True):
    order: str


class Unheard(Event, topic="test-delivery.unheard"):
    order: str


class Silent(Event, topic="test-silent.unheard"):
    """An event that no pattern of any test here matches."""


class Unreachable(Exception):
    """What retry policies below name."""


PLACED = "test-delivery.placed"
FULL = "reject-publish"
A_SECOND = tenacity.wait_fixed(1)


@pytest.fixture(scope="module")
def stage_name() -> str:
    """One namespace for all tests of this module: the ladder is declared once, agents have names of their own."""
    return "test-delivery"


class Stage:
    """A worker that plays agents, and a session to put messages in and to look at what comes out."""

    def __init__(self, settings: Settings, session: Session) -> None:
        self.settings = settings
        self.names = Names(settings.namespace)
        self.session = session
        self.workers: list[Worker] = []
        self.runs: list[asyncio.Task[bool]] = []
        self._numbers = itertools.count(1)
        self._token = f"{time.monotonic_ns() % 10**9:x}"

    @property
    def connect(self) -> Callable[[], Awaitable[Session]]:
        return partial(rabbit.connect, self.settings.brokers(), name="test")

    def agent(self, name: str = "payment", **options: Any) -> Agent:
        """Return an agent whose queue no other test has."""
        return Agent(f"{name}-{self._token}-{next(self._numbers)}", **options)

    async def play(self, *agents: Agent, look_every: float = 15.0, **changes: Any) -> Worker:
        """Start a worker, and return it when it consumes."""
        worker = Worker(agents, self.settings.model_copy(update=changes), self.connect, look_every)
        self.workers.append(worker)
        self.runs.append(asyncio.ensure_future(worker.run()))
        await eventually(lambda: worker.ready or self.runs[-1].done(), what="the worker being ready")
        if self.runs[-1].done():
            await self.runs[-1]
        return worker

    async def send(self, message: Message, topic: str = PLACED, exchange: str | None = None) -> None:
        """Publish a message as it is; somebody must be bound for it."""
        exchange = self.names.events if exchange is None else exchange
        assert await self.session.publish(message, exchange=exchange, routing_key=topic, timeout=10) == Confirmed()

    async def place(self, order: str = "1", **options: Any) -> str:
        """Publish an order and return its id."""
        message = seal(Placed(order=order), source="test", **options)
        await self.send(message)
        return str(message.message_id)

    async def letters(self, agent: Agent, count: int = 1) -> list[tuple[DeadLetter, Message]]:
        """Return the first dead letters of `agent`, and leave them where they are."""
        got: list[Delivery] = []
        consumer = await self.session.consume(self.names.dlq(agent.name), prefetch=count, on_delivery=got.append)
        await eventually(lambda: len(got) == count, what=f"{count} dead letters")
        await consumer.close()
        return [(dead_letter.read(each.message, agent=agent.name), each.message) for each in got]

    async def letter(self, agent: Agent) -> DeadLetter:
        return (await self.letters(agent))[0][0]

    async def settled(self, *agents: Agent, dead: int = 0) -> None:
        """Wait until nothing is left in the queues of `agents`, and no more and no less than `dead` dead letters."""
        worker = self.workers[-1]
        await worker_stopped(worker, self.runs[-1])
        for agent in agents:
            await eventually(partial(self.ready, self.names.queue(agent.name), 0), what="an empty queue")

        async def letters() -> bool:  # those that were looked at may still be on their way back
            found = [await self.session.stats(self.names.dlq(agent.name)) for agent in agents]
            return sum(each.ready for each in found if each is not None) == dead

        await eventually(letters, what=f"{dead} dead letters")

    async def consumer(self, worker: Worker) -> Any:
        """Return the session's consumer that the one agent of `worker` receives from, with its whole prefetch."""
        subscription: Any = worker._subscriptions[0]  # the others: its retries, and what is due
        await eventually(lambda: subscription._consumers[-1]._prefetch == subscription.prefetch)
        return subscription._consumers[-1]._consumer

    def states(self) -> list[State]:
        return [worker.state for worker in self.workers]

    async def ready(self, queue: str, count: int) -> bool:
        found = await self.session.stats(queue)
        return found is not None and found.ready == count

    async def end(self) -> None:
        for worker, run in zip(self.workers, self.runs, strict=True):
            worker.abort()
            await asyncio.gather(run, return_exceptions=True)
        async with await aio_pika.connect(self.settings.url.get_secret_value()) as connection:
            channel = await connection.channel()
            for agent in itertools.chain(*(worker.agents for worker in self.workers)):
                await channel.queue_delete(self.names.queue(agent.name))
                await channel.queue_delete(self.names.dlq(agent.name))
        await self.session.close()


async def worker_stopped(worker: Worker, run: asyncio.Task[bool]) -> None:
    """Drain the worker: everything that it took is settled then."""
    if not run.done():
        worker.stop()
    assert await run, "what ran was not finished in time"


@pytest.fixture
async def stage(broker_url: str, stage_name: str) -> AsyncIterator[Stage]:
    settings = Settings(url=SecretStr(broker_url), namespace=stage_name, drain=10.0, publish_timeout=5.0)
    session = await rabbit.connect(settings.brokers(), name="test")
    stage = Stage(settings, session)
    yield stage
    await stage.end()


def seen_by(agent: Agent, kind: type[Event], got: list[Any]) -> Agent:
    """Let `agent` note every event of `kind` with its context."""

    async def note(event: Event, ctx: Context) -> None:
        got.append((event, ctx))

    note.__annotations__["event"] = kind
    agent.on(note)
    return agent


# What follows from an event.


async def test_what_a_reaction_returns_reaches_the_next_agent(stage: Stage) -> None:
    """An emitted event belongs to the transaction of its cause and is one hop further; all is acknowledged."""
    payment, shop = stage.agent(), stage.agent("shop")
    got: list[tuple[Paid, Context]] = []

    @payment.on
    async def charge(placed: Placed) -> Paid:
        return Paid(order=placed.order)

    seen_by(shop, Paid, got)
    worker = await stage.play(payment, shop)
    cause = await stage.place("7", correlation_id="transaction-1")
    await eventually(lambda: got)
    await stage.settled(payment, shop)
    ((paid, ctx),) = got
    assert paid == Paid(order="7")
    assert (ctx.topic, ctx.correlation_id, ctx.causation_id) == ("test-delivery.paid", "transaction-1", cause)
    assert (ctx.attempt, ctx.hops, ctx.agent, ctx.reaction) == (1, 1, shop.name, "note")
    assert (ctx.key, ctx.resources) == (f"{ctx.event_id}:{shop.name}.note", None)
    assert ctx.headers["ce-source"] == payment.name
    assert (worker.counters[payment.name].handled, worker.counters[payment.name].emitted) == (1, 1)
    assert (worker.counters[payment.name].dead, worker.counters[payment.name].retried) == (0, 0)


async def test_plain_json_and_a_routing_key_are_an_event(stage: Stage) -> None:
    """A participant in any language needs no header at all; the event gets an id and starts a transaction."""
    shop = stage.agent("shop")
    got: list[tuple[Placed, Context]] = []
    await stage.play(seen_by(shop, Placed, got))
    await stage.send(Message(b'{"order": "9", "unknown": 1}', content_type=None))
    await eventually(lambda: got)
    ((placed, ctx),) = got
    assert placed.order == "9"
    assert ctx.event_id == ctx.correlation_id
    assert (ctx.causation_id, ctx.hops, ctx.topic) == (None, 0, PLACED)


async def test_older_schema_versions_are_lifted(stage: Stage) -> None:
    """A message that says it is of version 1 passes the upcast; one that says nothing is of today's."""
    shop = stage.agent("shop")
    got: list[tuple[Placed, Context]] = []
    await stage.play(seen_by(shop, Placed, got))
    await stage.send(Message(b'{"order": "old"}', headers={"choreo-version": 1}))
    await stage.send(Message(b'{"order": "new"}'))
    await eventually(lambda: len(got) == 2)
    assert {placed.order: placed.currency for placed, _ in got} == {"old": "CHF", "new": "EUR"}


async def union(placed: Placed) -> Paid | Declined:
    return Paid(order="1") if placed.order == "1" else Declined(order="2", reason="no")


async def optional(placed: Placed) -> Paid | None:
    return Paid(order="1") if placed.order == "1" else None


async def nothing(placed: Placed) -> None:
    return None


async def several(placed: Placed) -> list[Paid | Declined]:
    return [Paid(order="1"), Declined(order="1", reason="no")] if placed.order == "1" else []


def pair(placed: Placed) -> tuple[Paid, Declined]:
    return Paid(order=placed.order), Declined(order=placed.order, reason="no")


async def iterator(placed: Placed) -> AsyncIterator[Paid]:
    yield Paid(order=placed.order)
    await asyncio.to_thread(int)
    yield Paid(order=placed.order)


def generator(placed: Placed) -> Iterator[Paid]:
    yield Paid(order=placed.order)
    yield Paid(order=placed.order)


@pytest.mark.parametrize(
    ("shape", "emitted"),
    [
        (union, ["declined 2", "paid 1"]),
        (optional, ["paid 1"]),
        (nothing, []),
        (several, ["declined 1", "paid 1"]),
        (pair, ["declined 1", "declined 2", "paid 1", "paid 2"]),
        (iterator, ["paid 1", "paid 1", "paid 2", "paid 2"]),
        (generator, ["paid 1", "paid 1", "paid 2", "paid 2"]),
    ],
)
async def test_every_shape_of_return_value_is_emitted(
    stage: Stage, shape: Callable[..., Any], emitted: list[str]
) -> None:
    """One event, one of several, none, a list, a tuple, an async iterator, a generator of a plain def."""
    payment, shop, bank = stage.agent(), stage.agent("shop"), stage.agent("bank")
    got: list[tuple[Paid | Declined, Context]] = []
    payment.on(shape)
    worker = await stage.play(payment, seen_by(shop, Paid, got), seen_by(bank, Declined, got))
    await stage.place("1")
    await stage.place("2")
    await eventually(lambda: worker.counters[payment.name].handled == 2)
    await eventually(lambda: len(got) == len(emitted))
    await stage.settled(payment, shop, bank)
    assert sorted(f"{type(event).__name__.lower()} {event.order}" for event, _ in got) == emitted
    assert len({ctx.event_id for _, ctx in got}) == len(got)


async def test_plain_def_runs_in_a_thread_beside_the_loop(stage: Stage) -> None:
    """A reaction that blocks holds up neither the loop nor the other reactions."""
    payment, shop = stage.agent(), stage.agent("shop")
    released = threading.Event()
    ran: list[str] = []

    @payment.on
    def charge(placed: Placed, ctx: Context) -> Paid:
        ran.append(threading.current_thread().name)
        assert released.wait(10)
        return Paid(order=placed.order)

    @shop.on
    async def release(placed: Placed) -> None:
        ran.append(threading.current_thread().name)
        await eventually(lambda: len(ran) == 2)
        released.set()

    worker = await stage.play(payment, shop)
    got: list[tuple[Paid, Context]] = []
    await stage.play(seen_by(stage.agent("bank"), Paid, got))
    await stage.place()
    await eventually(lambda: got)
    assert sorted(name.partition("_")[0] for name in ran) == ["MainThread", "reaction"]
    assert worker.counters[shop.name].handled == 1


async def test_reaction_makes_room_while_its_emission_waits_for_the_broker(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Concurrency counts reactions that run. What waits for a confirmation is acknowledged only when that comes, and
    the prefetch bounds it."""
    payment, bookkeeping = stage.agent(), stage.agent("bookkeeping")
    begun: list[str] = []
    answered = asyncio.Event()

    @payment.on
    async def charge(placed: Placed) -> Paid:
        begun.append(placed.order)
        return Paid(order=placed.order)

    @bookkeeping.on
    async def book(paid: Paid) -> None: ...

    publish = rabbit.RabbitSession.publish

    def withheld(session: rabbit.RabbitSession, *arguments: Any, **options: Any) -> Awaitable[Any]:
        publication = publish(session, *arguments, **options)

        async def later() -> Any:
            result = await publication
            await answered.wait()
            return result

        return publication if session is stage.session else later()

    worker = await stage.play(payment, bookkeeping, concurrency=1, prefetch=4)
    await stage.consumer(worker)  # until it has its whole prefetch, one delivery more may be held
    monkeypatch.setattr(rabbit.RabbitSession, "publish", withheld)
    for number in range(6):
        await stage.place(str(number))
    await eventually(lambda: begun == ["0", "1", "2", "3"])
    assert worker.counters[payment.name].handled == 0
    answered.set()
    await eventually(lambda: begun == [str(number) for number in range(6)])
    await stage.settled(payment)


async def test_context_of_one_reaction_does_not_reach_another(stage: Stage) -> None:
    """Also where the first one's emission makes room: what takes its place begins with the worker's own context."""
    payment = stage.agent()
    seen: list[str] = []
    mark = contextvars.ContextVar("mark", default="")

    @payment.on
    async def charge(placed: Placed) -> Closed:
        seen.append(mark.get())
        mark.set(f"order {placed.order}")
        return Closed(order=placed.order)

    worker = await stage.play(payment, concurrency=1, prefetch=10)
    await stage.consumer(worker)
    await asyncio.gather(stage.place("0"), stage.place("1"))
    await eventually(lambda: len(seen) == 2)
    assert seen == ["", ""]


async def test_what_a_reaction_leaves_in_its_context_does_not_reach_the_next(stage: Stage) -> None:
    """Such as fields bound to all its log lines. Whoever leaves nothing there goes on as it is."""
    payment = stage.agent()
    seen: list[tuple[str, asyncio.Task[Any] | None]] = []
    mark = contextvars.ContextVar("mark", default="")

    @payment.on
    async def charge(placed: Placed) -> None:
        seen.append((mark.get(), asyncio.current_task()))
        if placed.order >= "5":
            mark.set(f"order {placed.order}")

    worker = await stage.play(payment, concurrency=1, prefetch=20)
    await stage.consumer(worker)
    for number in range(10):
        await stage.place(str(number))
    await eventually(lambda: len(seen) == 10)
    assert {found for found, _ in seen} == {""}
    assert len({task for _, task in seen[:5]}) < 5
    assert len({task for _, task in seen[5:]}) == 5
    await stage.settled(payment, dead=0)


async def test_reaction_that_cancels_itself_and_ends_takes_no_other_with_it(stage: Stage) -> None:
    payment = stage.agent()
    seen: list[str] = []

    @payment.on
    async def charge(placed: Placed) -> None:
        seen.append(placed.order)
        await asyncio.sleep(0)
        if placed.order == "2":
            task = asyncio.current_task()
            assert task is not None
            task.cancel()

    worker = await stage.play(payment, concurrency=1, prefetch=100)
    await stage.consumer(worker)
    await asyncio.gather(*(stage.place(str(number)) for number in range(6)))
    await eventually(lambda: len(seen) == 6)
    await stage.settled(payment, dead=0)


async def test_no_more_reactions_than_allowed_run_at_once(stage: Stage) -> None:
    """Concurrency bounds the reactions of an agent, however many deliveries have arrived."""
    payment = stage.agent()
    running = most = done = 0
    gate = asyncio.Event()

    @payment.on
    async def charge(placed: Placed) -> None:
        nonlocal running, most, done
        running += 1
        most = max(most, running)
        await gate.wait()
        running -= 1
        done += 1

    await stage.play(payment, concurrency=3)
    await asyncio.gather(*(stage.place(str(n)) for n in range(30)))
    await eventually(lambda: running == 3)
    await eventually(partial(stage.ready, stage.names.queue(payment.name), 0))  # the others have arrived and wait
    gate.set()
    await eventually(lambda: done == 30)
    assert most == 3


async def test_pattern_with_an_envelope_takes_everything_that_matches(stage: Stage) -> None:
    """An auditor sees topics that no class declares, with the bytes as they came."""
    audit = stage.agent("audit")
    got: list[tuple[Envelope, Context]] = []

    @audit.on("test-delivery.#")
    async def note(envelope: Envelope, ctx: Context) -> None:
        got.append((envelope, ctx))

    await stage.play(audit)
    await stage.send(Message(b'{"a":1,  "b":2}', message_id="m-1", headers={"mine": "x"}), "test-delivery.some.thing")
    await stage.place("4")
    await eventually(lambda: len(got) == 2)
    by_topic = {envelope.topic: envelope for envelope, _ in got}
    some = by_topic["test-delivery.some.thing"]
    assert (some.id, some.body, some.headers["mine"]) == ("m-1", b'{"a":1,  "b":2}', "x")
    assert by_topic[PLACED].json() == {"order": "4", "currency": "EUR"}
    assert {ctx.topic for _, ctx in got} == set(by_topic)


async def test_pattern_with_a_union_of_events_takes_those_events(stage: Stage) -> None:
    """Each arrives as its class; what the pattern matches beyond them is not routed to the agent at all."""
    shop = stage.agent("shop")
    got: list[Event] = []

    @shop.on("test-delivery.*")
    async def note(event: Paid | Declined) -> None:
        got.append(event)

    await stage.play(shop)
    await stage.send(seal(Paid(order="1"), source="test"), "test-delivery.paid")
    await stage.send(seal(Declined(order="2", reason="no"), source="test"), "test-delivery.declined")
    elsewhere = await stage.session.publish(
        seal(Placed(order="3"), source="test"), exchange=stage.names.events, routing_key=PLACED, timeout=10
    )
    assert isinstance(elsewhere, Refused)
    await eventually(lambda: len(got) == 2)
    assert sorted(map(repr, got)) == ["Declined(order='2', reason='no')", "Paid(order='1')"]


async def test_resources_are_opened_once_and_closed_at_the_end(stage: Stage) -> None:
    """What the lifespan yields is in every context; it is closed after the last reaction has ended."""
    log: list[str] = []

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[str]:
        log.append("open")
        yield "a database"
        log.append("close")

    payment = stage.agent(lifespan=lifespan)

    @payment.on
    async def charge(placed: Placed, ctx: Context) -> None:
        log.append(f"{placed.order} {ctx.resources}")

    worker = await stage.play(payment)
    await stage.place("1")
    await stage.place("2")
    await eventually(lambda: len(log) == 3)
    await worker_stopped(worker, stage.runs[0])
    assert log == ["open", "1 a database", "2 a database", "close"]


async def test_redelivery_emits_the_same_ids(stage: Stage) -> None:
    """Whoever receives an event twice can tell by its id; another cause has other ids."""
    payment, shop = stage.agent(), stage.agent("shop")
    got: list[tuple[Paid, Context]] = []

    @payment.on
    async def charge(placed: Placed) -> list[Paid]:
        return [Paid(order=placed.order), Paid(order=placed.order)]

    await stage.play(payment, seen_by(shop, Paid, got))
    for event_id in ("cause-1", "cause-1", "cause-2"):
        await stage.place("1", event_id=event_id)
    await eventually(lambda: len(got) == 6)
    ids = [ctx.event_id for _, ctx in got]
    assert len(set(ids)) == 4
    assert sorted(ids.count(each) for each in set(ids)) == [1, 1, 2, 2]


async def test_long_correlation_id_is_passed_on_whole(stage: Stage) -> None:
    """A correlation id may be longer than the AMQP property holds: 255 bytes, not characters."""
    payment, shop = stage.agent(), stage.agent("shop")
    got: list[tuple[Paid, Context]] = []

    @payment.on
    async def charge(placed: Placed) -> Paid:
        return Paid(order=placed.order)

    await stage.play(payment, seen_by(shop, Paid, got))
    for correlation in ("k" * 512, "ü" * 200):
        await stage.send(Message(b'{"order": "1"}', headers={"choreo-correlation": correlation}))
    await eventually(lambda: len(got) == 2)
    assert sorted(ctx.correlation_id for _, ctx in got) == ["k" * 512, "ü" * 200]


# What cannot be read.


@pytest.mark.parametrize(
    ("message", "reason", "words"),
    [
        (Message(b"{not json"), Reason.UNDECODABLE, "JSON"),
        (Message(b""), Reason.UNDECODABLE, "JSON"),
        (Message(b'{"order": "\xff\xfe"}'), Reason.UNDECODABLE, "UTF-8"),
        (Message(b'{"order": 1}'), Reason.INVALID, "order"),
        (Message(b'{"no": "order"}'), Reason.INVALID, "order"),
        (Message(b'["order"]'), Reason.INVALID, "Placed"),
        (Message(b'{"order": "1", "order": "2"}'), Reason.UNDECODABLE, "'order' twice"),
        (Message(b'{"order": "1", "extra": NaN}'), Reason.UNDECODABLE, "NaN"),
        (Message(b"[" * 100_000), Reason.UNDECODABLE, "JSON"),
        (Message(b'{"order": "1"}', content_type="text/plain"), Reason.CONTENT_TYPE, "text/plain"),
        (Message(b'{"order": "1"}', content_encoding="gzip"), Reason.CONTENT_TYPE, "gzip"),
        (Message(b'{"order": "1"}', headers={"choreo-hops": "many"}), Reason.HEADERS, "choreo-hops"),
        (Message(b'{"order": "1"}', headers={"choreo-correlation": "a\x1b[2Jb"}), Reason.HEADERS, "correlation"),
        (Message(b'{"order": "1"}', headers={f"h{n}": n for n in range(200)}), Reason.HEADERS, "200 headers"),
        (Message(b'{"order": "' + b"1" * 2_000_000 + b'"}'), Reason.TOO_LARGE, "2000013 bytes"),
        (Message(b'{"order": "1"}', headers={"choreo-hops": 64}), Reason.LOOP, "max_hops is 64"),
        (Message(b'{"order": "1"}', headers={"choreo-tree": 100_001}), Reason.LOOP, "max_tree is 100000"),
    ],
    ids=lambda each: str(each) if isinstance(each, str) else "",
)
async def test_what_cannot_be_read_is_a_dead_letter_at_once(
    stage: Stage, message: Message, reason: Reason, words: str
) -> None:
    """It keeps its bytes, its properties and its headers, and says what is wrong; the neighbours notice nothing."""
    payment = stage.agent(retry=Retry(on=Exception, attempts=5))
    got: list[tuple[Placed, Context]] = []
    await stage.play(seen_by(payment, Placed, got), max_body=1_000_000)
    message.message_id, message.correlation_id, message.priority = "m-1", "c-1", 4
    await stage.send(message)
    await stage.place("2")
    await eventually(lambda: got)
    ((letter, found),) = await stage.letters(payment)
    await stage.settled(payment, dead=1)
    assert [placed.order for placed, _ in got] == ["2"]
    assert letter.reason == reason
    assert words.lower() in str(letter.error).lower()
    assert (letter.topic, letter.agent, letter.attempts) == (PLACED, payment.name, 1)
    assert (found.body, found.content_type, found.content_encoding) == (
        message.body,
        message.content_type,
        message.content_encoding,
    )
    assert (found.message_id, found.correlation_id, found.priority) == ("m-1", "c-1", 4)
    assert found.headers.items() >= message.headers.items()


async def test_topic_that_the_agent_does_not_take_is_a_dead_letter(stage: Stage) -> None:
    """A message put into the queue past the events exchange, or by a binding that the code has lost."""
    payment = stage.agent()
    got: list[tuple[Placed, Context]] = []
    await stage.play(seen_by(payment, Placed, got))
    queue = stage.names.queue(payment.name)
    await stage.send(Message(b"{}"), queue, exchange="")
    letter = await stage.letter(payment)
    assert (letter.reason, letter.topic, letter.reaction) == (Reason.UNEXPECTED, queue, None)
    assert queue in str(letter.error)
    assert got == []


async def test_fan_out_that_amplifies_itself_ends_after_a_few_rounds(stage: Stage) -> None:
    """Fifty events for each of fifty: what would emit more than `max_tree` of a generation emits nothing and dies as a
    loop. The number of events is bounded, and a dead letter says what the bound is."""
    payment = stage.agent(max_tree=1_000)
    begun = 0

    @payment.on
    async def again(placed: Placed) -> list[Placed]:
        nonlocal begun
        begun += 1
        return [placed] * 50

    worker = await stage.play(payment)
    await stage.place("1")
    letters = await stage.letters(payment, 50)
    await stage.settled(payment, dead=50)
    assert (begun, worker.counters[payment.name].emitted) == (51, 50)
    assert {letter.reason for letter, _ in letters} == {Reason.LOOP}
    assert "that would be 2500, and max_tree is 1000" in str(letters[0][0].error)


async def test_own_bound_of_a_reaction_for_its_fan_out(stage: Stage) -> None:
    """In place of the agent's, wider or narrower; exactly as many as it says are emitted."""
    payment, shop = stage.agent(max_tree=2), stage.agent("shop")
    got: list[tuple[Closed, Context]] = []

    @payment.on(max_tree=3)
    async def split(placed: Placed) -> list[Closed]:
        return [Closed(order=placed.order)] * int(placed.order)

    await stage.play(payment, seen_by(shop, Closed, got))
    await stage.place("3")
    await stage.place("4")
    await stage.letter(payment)
    await eventually(lambda: len(got) == 3)
    await stage.settled(payment, shop, dead=1)
    assert {ctx.headers["choreo-tree"] for _, ctx in got} == {3}


@pytest.mark.parametrize("where", ["reaction", "otherwise"])
async def test_event_that_nobody_would_read_is_not_sent(stage: Stage, where: str) -> None:
    """An emitted event above `max_body` ends as a dead letter of the delivery that it came from, with nothing emitted
    and no retry, whatever the policy says; the publisher refuses such an event as well."""
    payment, shop = stage.agent(), stage.agent("shop")
    got: list[tuple[Closed, Context]] = []
    large = Closed(order="x" * 2_000)

    def last_word(placed: Placed, error: Exception) -> Closed:
        return large

    @payment.on(retry=Retry(on=Unreachable, attempts=1), otherwise=last_word)
    async def close(placed: Placed) -> list[Closed]:
        if where == "otherwise":
            raise Unreachable
        return [Closed(order="1"), large]

    await stage.play(payment, seen_by(shop, Closed, got), max_body=1_000)
    await stage.place("1")
    letter = await stage.letter(payment)
    assert (letter.reason, letter.attempts) == (Reason.TOO_LARGE, 1)
    for word in ("test-delivery.closed", "2012 bytes", "max_body is 1000"):
        assert word in str(letter.error)
    async with Publisher(stage.settings.model_copy(update={"max_body": 1_000}), stage.connect) as publisher:
        with pytest.raises(PublishRefused, match="2012 bytes, and max_body is 1000"):
            await publisher.publish(large)
    await stage.settled(payment, shop, dead=1)
    assert got == []


async def test_own_bound_of_a_reaction_ends_a_loop(stage: Stage) -> None:
    """An event that causes itself goes round as often as the reaction declares, and then dies as a loop."""
    payment = stage.agent()
    hops: list[int] = []

    @payment.on(max_hops=3)
    async def again(placed: Placed, ctx: Context) -> Placed:
        hops.append(ctx.hops)
        return placed

    await stage.play(payment)
    await stage.place("1")
    letter = await stage.letter(payment)
    assert hops == [0, 1, 2]
    assert (letter.reason, letter.reaction) == (Reason.LOOP, "again")


class Raw(commands.Basic.Properties):
    """Properties whose bytes on the wire are given: what clients in other languages may send."""

    raw = b""

    def marshal(self) -> bytes:
        return self.raw


def raw(message_id: bytes, headers: bytes) -> Raw:
    """Return properties with a persistent message's id and a headers table that is encoded already."""
    properties = Raw(message_id="unused")
    flags = 1 << 13 | 1 << 12 | 1 << 7
    properties.raw = b"".join(
        (
            struct.pack(">H", flags),
            struct.pack(">I", len(headers)),
            headers,
            b"\x02",
            struct.pack(">B", len(message_id)),
            message_id,
        )
    )
    return properties


async def send_raw(stage: Stage, properties: Raw, body: bytes, topic: str = PLACED) -> None:
    async with await aio_pika.connect(stage.settings.url.get_secret_value()) as connection:
        assert connection.transport is not None
        channel = await connection.transport.connection.channel(publisher_confirms=True)
        await channel.basic_publish(body, exchange=stage.names.events, routing_key=topic, properties=properties)


NOT_UTF_8 = b"\x04shop" + b"S" + struct.pack(">I", 2) + b"\xff\xfe"
DOUBLE = b"\x04rate" + b"d" + struct.pack(">d", 1.1)
HUGE_DOUBLE = b"\x04rate" + b"d" + struct.pack(">d", 1e300)
UNSIGNED = b"\x04rate" + b"L" + struct.pack(">Q", 7)


@pytest.mark.parametrize("header", [NOT_UTF_8, DOUBLE, HUGE_DOUBLE, UNSIGNED], ids=["bytes", "double", "huge", "long"])
@pytest.mark.parametrize("end", ["retry", "dead letter"])
async def test_headers_of_other_clients_do_not_stop_a_delivery(stage: Stage, header: bytes, end: str) -> None:
    """Header values that Python's client reads but would not write itself: the message is retried or buried like any
    other, and its delivery is not held for ever."""
    payment = stage.agent(retry=Retry(on=Unreachable, wait=A_SECOND, attempts=2))
    seen: list[Any] = []

    @payment.on
    async def charge(placed: Placed, ctx: Context) -> None:
        seen.append(dict(ctx.headers))
        if end == "dead letter":
            raise ValueError("no")
        if ctx.attempt == 1:
            raise Unreachable

    worker = await stage.play(payment)
    await send_raw(stage, raw(b"m-1", header), b'{"order": "1"}')
    if end == "retry":
        await eventually(lambda: len(seen) == 2, within=6, what="the second try")
        key = header[1:5].decode()
        assert seen[1][key] == seen[0][key]
    else:
        assert (await stage.letter(payment)).reason == Reason.FAILED
    assert worker.ready


async def test_message_that_the_client_cannot_decode_ends_as_a_dead_letter(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message id that is not UTF-8 ends the connection; the worker comes back, the broker buries the message at its
    delivery limit, and the neighbours are handled."""
    monkeypatch.setattr(topology, "DELIVERY_LIMIT", 3)  # each delivery costs a session
    payment = stage.agent()
    got: list[tuple[Placed, Context]] = []
    worker = await stage.play(seen_by(payment, Placed, got))
    await send_raw(stage, raw(b"\xff\xfe", b""), b'{"order": "1"}')
    await stage.place("2")
    await eventually(lambda: stage.ready(stage.names.dlq(payment.name), 1), within=30, what="the dead letter")
    await eventually(lambda: worker.ready)
    await stage.place("3")
    await eventually(lambda: {placed.order for placed, _ in got} == {"2", "3"})


# What fails.


async def test_failure_that_no_policy_names_is_a_dead_letter(stage: Stage) -> None:
    """It says reason, exception, bounded traceback, agent, reaction, attempts, times, topic and code version, keeps the
    bytes, and still belongs to its transaction."""
    payment = stage.agent()

    @payment.on(retry=Retry(on=Unreachable))
    async def charge(placed: Placed) -> Paid:
        raise LookupError(f"no such customer: {placed.order}")

    began = datetime.now(UTC)
    worker = await stage.play(payment, code_version="abc123")
    body = b'{ "order" : "1" }'
    await stage.send(Message(body, message_id="m-1", headers={"choreo-correlation": "c-1", "mine": "kept"}))
    ((letter, message),) = await stage.letters(payment)
    await stage.settled(payment, dead=1)
    assert (letter.id, letter.correlation_id, letter.topic, letter.body) == ("m-1", "c-1", PLACED, body)
    assert (letter.reason, letter.error_type, letter.error) == (
        Reason.FAILED,
        "LookupError",
        "no such customer: 1",
    )
    assert (letter.agent, letter.reaction, letter.attempts) == (payment.name, "charge", 1)
    assert letter.code_version == "abc123"
    assert letter.first_failure is not None
    assert letter.last_failure is not None
    assert began <= letter.first_failure <= letter.last_failure <= datetime.now(UTC)
    assert "in charge" in str(letter.traceback)
    assert "LookupError: no such customer: 1" in str(letter.traceback)
    assert message.headers["mine"] == "kept"
    assert worker.counters[payment.name].dead == 1


async def test_dead_letter_is_bounded(stage: Stage) -> None:
    """An exception of megabytes and a traceback of a thousand frames make a dead letter of ordinary size."""
    payment = stage.agent()

    def deep(level: int) -> NoReturn:
        if level:
            deep(level - 1)
        raise ValueError("é" * 1_000_000)

    @payment.on
    async def charge(placed: Placed) -> None:
        deep(500)

    await stage.play(payment)
    await stage.place()
    ((letter, message),) = await stage.letters(payment)
    assert letter.error_type == "ValueError"
    assert len(str(letter.error)) <= dead_letter.MAX_ERROR
    assert len(str(letter.traceback)) <= dead_letter.MAX_TRACEBACK + 10
    assert len(encode.field_table(message.headers)) < 40_000


class Broken(Exception):
    """An exception that cannot even be shown."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


def awkward() -> dict[str, BaseException]:
    return {
        "unprintable": Broken(),
        "surrogate": ValueError("cannot read caf\udce9.txt"),
        "control": ValueError("\x00\x1b[2J"),
        "group": BaseExceptionGroup("several", [ValueError("one"), KeyboardInterrupt()]),
        "exit": SystemExit(3),
        "interrupt": KeyboardInterrupt(),
        "cancelled": asyncio.CancelledError("by the user's own library"),
        "generator exit": GeneratorExit(),
        "stop iteration": StopIteration(1),
        "stop async iteration": StopAsyncIteration(),
        "timeout": TimeoutError("the user's own"),
        "cancels itself": asyncio.CancelledError(),
    }


@pytest.mark.parametrize("kind", awkward())
@pytest.mark.parametrize("where", ["loop", "thread"])
async def test_whatever_a_reaction_raises_ends_only_its_delivery(stage: Stage, kind: str, where: str) -> None:
    """Also what ends a process elsewhere, and what cannot be written down as it is: one dead letter, and the next
    delivery is handled."""
    payment = stage.agent(timeout="5s")
    got: list[str] = []

    def react(placed: Placed) -> None:
        if placed.order == "bad":
            raise awkward()[kind]
        got.append(placed.order)

    async def react_on_the_loop(placed: Placed) -> None:
        if kind == "cancels itself" and placed.order == "bad":
            # As libraries do that know nothing of Task.uncancel, such as async-timeout before 4.0.3.
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.Event().wait()
        react(placed)

    payment.on(react if where == "thread" else react_on_the_loop)
    worker = await stage.play(payment, concurrency=1)
    await stage.place("bad")
    await stage.place("good")
    await eventually(lambda: got, what="the next delivery")
    letter = await stage.letter(payment)
    assert letter.reason == Reason.FAILED
    assert letter.attempts == 1
    assert worker.ready
    await stage.settled(payment, dead=1)


async def test_named_failure_is_tried_at_once_then_by_the_broker(stage: Stage) -> None:
    """Immediate tries in the process, further ones after the broker's delay; then it succeeds, as the first time."""
    payment, shop = stage.agent(), stage.agent("shop")
    got: list[tuple[Paid, Context]] = []
    tries: list[tuple[int, float, str, str | None]] = []

    @payment.on(retry=Retry(on=Unreachable, attempts=5, immediate=2, wait=A_SECOND))
    async def charge(placed: Placed, ctx: Context) -> Paid:
        tries.append((ctx.attempt, time.monotonic(), ctx.event_id, ctx.correlation_id))
        if ctx.attempt < 4:
            raise Unreachable
        return Paid(order=placed.order)

    worker = await stage.play(payment, seen_by(shop, Paid, got))
    cause = await stage.place("1", correlation_id="c-1")
    await eventually(lambda: got)
    await stage.settled(payment, shop)
    assert [attempt for attempt, *_ in tries] == [1, 2, 3, 4]
    assert {(event_id, correlation) for *_, event_id, correlation in tries} == {(cause, "c-1")}
    assert tries[3][1] - tries[2][1] >= 0.9
    assert (got[0][1].causation_id, got[0][1].correlation_id, got[0][1].hops) == (cause, "c-1", 1)
    assert worker.counters[payment.name].retried == 1


async def test_used_up_tries_end_in_a_dead_letter(stage: Stage) -> None:
    """It counts every try, says when the first and the last one failed, and still has its topic and bytes."""
    payment = stage.agent()

    @payment.on(retry=Retry(on=Unreachable, attempts=3, immediate=1, wait=A_SECOND))
    async def charge(placed: Placed) -> None:
        raise Unreachable("no answer")

    await stage.play(payment)
    await stage.send(Message(b'{"order":  "1"}', message_id="m-1"))
    letter = await stage.letter(payment)
    await stage.settled(payment, dead=1)
    assert (letter.reason, letter.attempts, letter.error) == (Reason.EXHAUSTED, 3, "no answer")
    assert (letter.topic, letter.id, letter.body) == (PLACED, "m-1", b'{"order":  "1"}')
    assert str(letter.error_type).endswith(".Unreachable")
    assert letter.first_failure is not None
    assert letter.last_failure is not None
    assert timedelta(seconds=0.9) <= letter.last_failure - letter.first_failure < timedelta(seconds=5)


async def test_used_up_tries_end_in_the_last_word(stage: Stage) -> None:
    """`otherwise` gets the event and the exception; what it returns is emitted, and there is no dead letter."""
    payment, shop = stage.agent(), stage.agent("shop")
    got: list[tuple[Declined, Context]] = []

    def declined(placed: Placed, error: Exception) -> Declined:
        return Declined(order=placed.order, reason=f"{type(error).__name__}: {error}")

    @payment.on(retry=Retry(on=Unreachable, attempts=2, wait=A_SECOND), otherwise=declined)
    async def charge(placed: Placed) -> Paid:
        raise Unreachable("no answer")

    await stage.play(payment, seen_by(shop, Declined, got))
    cause = await stage.place("1")
    await eventually(lambda: got)
    await stage.settled(payment, shop)
    ((event, ctx),) = got
    assert event == Declined(order="1", reason="Unreachable: no answer")
    assert (ctx.causation_id, ctx.hops) == (cause, 1)


async def test_last_word_that_fails_is_a_dead_letter_with_both_errors(stage: Stage) -> None:
    payment = stage.agent()

    async def declined(placed: Placed, error: Exception) -> Declined:
        raise ZeroDivisionError("in the last word")

    @payment.on(retry=Retry(on=Unreachable, attempts=1), otherwise=declined)
    async def charge(placed: Placed) -> None:
        raise Unreachable("no answer")

    await stage.play(payment)
    await stage.place("1")
    letter = await stage.letter(payment)
    assert (letter.reason, letter.error_type) == (Reason.FAILED, "ZeroDivisionError")
    assert "Unreachable: no answer" in str(letter.traceback)
    assert "ZeroDivisionError: in the last word" in str(letter.traceback)


async def test_policy_that_fails_itself_is_a_dead_letter(stage: Stage) -> None:
    """A condition of the user's that raises while it looks at the exception ends that delivery, and no other."""

    def gone(error: BaseException) -> bool:
        return bool(error.status == 410)  # type: ignore[attr-defined]  # as if every error were one of HTTP

    payment = stage.agent(retry=Retry(on=tenacity.retry_if_exception(gone)))
    got: list[str] = []

    @payment.on
    async def charge(placed: Placed) -> None:
        if placed.order == "bad":
            raise ValueError("no status")
        got.append(placed.order)

    await stage.play(payment, concurrency=1, prefetch=1)
    await stage.place("bad")
    await stage.place("good")
    await eventually(lambda: got, what="the next delivery")
    letter = await stage.letter(payment)
    assert letter.reason == Reason.FAILED
    assert "no status" in str(letter.traceback)


async def test_deadline_ends_a_reaction(stage: Stage) -> None:
    """A reaction that runs too long is cancelled and fails; the error says which one and how long it had."""
    payment = stage.agent()
    ended: list[str] = []

    @payment.on(timeout="200ms")
    async def charge(placed: Placed) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(placed.order)

    await stage.play(payment)
    await stage.place("1")
    letter = await stage.letter(payment)
    assert ended == ["1"]
    assert letter.reason == Reason.FAILED
    assert str(letter.error_type).endswith("ReactionTimeout")
    assert "'charge'" in str(letter.error)
    assert "0.2 s" in str(letter.error)


async def test_deadline_ends_the_wait_for_a_thread(stage: Stage) -> None:
    """A thread cannot be ended, but its delivery is; a policy can name the deadline as TimeoutError. The next try waits
    for the thread, as long as a try may take, and has failed when that goes on: none runs beside it."""
    payment = stage.agent(retry=Retry(on=TimeoutError, attempts=2, immediate=1))
    release = threading.Event()
    tries: list[int] = []

    @payment.on(timeout="200ms")
    def charge(placed: Placed, ctx: Context) -> None:
        tries.append(ctx.attempt)
        release.wait(20)

    await stage.play(payment)
    await stage.place("1")
    letter = await stage.letter(payment)
    release.set()
    assert tries == [1]
    assert (letter.reason, letter.attempts) == (Reason.EXHAUSTED, 2)


async def test_next_try_of_a_thread_begins_when_the_thread_has_ended(stage: Stage) -> None:
    """One that ends soon after its deadline is followed by the next try."""
    payment = stage.agent(retry=Retry(on=TimeoutError, attempts=2, immediate=1))
    running: list[int] = []
    tries: list[tuple[int, int]] = []

    @payment.on(timeout="1s")
    def charge(placed: Placed, ctx: Context) -> None:
        tries.append((ctx.attempt, len(running)))
        running.append(1)
        if ctx.attempt == 1:
            time.sleep(1.3)
        running.pop()

    worker = await stage.play(payment)
    await stage.place("1")
    await eventually(lambda: worker.counters[payment.name].handled)
    assert tries == [(1, 0), (2, 0)]


async def test_undeclared_event_is_a_dead_letter_that_names_the_reaction(stage: Stage) -> None:
    """Nothing of what the reaction returned is emitted, not even what it may emit: the whole try has failed."""
    payment, shop = stage.agent(), stage.agent("shop")
    got: list[Any] = []

    @payment.on
    async def charge(placed: Placed) -> list[Paid]:
        return [Paid(order="1"), Declined(order="1", reason="no")]  # type: ignore[list-item]

    worker = await stage.play(payment, seen_by(shop, Paid, got))
    await stage.place("1")
    letter = await stage.letter(payment)
    assert letter.reason == Reason.UNDECLARED
    for word in ("'charge'", payment.name, "Declined", "Paid"):
        assert word in str(letter.error)
    assert worker.counters[payment.name].emitted == 0
    await stage.settled(payment, shop, dead=1)
    assert got == []


@pytest.mark.parametrize("value", [{"order": "1"}, "paid", 1, [1]], ids=repr)
async def test_return_value_that_is_no_event_is_a_dead_letter(stage: Stage, value: object) -> None:
    payment = stage.agent()

    @payment.on
    async def charge(placed: Placed) -> Paid:
        return value  # type: ignore[return-value]

    await stage.play(payment)
    await stage.place("1")
    assert (await stage.letter(payment)).reason == Reason.UNDECLARED


async def test_terminal_event_needs_no_listener(stage: Stage) -> None:
    """An event that says nobody needs it is emitted into the void, and its cause is done with."""
    shop = stage.agent("shop")

    @shop.on
    async def close(placed: Placed) -> Closed:
        return Closed(order=placed.order)

    worker = await stage.play(shop)
    await stage.place("1")
    await eventually(lambda: worker.counters[shop.name].handled == 1)
    await stage.settled(shop)
    assert worker.counters[shop.name].retried == 0


async def test_event_that_nobody_listens_to_is_tried_again_then_a_dead_letter(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not dropped silently: its cause dies as unroutable and names the topic."""
    monkeypatch.setattr(outcome, "PUBLISH_DELAYS", (1,))
    payment = stage.agent()
    attempts: list[int] = []

    @payment.on
    async def charge(placed: Placed, ctx: Context) -> Unheard:
        attempts.append(ctx.attempt)
        return Unheard(order=placed.order)

    await stage.play(payment)
    await stage.place("1")
    letter = await stage.letter(payment)
    await stage.settled(payment, dead=1)
    assert attempts == [1, 2]
    assert (letter.reason, letter.attempts, letter.topic) == (Reason.UNROUTABLE, 2, PLACED)
    assert "test-delivery.unheard" in str(letter.error)


async def test_listener_that_comes_late_gets_the_event(stage: Stage) -> None:
    """A deployment that starts the emitting agent first loses nothing."""
    payment, late = stage.agent(), stage.agent("late")
    got: list[tuple[Unheard, Context]] = []

    @payment.on
    async def charge(placed: Placed) -> Unheard:
        return Unheard(order=placed.order)

    worker = await stage.play(payment)
    await stage.place("1")
    await eventually(lambda: worker.counters[payment.name].retried)
    await stage.play(seen_by(late, Unheard, got))
    await eventually(lambda: got)
    assert got[0][0] == Unheard(order="1")


async def test_sibling_never_sees_a_retry(stage: Stage) -> None:
    """Of two agents with one topic, and one that takes everything, only the one that failed gets the event again."""
    payment, shop, audit = stage.agent(), stage.agent("shop"), stage.agent("audit")
    tries: list[int] = []
    got: list[tuple[Placed, Context]] = []
    audited: list[str] = []

    @payment.on(retry=Retry(on=Unreachable, attempts=3, wait=A_SECOND))
    async def charge(placed: Placed, ctx: Context) -> None:
        tries.append(ctx.attempt)
        if ctx.attempt < 3:
            raise Unreachable

    @audit.on("test-delivery.placed.#")
    async def note(envelope: Envelope) -> None:
        audited.append(envelope.topic)

    await stage.play(payment, seen_by(shop, Placed, got), audit)
    await stage.place("1")
    await eventually(lambda: tries == [1, 2, 3])
    await stage.settled(payment, shop, audit)
    assert len(got) == 1
    assert audited == [PLACED]


async def test_retry_keeps_what_is_the_users_and_drops_what_is_the_brokers(stage: Stage) -> None:
    """Headers and properties of other programs survive a delay; the broker's own account of the way does not, because
    brokers before 4.0.1 would take it for a cycle and drop the message."""
    payment = stage.agent(retry=Retry(on=Unreachable, attempts=2, wait=A_SECOND))
    contexts: list[Context] = []

    @payment.on
    async def charge(placed: Placed, ctx: Context) -> None:
        contexts.append(ctx)
        if ctx.attempt == 1:
            raise Unreachable
        raise ValueError("enough")

    await stage.play(payment)
    message = Message(
        b'{"order": "1"}',
        headers={"mine": "kept", "CCY": "EUR", "void": None, "x-mine": 2, "list": [1, {"a": True}]},
        message_id="m-1",
        correlation_id="c-1",
        type="any",
        app_id="shop",
        reply_to="answers",
        priority=3,
        timestamp=datetime(2026, 1, 31, 12, tzinfo=UTC),
    )
    await stage.send(message)
    ((letter, found),) = await stage.letters(payment)
    first, second = contexts
    assert (first.event_id, first.correlation_id, first.topic) == (second.event_id, second.correlation_id, second.topic)
    # What the broker adds on the ladder is on the message when it comes back, and on no message that we publish.
    assert "x-death" in second.headers
    brokers_own = ("x-death", "x-first-death-", "x-last-death-", "x-delivery-count", "x-acquired-count")
    assert not [key for key in found.headers if key.startswith(brokers_own)]
    for key in ("mine", "x-mine", "list", "CCY", "void"):
        assert found.headers.get(key, "missing") == message.headers[key], key
    for name in ("body", "message_id", "correlation_id", "type", "app_id", "reply_to", "priority", "timestamp"):
        assert getattr(found, name) == getattr(message, name), name
    assert letter.attempts == 2


@pytest.mark.parametrize(
    "headers",
    [{f"h{number}": "" for number in range(MAX_HEADERS)}, {"large": "x" * (MAX_HEADER_BYTES - 20)}],
    ids=["many", "large"],
)
async def test_event_at_the_bounds_of_its_headers_has_all_its_tries(stage: Stage, headers: dict[str, Any]) -> None:
    """What choreo and the broker write on it on the way does not count: who may run once may run again."""
    payment = stage.agent(retry=Retry(on=Unreachable, attempts=3, wait=A_SECOND))
    attempts: list[int] = []

    @payment.on
    async def charge(placed: Placed, ctx: Context) -> None:
        attempts.append(ctx.attempt)
        if ctx.attempt < 3:
            raise Unreachable

    await stage.play(payment)
    await stage.send(Message(b'{"order": "1"}', headers=dict(headers)))
    await eventually(lambda: attempts == [1, 2, 3], within=12, what="the third try")


async def test_event_without_an_id_has_one_for_every_agent_and_every_try(stage: Stage) -> None:
    """What its publisher left out follows from the message: key, correlation and the ids of what follows are the same
    in all agents, on all tries, for a duplicate, on the dead letter and when that is replayed."""
    payment = stage.agent(retry=Retry(on=Unreachable, attempts=2, wait=A_SECOND))
    audit = stage.agent("audit")
    keys: dict[str, list[str]] = {"payment": [], "audit": []}
    ids: list[tuple[str, str]] = []

    @payment.on
    async def charge(placed: Placed, ctx: Context) -> None:
        keys["payment"].append(ctx.key)
        ids.append((ctx.event_id, ctx.correlation_id))
        if ctx.attempt == 1:
            raise Unreachable
        raise ValueError("enough")

    @audit.on("test-delivery.#")
    async def note(envelope: Envelope, ctx: Context) -> None:
        keys["audit"].append(ctx.key)
        ids.append((envelope.id, envelope.correlation_id))

    await stage.play(payment, audit)
    await send_raw(stage, raw(b"", b""), b'{"order": "1"}')
    letter = await stage.letter(payment)
    queue = DeadLetterQueue(stage.session, stage.names, payment.name)
    assert (await queue.replay(ids=[ids[0][0]])).done == 1
    await eventually(lambda: len(keys["payment"]) == 4, what="both tries of the replay")
    await send_raw(stage, raw(b"", b""), b'{"order": "1"}')
    await eventually(lambda: len(keys["audit"]) == 2, what="the duplicate")
    assert letter.id == ids[0][0]
    assert len(set(ids)) == len(set(keys["payment"])) == len(set(keys["audit"])) == 1
    await send_raw(stage, raw(b"", b""), b'{"order": "2"}')
    await eventually(lambda: len(keys["audit"]) == 3, what="another event")
    assert len(set(keys["audit"])) == 2


async def test_structured_cloudevent_is_an_event(stage: Stage) -> None:
    """Its data are the event and its attributes the envelope, on each try; a batch is a dead letter that says why."""
    payment = stage.agent(retry=Retry(on=Unreachable, attempts=2, wait=A_SECOND))
    got: list[tuple[str, str, int]] = []

    @payment.on
    async def charge(placed: Placed, ctx: Context) -> None:
        got.append((placed.order, ctx.event_id, ctx.attempt))
        if ctx.attempt == 1:
            raise Unreachable

    await stage.play(payment)
    body = b'{"specversion": "1.0", "id": "e-1", "source": "/shop", "type": "placed", "data": {"order": "7"}}'
    await stage.send(Message(b"[%b]" % body, content_type="application/cloudevents-batch+json"))
    assert "each event as a message of its own" in str((await stage.letter(payment)).error)
    await stage.send(Message(body, content_type="application/cloudevents+json"))
    await eventually(lambda: len(got) == 2)
    assert got == [("7", "e-1", 1), ("7", "e-1", 2)]


# When the broker is in the way.


async def test_dead_letter_that_cannot_be_stored_is_held(stage: Stage) -> None:
    """Without a dead-letter queue the delivery stays unsettled, and is buried when the queue is there again."""
    payment = stage.agent()
    failed = asyncio.Event()

    @payment.on
    async def charge(placed: Placed) -> None:
        failed.set()
        raise ValueError("no")

    worker = await stage.play(payment)
    async with await aio_pika.connect(stage.settings.url.get_secret_value()) as connection:
        channel = await connection.channel()
        await channel.queue_delete(stage.names.dlq(payment.name))
        await stage.place("1")
        await failed.wait()
        assert worker.counters[payment.name].dead == 0
    await stage.session.declare(worker._topology)
    assert (await stage.letter(payment)).reason == Reason.FAILED
    await stage.settled(payment, dead=1)


async def test_worker_comes_back_when_its_queue_was_deleted(stage: Stage) -> None:
    """It says that it waits, declares its queue anew and consumes again."""
    payment = stage.agent()
    got: list[tuple[Placed, Context]] = []
    worker = await stage.play(seen_by(payment, Placed, got))
    states: list[State] = []
    worker.watch(lambda changed: states.append(changed.state))
    async with await aio_pika.connect(stage.settings.url.get_secret_value()) as connection:
        channel = await connection.channel()
        await channel.queue_delete(stage.names.queue(payment.name))
    await eventually(lambda: states[-1:] == [State.CONSUMING])
    assert State.WAITING in states
    await stage.place("1")
    await eventually(lambda: got)


async def test_worker_that_is_refused_again_and_again_waits_in_between(stage: Stage) -> None:
    """When its queue was replaced by one with other arguments, a running worker says so and tries again with growing
    pauses; it does not hammer the broker. When the queue is right again, it works again."""
    payment = stage.agent()
    got: list[tuple[Placed, Context]] = []
    worker = await stage.play(seen_by(payment, Placed, got))
    tries: list[str] = []
    worker.watch(lambda changed: tries.append(changed.status) if changed.state is State.WAITING else None)
    queue = stage.names.queue(payment.name)
    connects = 0
    connect = worker._connect

    async def counting() -> Session:
        nonlocal connects
        connects += 1
        return await connect()

    worker._connect = counting
    async with await aio_pika.connect(stage.settings.url.get_secret_value()) as connection:
        channel = await connection.channel()
        await channel.queue_delete(queue)
        await channel.declare_queue(queue, durable=True, arguments={"x-queue-type": "classic"})
        await eventually(lambda: any(queue in status for status in tries), what="the mismatch in the status")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3):
                await eventually(lambda: connects > 12)
        assert not worker.ready
        await channel.queue_delete(queue)
    await eventually(lambda: worker.ready, within=30)
    await stage.place("1")
    await eventually(lambda: got)


async def test_drain_finishes_what_runs_and_hands_back_the_rest(stage: Stage) -> None:
    """After `stop` nothing new begins; the other prefetched deliveries are in the queue again, in their order."""
    payment = stage.agent()
    begun: list[str] = []
    gate = asyncio.Event()

    @payment.on
    async def charge(placed: Placed) -> None:
        begun.append(placed.order)
        await gate.wait()

    worker = await stage.play(payment, concurrency=2, prefetch=10)
    for n in range(8):
        await stage.place(str(n))
    queue = stage.names.queue(payment.name)
    await eventually(lambda: len(begun) == 2)
    await eventually(lambda: stage.ready(queue, 0))
    worker.stop()
    await eventually(lambda: stage.ready(queue, 6))
    assert stage.states() == [State.DRAINING]
    assert not stage.runs[0].done()
    gate.set()
    assert await stage.runs[0] is True
    assert stage.states() == [State.STOPPED]
    assert begun == ["0", "1"]
    left: list[Delivery] = []
    consumer = await stage.session.consume(queue, prefetch=10, on_delivery=left.append)
    await eventually(lambda: len(left) == 6)
    assert [Placed.model_validate_json(each.message.body).order for each in left] == list("234567")
    await consumer.close()


async def test_drain_without_a_broker_finishes_what_runs(stage: Stage) -> None:
    """Told to stop while it waits for the broker to come back, a worker lets a running reaction end first: it may be
    in the middle of something that should not be done by halves."""
    payment = stage.agent()
    log: list[str] = []
    gate = asyncio.Event()

    @payment.on
    async def charge(placed: Placed) -> None:
        log.append("begun")
        await gate.wait()
        log.append("done")

    worker = await stage.play(payment)
    await stage.place("1")
    await eventually(lambda: log)

    async def unreachable() -> Session:
        raise BrokerUnreachable("no broker can be reached")

    worker._connect = unreachable
    async with await aio_pika.connect(stage.settings.url.get_secret_value()) as connection:
        channel = await connection.channel()
        await channel.queue_delete(stage.names.queue(payment.name))
    await eventually(lambda: worker.state is State.WAITING)
    worker.stop()
    _, pending = await asyncio.wait(stage.runs, timeout=0.5)
    assert pending, "it did not wait for the reaction"
    gate.set()
    assert await stage.runs[0] is True
    assert log == ["begun", "done"]


async def test_drain_that_takes_too_long_hands_back_what_runs(stage: Stage) -> None:
    """When the drain time is over, running reactions are cancelled and their deliveries are in the queue again."""
    payment = stage.agent()
    cancelled: list[str] = []

    @payment.on
    async def charge(placed: Placed) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(placed.order)

    worker = await stage.play(payment, drain=0.3)
    await stage.place("1")
    await eventually(lambda: stage.ready(stage.names.queue(payment.name), 0))
    worker.stop()
    assert await stage.runs[0] is False
    assert cancelled == ["1"]
    await eventually(lambda: stage.ready(stage.names.queue(payment.name), 1))
    assert worker.counters[payment.name].dead == 0


# The publisher.


async def test_published_event_is_confirmed_and_arrives(stage: Stage) -> None:
    """The receipt names the event and its transaction; a delayed one arrives after its time, also after half a
    second, which is rounded up."""
    shop = stage.agent("shop")
    got: list[tuple[Placed, Context]] = []
    await stage.play(seen_by(shop, Placed, got))
    began = time.monotonic()
    async with Publisher(stage.settings, stage.connect, source="web") as publisher:
        late = await publisher.publish(Placed(order="late"), delay="500ms", event_id="e-2")
        receipt = await publisher.publish(Placed(order="now"), correlation_id="c-1")
    await eventually(lambda: len(got) == 2)
    assert time.monotonic() - began >= 0.95
    now, then = (next(ctx for placed, ctx in got if placed.order == order) for order in ("now", "late"))
    assert (now.event_id, now.correlation_id) == (receipt.id, receipt.correlation_id) == (receipt.id, "c-1")
    assert (then.event_id, then.correlation_id, then.topic) == (late.id, late.id, PLACED) == ("e-2", "e-2", PLACED)
    assert now.headers["ce-source"] == "web"


async def test_publisher_refuses_what_nobody_listens_to(stage: Stage) -> None:
    """The error names the topic and the namespace, and how to have somebody listen."""
    await stage.play(seen_by(stage.agent("shop"), Placed, []))
    async with Publisher(stage.settings, stage.connect) as publisher:
        with pytest.raises(PublishRefused, match=r"test-silent\.unheard") as caught:
            await publisher.publish(Silent())
        assert stage.settings.namespace in caught.value.message
        assert "choreo run" in caught.value.way_out
        for delay in ("13d", "soon"):
            with pytest.raises(UsageError, match=delay):
                await publisher.publish(Placed(order="1"), delay=delay)


async def test_event_that_one_queue_refuses_is_repeated_with_its_id(stage: Stage) -> None:
    """One queue is full and the other has it: a publisher says unknown with the id, a reaction emits it again with the
    id of the first until there is room. No dead letter."""
    payment, shop = stage.agent(), stage.agent("shop")
    got: list[tuple[Paid, Context]] = []

    @payment.on
    async def charge(placed: Placed) -> Paid:
        return Paid(order=placed.order)

    worker = await stage.play(payment, seen_by(shop, Paid, got))
    full = Queue(stage.names.queue(f"{shop.name}-full"), "work", "full", {"x-max-length": 1, "x-overflow": FULL})
    await stage.session.declare(Topology((), (full,), (Binding(stage.names.events, full.name, "test-delivery.paid"),)))
    await stage.send(Message(b"x"), full.name, exchange="")
    async with Publisher(stage.settings, stage.connect) as publisher:
        with pytest.raises(PublishUnknown, match=r"e-1 may or may not be stored: .* others may have") as caught:
            await publisher.publish(Paid(order="0"), event_id="e-1")
        assert "same id" in caught.value.way_out
    await eventually(lambda: [ctx.event_id for _, ctx in got] == ["e-1"])
    await stage.place("1")
    await eventually(lambda: len(got) >= 3)
    async with await aio_pika.connect(stage.settings.url.get_secret_value()) as connection:
        await (await connection.channel()).queue_delete(full.name)
    await eventually(lambda: worker.counters[payment.name].handled == 1)
    await stage.settled(payment, shop)
    assert len({ctx.event_id for _, ctx in got}) == 2


async def test_publisher_replaces_a_lost_session(stage: Stage) -> None:
    """A publish after the connection was lost opens another one."""
    await stage.play(seen_by(stage.agent("shop"), Placed, []))
    sessions: list[Session] = []

    async def connect() -> Session:
        sessions.append(await stage.connect())
        return sessions[-1]

    async with Publisher(stage.settings, connect) as publisher:
        await publisher.publish(Placed(order="1"))
        await sessions[0].close()
        await publisher.publish(Placed(order="2"))
    assert len(sessions) == 2


def test_refusals_are_told_apart() -> None:
    """The two kinds of refusal that decide between `terminal` and a retry are different values."""
    assert Refused("returned", "") != Refused("missing", "")


class Shaky(Event, topic="test-delivery.shaky", external=True):
    """Its reading fails like the network."""

    order: str

    @field_validator("order")
    @classmethod
    def look_up(cls, value: str) -> str:
        raise Unreachable(f"no answer about {value}")


async def test_event_whose_reading_fails_never_reaches_the_reaction(stage: Stage) -> None:
    """A validator that raises what the policy names: each try reads the event anew, none calls the function without."""
    payment = stage.agent(retry=Retry(on=Unreachable, attempts=3, immediate=2))
    got: list[Any] = []

    @payment.on
    async def look(shaky: Shaky) -> None:
        got.append(shaky)

    await stage.play(payment)
    await stage.send(Message(b'{"order": "1"}', message_id="m-1"), "test-delivery.shaky")
    letter = await stage.letter(payment)
    assert (letter.reason, letter.attempts, got) == (Reason.EXHAUSTED, 3, [])


async def test_stray_cancellation_does_not_end_a_place_of_work(stage: Stage) -> None:
    """A reaction whose own timer cancels its task after it has returned: the next deliveries are handled as well."""
    payment = stage.agent()
    got: list[str] = []

    @payment.on
    async def charge(placed: Placed) -> None:
        got.append(placed.order)
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().call_later(0.01, task.cancel)

    await stage.play(payment, concurrency=1)
    for order in ("1", "2", "3"):
        await stage.place(order)
        await eventually(partial(got.__contains__, order), what=f"order {order}")


async def test_thread_that_hangs_takes_no_place_from_the_others(stage: Stage) -> None:
    """`def` reactions that outlive their deadline keep their threads; the next ones, and a sibling's, still run."""
    hanging, healthy = stage.agent("hanging", timeout="1s"), stage.agent("healthy", timeout="10s")
    release = threading.Event()
    got: list[str] = []

    @hanging.on
    def hang(placed: Placed) -> None:
        if placed.order != "fine":
            release.wait(30)
        got.append(placed.order)

    @healthy.on
    def work(paid: Paid) -> None:
        got.append(f"paid {paid.order}")

    try:
        await stage.play(hanging, healthy, concurrency=2)
        for order in ("1", "2", "3", "4", "5"):
            await stage.place(order)
        await stage.letters(hanging, 5)
        await stage.place("fine")
        await stage.send(seal(Paid(order="6"), source="test"), "test-delivery.paid")
        await eventually(lambda: {"fine", "paid 6"} <= set(got))
    finally:
        release.set()


@pytest.mark.parametrize("loss", ["the consumer", "its deliveries"])
async def test_consumer_that_receives_nothing_any_more_is_replaced(stage: Stage, loss: str) -> None:
    """The connection lives and heartbeats go on, but no delivery reaches the agent: the worker sees the messages wait,
    says so, and opens another session."""
    payment = stage.agent()
    got: list[tuple[Placed, Context]] = []
    worker = await stage.play(seen_by(payment, Placed, got), prefetch=2, look_every=0.3)
    states: list[str] = []
    worker.watch(lambda changed: states.append(changed.status))
    consumer = await stage.consumer(worker)
    if loss == "the consumer":
        await consumer.cancel()
    else:
        consumer._receiving._on_delivery = lambda delivery: None
    for order in "12345":
        await stage.place(order)
    await eventually(lambda: len(got) == 5, what="all orders")
    assert {placed.order for placed, _ in got} == set("12345")
    wrong = "lost the consumer" if loss == "the consumer" else r"[1-3] messages ready"
    assert re.search(wrong, states[0])


async def test_consumer_that_waits_is_left_alone(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full window, a suspect that runs alone, an empty queue: nothing arrives, and nothing is wrong."""
    payment, shop = stage.agent(), stage.agent("shop")
    gate, begun = asyncio.Event(), list[str]()

    @payment.on
    async def charge(placed: Placed) -> None:
        begun.append(placed.order)
        await gate.wait()

    @shop.on
    async def idle(paid: Paid) -> None: ...

    looks, stats = 0, rabbit.RabbitSession.stats

    async def look(session: rabbit.RabbitSession, queue: str) -> QueueStats | None:
        nonlocal looks
        looks += 1
        return await stats(session, queue)

    monkeypatch.setattr(rabbit.RabbitSession, "stats", look)
    worker = await stage.play(payment, shop, prefetch=2, look_every=0.05)
    await stage.consumer(worker)  # until it has its whole prefetch, one delivery more may be held
    for order in "12345":
        await stage.place(order)
    states: list[str] = []
    worker.watch(lambda changed: states.append(changed.status))
    await eventually(lambda: len(begun) == 2)
    await eventually(partial(lambda soon: looks >= soon, looks + 20), what="ten looks at both queues")
    assert states == []
    gate.set()
    await eventually(lambda: len(begun) == 5)


@pytest.mark.parametrize("concurrency", [1, 4])
async def test_reactions_that_never_wait_let_the_loop_turn(stage: Stage, concurrency: int) -> None:
    """A window of pure computation is worked through with the event loop turning in between: heartbeats, deadlines of
    others and acknowledgements go on."""
    payment = stage.agent()
    turns, seen, gate = 0, list[int](), asyncio.Event()

    @payment.on
    async def compute(placed: Placed) -> None:
        await gate.wait()
        began = time.monotonic()
        while time.monotonic() - began < 0.011:
            pass
        seen.append(turns)

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    worker = await stage.play(payment, concurrency=concurrency)
    for number in range(40):
        await stage.place(str(number))
    await eventually(lambda: len(worker._pools[payment.name].arrived) == 40 - concurrency)
    gate.set()
    turning = asyncio.create_task(turn())
    await eventually(lambda: len(seen) == 40)
    turning.cancel()
    most = max(seen.count(each) for each in seen)
    assert most <= concurrency + 1, "so many were worked off in one turn"
