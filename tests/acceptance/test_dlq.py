"""`choreo dlq` against a real node: what is seen, that looking leaves all as it was, and that nothing is lost."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import random
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import aio_pika
import pytest

from choreo import dead_letter
from choreo.agent import Agent
from choreo.config.broker_url import BrokerUrl
from choreo.errors import ChoreoError, PartlyDone
from choreo.event import Event
from choreo.message import Message
from choreo.operate.dlq import DeadLetterQueue
from choreo.rabbit.session import RabbitSession, connect
from choreo.testing.rabbitmq.node import Node
from choreo.topology import Names, Topology
from choreo.transport import Confirmed, Delivery, QueueStats
from tests.conftest import Running, environment
from tests.faults.raw_amqp import unpack
from tests.waiting import eventually, until

Run = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., Running]

TOPIC = "dlq-test.placed"


class Placed(Event, topic=TOPIC):
    """What two agents take."""


def taker(name: str) -> Agent:
    agent = Agent(name)

    @agent.on
    async def take(_placed: Placed) -> None:
        return None

    return agent


class Desk:
    """Two agents' queues on the broker, both bound to one topic, and nobody who consumes from them."""

    def __init__(self, session: RabbitSession, names: Names, url: str) -> None:
        self.session = session
        self.names = names
        self.url = url
        self.queue = self.names.queue("a")
        self.dlq = self.names.dlq("a")

    def letters(self, session: RabbitSession | None = None) -> DeadLetterQueue:
        return DeadLetterQueue(session or self.session, self.names, "a")

    async def open(self) -> RabbitSession:
        return await connect(BrokerUrl.parse_all(self.url), name="test")

    async def bury(self, *numbers: int, body: bytes | None = None) -> None:
        """Put dead letters of agent a into its queue, in this order."""
        results = [self.put(self.names.dead, "a", self.letter(number, body)) for number in numbers]
        assert set(await asyncio.gather(*results)) == {Confirmed()}

    async def put(self, exchange: str, key: str, message: Message) -> Any:
        return await self.session.publish(message, exchange=exchange, routing_key=key, timeout=60)

    def letter(self, number: int, body: bytes | None = None) -> Message:
        living = Message(
            b'{"order": %d}' % number if body is None else body,
            headers={"choreo-correlation": f"c-{number}", "mine": "kept"},
            message_id=f"id-{number}",
            priority=2,
            type=TOPIC,
        )
        return self.dead(living, number)

    def dead(self, living: Message, number: int = 1) -> Message:
        return dead_letter.write(
            living,
            topic=TOPIC,
            agent="a",
            reason="failed",
            error=RuntimeError(f"number {number}"),
            reaction="take",
            attempts=3,
            first_failure=None,
            code_version="9",
        )

    async def stats(self, queue: str) -> QueueStats:
        found = await self.session.stats(queue)
        assert found is not None
        return found

    async def ready(self, queue: str, count: int) -> None:
        """Wait until so many messages lie in `queue`."""

        async def there() -> bool:
            return (await self.stats(queue)).ready == count

        await eventually(there, what=f"{count} messages in {queue}")

    async def empty(self, queue: str) -> list[Delivery]:
        """Take everything out of `queue`, in its order, with a session of its own."""
        session, taken = await self.open(), list[Delivery]()
        try:
            count = (await self.stats(queue)).ready
            consumer = await session.consume(queue, prefetch=max(count, 1), on_delivery=taken.append)
            await eventually(lambda: len(taken) >= count, what=f"{count} messages from {queue}")
            await consumer.cancel()
            for delivery in taken:
                consumer.acknowledge(delivery)
            await self.ready(queue, 0)
        finally:
            await session.close()
        return taken

    async def ids(self, queue: str) -> list[str | None]:
        return [delivery.message.message_id for delivery in await self.empty(queue)]


def ids(numbers: Sequence[int]) -> list[str]:
    return [f"id-{number}" for number in numbers]


@pytest.fixture
async def desk(broker_url: str, namespace: str) -> AsyncIterator[Desk]:
    session = await connect(BrokerUrl.parse_all(broker_url), name="test")
    await session.declare(Topology.of([taker("a"), taker("b")], namespace))
    yield Desk(session, Names(namespace), broker_url)
    await session.close()


@pytest.fixture
def env(broker_url: str, namespace: str) -> dict[str, str]:
    return {"CHOREO_URL": broker_url, "CHOREO_NAMESPACE": namespace}


@pytest.fixture
def dlq(choreo: Run, env: dict[str, str]) -> Callable[..., Awaitable[subprocess.CompletedProcess[str]]]:
    """Runs `choreo dlq ARGS` to its end beside the event loop of the test."""

    async def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        changes = env | options.pop("env", {})
        return await asyncio.to_thread(choreo, "dlq", *arguments, env=changes, **options)

    return run


def rows(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def refused(done: subprocess.CompletedProcess[str], code: int) -> str:
    """Return what was said on stderr. It is an explanation, and no traceback."""
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stderr.startswith("choreo: ")
    assert "Traceback" not in done.stderr
    return done.stderr


# What is seen.

EVENTS = """
from choreo import Event

class OrderPlaced(Event, topic="order.placed", external=True):
    order: str

class OrderPaid(Event, topic="order.paid", terminal=True):
    order: str
"""
TILL = '''
"""The till takes money, when it can."""
from pathlib import Path
from choreo import Agent, Retry
from agents.events import OrderPaid, OrderPlaced

agent = Agent("till")

class Jammed(Exception):
    pass

@agent.on(retry=Retry(on=Jammed, attempts=2, first="1s"))
async def charge(placed: OrderPlaced) -> OrderPaid:
    if not Path("mended").exists():
        raise Jammed("the drawer is jammed") from OSError("no oil")
    return OrderPaid(order=placed.order)
'''
LEDGER = '''
"""The ledger notes every order."""
from choreo import Agent
from agents.events import OrderPlaced

agent = Agent("ledger")

@agent.on
def note(placed: OrderPlaced) -> None:
    with open("ledger.txt", "a") as file:
        file.write(placed.order + "\\n")
'''


@pytest.fixture
def shop(project: Path) -> Path:
    """A project with a till that fails until the file `mended` exists, and a ledger that takes the same event."""
    for name, text in {"events": EVENTS, "till": TILL, "ledger": LEDGER}.items():
        (project / "agents" / f"{name}.py").write_text(text)
    return project


def test_failed_delivery_is_explained_and_replayed_to_its_agent_alone(
    choreo: Run, start_choreo: Start, shop: Path, env: dict[str, str]
):
    """From the failure to the mended agent: the dead letter tells all of it, and the replay reaches nobody else."""
    running = start_choreo("run", "--all", env=env)
    running.wait_for("consuming")
    sent = choreo("publish", "order.placed", '{"order": "1001"}', "-o", "jsonl", "--correlation-id", "c-7", env=env)
    event_id = json.loads(sent.stdout)["id"]

    def listed() -> Any:
        return rows(choreo("dlq", "list", "till", "-o", "json", env=env))

    (row,) = until(listed, within=20)
    assert row["id"] == event_id
    assert (row["topic"], row["reason"], row["reaction"], row["attempts"]) == ("order.placed", "exhausted", "charge", 2)
    assert (row["error_type"], row["error"]) == ("agents.till.Jammed", "the drawer is jammed")
    assert row["correlation_id"] == "c-7"
    assert row["first_failure"] < row["last_failure"]

    (full,) = rows(choreo("dlq", "show", "till", "-o", "json", env=env))
    assert full["body"] == {"order": "1001"}
    assert full["agent"] == "till"
    assert 'raise Jammed("the drawer is jammed")' in full["traceback"]
    assert "OSError: no oil" in full["traceback"]
    shown = choreo("dlq", "show", "till", env=env).stdout
    assert '  "order": "1001"' in shown
    assert "the drawer is jammed" in shown

    again = choreo("dlq", "replay", "till", "--yes", env=env)
    assert again.stdout == "1 replayed\n"
    until(lambda: listed() and listed()[0]["last_failure"] > row["last_failure"])

    (shop / "mended").touch()
    assert choreo("dlq", "replay", "till", "--id", event_id, env=env).stdout == "1 replayed\n"
    until(lambda: (shop / "ledger.txt").read_text() == "1001\n" and listed() == [])
    running.send(signal.SIGTERM)
    assert running.wait() == 0
    assert (shop / "ledger.txt").read_text() == "1001\n"


async def test_list_shows_the_first_and_says_how_many_more(desk: Desk, dlq):
    """Fifty unless told otherwise, the oldest first."""
    await desk.bury(*range(53))
    done = await dlq("list", "a")
    lines = done.stdout.splitlines()
    assert lines[0].split()[:3] == ["id", "topic", "reason"]
    assert [line.split()[0] for line in lines[1:]] == ids(range(50))
    *notes, last = done.stderr.splitlines()
    assert last == "3 more; --limit shows them"
    assert ["each look counts" in each for each in notes] == [True] * desk.session.server.counts_returns
    assert [row["id"] for row in rows(await dlq("list", "a", "--limit", "2", "-o", "json"))] == ids(range(2))


async def test_look_takes_no_more_than_its_limit(desk: Desk, dlq):
    """However many letters there are, the first look has only had those in its hand that it shows."""
    await desk.bury(*range(300))
    assert (await dlq("list", "a", "--limit", "20")).returncode == 0
    assert [delivery.redelivered for delivery in await desk.empty(desk.dlq)] == [True] * 20 + [False] * 280


async def test_look_takes_more_than_a_prefetch_can_say(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    """By several hands, and puts all back in order; of a letter that is only listed it keeps what is listed."""
    monkeypatch.setattr("choreo.operate.peek.MOST_AT_ONCE", 20)  # 65,535, which would take its time
    await desk.bury(*range(60))
    look = await desk.letters().look(limit=50, bodies=False)
    assert [letter.facts.id for letter in look.letters] == ids(range(50))
    assert look.ready == 60
    for letter in look.letters:
        message = letter.delivery.message
        assert (letter.facts.traceback, letter.facts.body, message.body, message.headers) == (None, b"", b"", {})
    assert await desk.ids(desk.dlq) == ids(range(60))


async def test_nothing_there_is_said_and_no_error(desk: Desk, dlq):
    done = await dlq("list", "a")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "no dead letters of a\n")
    assert rows(await dlq("list", "a", "-o", "json")) == []
    assert rows(await dlq("show", "a", "-o", "json")) == []
    assert rows(await dlq("replay", "a", "--yes", "-o", "json"))["done"] == 0
    assert (await dlq("drop", "a")).returncode == 0


async def test_show_finds_letters_by_id(desk: Desk, dlq):
    """One that is not there is said; what was found is shown nevertheless."""
    await desk.bury(*range(150))
    for named in (["--id", "id-140", "--id", "id-2"], ["id-140", "id-2"], ["id-140", "--id", "id-2"]):
        found = rows(await dlq("show", "a", *named, "-o", "json"))
        assert [row["id"] for row in found] == ids([2, 140])
    partly = await dlq("show", "a", "--id", "id-3", "--id", "id-999", "-o", "jsonl")
    assert json.loads(partly.stdout)["id"] == "id-3"
    assert "id-999" in refused(partly, 3)
    assert "among the 150 that could be seen" in refused(await dlq("show", "a", "--id", "id-999"), 2)


async def test_letter_that_is_no_event_is_shown_and_steers_no_terminal(desk: Desk, dlq):
    """Bytes that are no JSON are escaped in tables and in full, as are control characters in texts."""
    await desk.put(
        desk.names.dead,
        "a",
        Message(b"\xff\x1b[2J", headers={"choreo-dead-error": "a\x1b[31mb", "odd": b"\xfe"}, content_type="text/plain"),
    )
    listed, shown = await dlq("list", "a"), await dlq("show", "a")
    for done in (listed, shown):
        assert done.returncode == 0
        assert "a\\x1b[31mb" in done.stdout
        assert "\x1b" not in done.stdout
    assert "\\xff\\x1b[2J" in shown.stdout
    (row,) = rows(await dlq("show", "a", "-o", "json"))
    assert (row["body"], row["is_json"], row["size"]) == ("\\xff\x1b[2J", False, 5)
    assert (row["id"] is None) or row["id"]


# Looking changes nothing.


async def test_looking_keeps_order_and_number(desk: Desk):
    """Fifty looks of every depth, and the queue is as it was: everything there, once, in its order."""
    count, seed = 120, random.Random(7)
    await desk.bury(*range(count))
    for _ in range(50):
        if seed.random() < 0.5:
            limit = seed.choice([1, 2, 5, 20, 50, 119, 120, 500])
            look = await desk.letters().look(limit=limit, bodies=False)
            assert [letter.facts.id for letter in look.letters] == ids(range(min(limit, count)))
        else:
            number = seed.randrange(count)
            look = await desk.letters().look(limit=seed.choice([1, 10]), ids=[f"id-{number}"])
            assert [letter.facts.body for letter in look.letters] == [b'{"order": %d}' % number]
        assert (await desk.stats(desk.dlq)).ready == count
    assert await desk.ids(desk.dlq) == ids(range(count))


async def test_looking_by_several_programs_keeps_order_and_number(desk: Desk, dlq):
    """One after the other, and a letter that comes in between joins at the end."""
    await desk.bury(*range(30))
    for number in range(25):
        assert len(rows(await dlq("list", "a", "--limit", str(1 + number % 4 * 9), "-o", "json"))) == 1 + number % 4 * 9
    await desk.bury(30)
    assert len(rows(await dlq("list", "a", "-o", "json"))) == 31
    assert await desk.ids(desk.dlq) == ids(range(31))


async def test_what_another_operator_holds_is_not_shown_and_this_is_said(desk: Desk, dlq):
    """Nor is it lost: when the other one leaves, everything is there again."""
    await desk.bury(*range(30))
    other = await desk.open()
    held: list[Delivery] = []
    await other.consume(desk.dlq, prefetch=10, on_delivery=held.append)
    await eventually(lambda: len(held) == 10)
    done = await dlq("list", "a", "-o", "jsonl")
    assert len(done.stdout.splitlines()) == 20
    assert "somebody else looks at this queue too" in done.stderr
    await other.close()
    await desk.ready(desk.dlq, 30)


# Replay.


async def test_replayed_letter_is_the_message_that_died(desk: Desk):
    """To the one queue, bytes and headers as they were, nothing of its death on it, and as a first try."""
    body = b'\xff {"not": json'
    await desk.bury(1, body=body)
    repair = await desk.letters().replay()
    assert (repair.done, repair.wanted) == (1, 1)
    (delivery,) = await desk.empty(desk.queue)
    message = delivery.message
    assert message.body == body
    assert message.headers == {"choreo-correlation": "c-1", "mine": "kept", "choreo-topic": TOPIC}
    assert (message.message_id, message.priority, message.type) == ("id-1", 2, TOPIC)
    assert delivery.exchange == desk.names.retry
    assert (await desk.stats(desk.names.queue("b"))).ready == 0
    assert (await desk.stats(desk.dlq)).ready == 0


async def test_replay_keeps_the_order(desk: Desk):
    """Of those that go, and of those that stay; also when they had been looked at before."""
    await desk.bury(*range(250))
    await desk.letters().look(limit=200)
    assert (await desk.letters().replay(limit=120)).done == 120
    assert (await desk.letters().replay(ids=["id-200", "id-130"])).done == 2
    assert await desk.ids(desk.queue) == [*ids(range(120)), "id-130", "id-200"]
    assert await desk.ids(desk.dlq) == [each for each in ids(range(120, 250)) if each not in ("id-130", "id-200")]


async def publish_as_others_do(desk: Desk, expiration: float) -> None:
    """Put an event in with a time to live (seconds), a copy for another queue and its sender's name."""
    sent = aio_pika.Message(b"{}", message_id="id-1", expiration=expiration, headers={"CC": ["nowhere"]})
    sent.user_id = "guest"
    async with await aio_pika.connect(desk.url) as connection, connection.channel() as channel:
        exchange = await channel.get_exchange(desk.names.events, ensure=False)
        await exchange.publish(sent, routing_key=TOPIC)


async def test_replay_says_what_is_not_done_once_more(desk: Desk, dlq):
    """Copies to other queues, the sender's user and a time to live stay in a header; the last one can be had anew."""
    await publish_as_others_do(desk, 3600)
    (came,) = await desk.empty(desk.queue)
    letter = desk.dead(came.message)
    for option, expiration in (((), None), (("--expiring",), b"3600000")):
        await desk.put(desk.names.dead, "a", letter)
        done = await dlq("replay", "a", "--yes", "-o", "json", *option)
        assert rows(done)["set_aside"] == {"user-id": 1, "CC": 1} | ({} if option else {"expiration": 1})
        assert "kept in the header choreo-aside: " in done.stderr
        assert ("--expiring" in done.stderr) == (not option)
        (delivery,) = await desk.empty(desk.queue)
        assert delivery.message.raw is not None
        assert unpack(delivery.message.raw).get("expiration") == expiration
        assert delivery.message.headers["choreo-aside"].get("CC") == ["nowhere"]
    assert (await desk.stats(desk.names.queue("b"))).ready == 1, "the copy that came when it was published"


async def test_replay_that_expires_again_is_a_letter_again(desk: Desk, dlq):
    """Its time to live begins anew when that is asked for, and is the broker's to end; nothing is lost by it."""
    await publish_as_others_do(desk, 0.2)
    await desk.ready(desk.dlq, 1)
    (row,) = rows(await dlq("list", "a", "-o", "json"))
    assert row["reason"] == "expired"
    assert rows(await dlq("replay", "a", "--yes", "--expiring", "-o", "json"))["done"] == 1
    await desk.ready(desk.dlq, 1)
    assert "expiration of 1" in (await dlq("replay", "a", "--yes")).stderr
    (delivery,) = await desk.empty(desk.queue)
    assert delivery.message.body == b"{}"


async def test_replay_asks_unless_it_is_told_which(desk: Desk, dlq):
    """Nobody can be asked without a terminal: then nothing happens."""
    await desk.bury(*range(5))
    assert "Replay all 5 dead letters of a?" in refused(await dlq("replay", "a"), 2)
    assert (await desk.stats(desk.dlq)).ready == 5
    assert (await dlq("replay", "a", "--limit", "2")).stdout == "2 replayed\n"
    assert rows(await dlq("replay", "a", "--yes", "-o", "json")) == {
        "agent": "a",
        "action": "replay",
        "done": 3,
        "not_done": 0,
        "failures": [],
        "missing": [],
        "set_aside": {},
        "died_again": [],
    }
    assert await desk.ids(desk.queue) == ids(range(5))


@pytest.mark.parametrize(("answer", "left", "code"), [("n", 3, 1), ("y", 0, 0)])
async def test_question_is_asked_on_a_terminal(desk: Desk, project: Path, env, answer: str, left: int, code: int):
    """And what the person says is done."""
    await desk.bury(*range(3))
    theirs, ours = pty.openpty()
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "choreo", "dlq", "drop", "a"),
            cwd=project,
            env=environment(env),
            stdin=ours,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        os.write(theirs, f"{answer}\n".encode())
        _, said = await asyncio.wait_for(process.communicate(), 20)
    finally:
        os.close(theirs)
        os.close(ours)
    assert b"Drop all 3 dead letters of a for good?" in said
    assert process.returncode == code
    assert (await desk.stats(desk.dlq)).ready == left


async def test_letter_that_dies_again_is_not_replayed_twice(
    choreo: Run, start_choreo: Start, shop: Path, env: dict[str, str], desk: Desk
):
    """A replay is over, also while an agent sends back everything that it gets; that it did is said, and is a 3."""
    running = start_choreo("run", "till", env=env)
    await asyncio.to_thread(running.wait_for, "consuming")
    names, letters = desk.names, [desk.letter(number, b"no json") for number in range(150)]
    await asyncio.gather(*(desk.put(names.dead, "till", letter) for letter in letters))
    done = await asyncio.to_thread(choreo, "dlq", "replay", "till", "--yes", env=env)
    assert done.stdout == "150 replayed\n"
    assert done.returncode == 3
    assert re.search(r"choreo: \d+ of 150 replayed died again at once: id-\d+ \(dlq-test\.placed\): ", done.stderr)
    await desk.ready(names.dlq("till"), 150)


@pytest.mark.real_node("policies")
async def test_letter_that_is_refused_stays(desk: Desk, node: Node, namespace: str, dlq):
    """The broker takes three and no more: exit 3, and stderr names one that was not replayed, and why."""
    await desk.bury(*range(6))
    pattern = f"^{namespace}\\.a$"
    node.ctl("set_policy", "--apply-to", "queues", namespace, pattern, '{"max-length": 2}')
    try:
        done = await dlq("replay", "a", "--yes", "-o", "json")
    finally:
        node.ctl("clear_policy", namespace)
    said = refused(done, 3)
    report = json.loads(done.stdout)
    assert 0 < report["done"] < 6
    assert report["done"] + report["not_done"] == 6
    assert report["failures"][0]["id"] in said
    gone, left = await desk.ids(desk.queue), await desk.ids(desk.dlq)
    assert sorted(map(str, gone + left)) == ids(range(6))
    assert left == [failure["id"] for failure in report["failures"]]


@pytest.mark.real_node("policies")
async def test_replay_gives_up_when_the_broker_refuses_everything(desk: Desk, node: Node, namespace: str, dlq):
    """Ten are tried and nothing is changed, not even the order."""
    await desk.bury(*range(40))
    await desk.letters().look(limit=40)
    node.ctl("set_policy", "--apply-to", "queues", namespace, f"^{namespace}\\.a$", '{"max-length": 0}')
    try:
        done = await dlq("replay", "a", "--limit", "20")
    finally:
        node.ctl("clear_policy", namespace)
    assert "given up after 10" in refused(done, 3 if done.stdout != "0 replayed\n" else 1)
    replayed = int(done.stdout.split()[0])
    assert await desk.ids(desk.dlq) == ids(range(replayed, 40))


async def test_replay_without_the_agents_queue_changes_nothing(desk: Desk, node: Node, dlq):
    """Its copies would come back as dead letters with nothing written on them."""
    await desk.bury(1, 2)
    node.ctl("delete_queue", desk.queue)
    assert "choreo run a" in refused(await dlq("replay", "a", "--yes"), 78)
    (first, _) = rows(await dlq("list", "a", "-o", "json"))
    assert first["error"] == "number 1"


@pytest.mark.real_node("list of connections")
@pytest.mark.parametrize("which", ["both", "the consuming one"])
async def test_connection_that_is_lost_during_a_replay_loses_nothing(desk: Desk, node: Node, vhost: str, which: str):
    """What was done is said; a letter is in one of the two queues, hardly any of them in both."""
    url = desk.url + vhost
    session = await connect(BrokerUrl.parse_all(url), name="test")
    await session.declare(Topology.of([taker("a")], desk.names.namespace))
    here = Desk(session, desk.names, url)
    count, done = 95, 0
    await here.bury(*range(count))

    def cut() -> None:
        if which == "both":
            node.ctl("close_all_connections", "--vhost", vhost, "cut by a test")
            return
        lines = node.ctl("list_connections", "pid", "vhost", "user_provided_name").splitlines()
        found = [line.split("\t") for line in lines]
        (pid,) = [pid for pid, place, name in found if place == vhost and name == "test (consuming)"]
        node.ctl("close_connection", pid, "cut by a test")

    def progress() -> None:
        nonlocal done
        done += 1
        if done == 20:
            cut()

    repair = await desk.letters(session).replay(progress=progress)
    await session.close()
    assert repair.done == done
    assert 20 <= done < 30
    assert len(repair.failures) <= 1, "nothing is tried any more once the session is lost"
    with pytest.raises(PartlyDone) as caught:
        repair.check("replayed")
    assert f"{done} of {count} replayed" in caught.value.message
    again = Desk(await here.open(), desk.names, url)
    await _nothing_is_lost(again, count)
    await again.session.close()


async def test_replay_that_is_killed_loses_nothing(desk: Desk, start_choreo: Start, env: dict[str, str]):
    """kill -9: a letter is in one of the two queues, hardly any of them in both."""
    count = 2000
    await desk.bury(*range(count))
    running = start_choreo("dlq", "replay", "a", "--yes", env=env)

    async def begun() -> bool:
        return (await desk.stats(desk.queue)).ready > 20

    await eventually(begun)
    running.send(signal.SIGKILL)
    running.wait()
    await _nothing_is_lost(desk, count)


async def _nothing_is_lost(desk: Desk, count: int) -> None:
    async def together() -> int:
        return (await desk.stats(desk.queue)).ready + (await desk.stats(desk.dlq)).ready

    async def everything_is_back() -> bool:
        return await together() >= count

    await eventually(everything_is_back)
    replayed, left = await desk.ids(desk.queue), await desk.ids(desk.dlq)
    assert set(replayed) | set(left) == set(ids(range(count)))
    assert left == ids(range(count))[count - len(left) :], "those that stayed are in their order"
    # An acknowledgement that was on its way is lost with the connection; the broker may be busy with several.
    assert len(set(replayed) & set(left)) <= 40
    assert max(Counter(replayed).values()) == 1


async def test_interrupted_replay_says_how_far_it_came(desk: Desk, start_choreo: Start, env: dict[str, str]):
    """Ctrl-C ends it with 130; the letter that it was busy with is done, the rest is there."""
    count = 3000
    await desk.bury(*range(count))
    running = start_choreo("dlq", "replay", "a", "--yes", env=env)

    async def begun() -> bool:
        return (await desk.stats(desk.queue)).ready > 20

    await eventually(begun)
    running.send(signal.SIGINT)
    assert running.wait() == 130
    said = running.wait_for("replayed, the rest is still there")
    replayed = int(said.removeprefix("choreo: interrupted; ").split()[0])
    assert await desk.ids(desk.queue) == ids(range(replayed))
    assert await desk.ids(desk.dlq) == ids(range(replayed, count))


async def test_letter_that_the_broker_wrote_is_read_and_replayed(desk: Desk, dlq):
    """A message whose consumers crashed too often: `crashed`, with its topic, and the replay brings it back."""
    await desk.put(desk.names.events, TOPIC, Message(b"{}", message_id="id-1"))
    for _ in range(40):
        if (await desk.stats(desk.dlq)).ready:
            break
        await _crash_with_it(desk)
    else:
        pytest.fail("the broker never gave up on it")
    (row,) = rows(await dlq("list", "a", "-o", "json"))
    assert (row["id"], row["reason"], row["topic"], row["attempts"]) == ("id-1", "crashed", TOPIC, 0)
    assert row["last_failure"] is not None
    await desk.empty(desk.names.queue("b"))
    assert (await dlq("replay", "a", "--id", "id-1")).stdout == "1 replayed\n"
    (delivery,) = await desk.empty(desk.queue)
    assert delivery.message.headers == {"choreo-topic": TOPIC}
    assert (await desk.stats(desk.names.queue("b"))).ready == 0


async def _crash_with_it(desk: Desk) -> None:
    """Take the message of agent a's queue and lose the connection with it."""
    session, taken = await desk.open(), asyncio.Event()
    await session.consume(desk.queue, prefetch=1, on_delivery=lambda _: taken.set())
    with suppress(TimeoutError):
        await asyncio.wait_for(taken.wait(), 1)
    await session.close()


# Drop.


async def test_drop_destroys_what_was_chosen_and_nothing_else(desk: Desk, dlq):
    await desk.bury(*range(600))
    assert (await dlq("drop", "a", "--id", "id-1", "--id", "id-500", "--yes")).stdout == "2 dropped\n"
    assert (await dlq("drop", "a", "--limit", "3", "--yes")).stdout == "3 dropped\n"
    left = [0, *range(2, 600)]
    left.remove(500)
    assert (await desk.stats(desk.dlq)).ready == 595
    assert [row["id"] for row in rows(await dlq("list", "a", "--limit", "595", "-o", "json"))] == ids(left[3:])
    assert (await dlq("drop", "a", "--yes")).stdout == "595 dropped\n"
    assert (await desk.stats(desk.dlq)).ready == 0
    assert (await desk.stats(desk.queue)).ready == 0


@pytest.mark.parametrize("chosen", [(), ("--limit", "2"), ("--id", "id-1")])
async def test_drop_always_asks(desk: Desk, dlq, chosen: tuple[str, ...]):
    """Also about what was named: dropped is gone for good."""
    await desk.bury(1, 2, 3)
    assert "pass --yes" in refused(await dlq("drop", "a", *chosen), 2)
    assert (await desk.stats(desk.dlq)).ready == 3


async def test_what_is_dropped_is_what_was_there(desk: Desk):
    """However many letters come meanwhile, they stay."""
    await desk.bury(*range(1200))
    late: list[asyncio.Task[None]] = []

    def progress() -> None:
        if len(late) < 5:
            late.append(asyncio.ensure_future(desk.bury(5000 + len(late))))

    repair = await desk.letters().drop(progress=progress)
    await asyncio.gather(*late)
    repair.check("dropped")
    assert repair.done == 1200
    assert await desk.ids(desk.dlq) == ids(range(5000, 5005))


# What cannot be done.


@pytest.mark.parametrize("command", ["list", "show", "replay", "drop"])
async def test_unknown_agent_is_said_with_the_nearest_name(
    choreo: Run, shop: Path, env: dict[str, str], desk: Desk, command: str
):
    """The names come from the agents folder, nothing of which is imported."""
    (shop / "agents" / "till.py").write_text(TILL + "\nraise SystemExit('imported')\n")
    done = await asyncio.to_thread(choreo, "dlq", command, "tilt", *(["--yes"] * (command[0] in "rd")), env=env)
    said = refused(done, 2)
    assert f"there is no dead-letter queue {desk.names.dlq('tilt')} on this broker" in said
    assert "did you mean till?" in said


@pytest.mark.parametrize("name", ["../../etc/passwd", "os:system", "Payment", "a b", "\x1b[2J"])
def test_hostile_name_is_refused_before_anybody_is_asked(choreo: Run, name: str):
    """Nobody listens at that port."""
    said = refused(choreo("dlq", "list", name, env={"CHOREO_URL": "amqp://127.0.0.1:1"}), 2)
    assert "is not an agent name" in said
    assert "\x1b" not in said


def test_broker_that_is_down_is_said(choreo: Run):
    assert "127.0.0.1:1" in refused(choreo("dlq", "list", "a", env={"CHOREO_URL": "amqp://127.0.0.1:1"}), 69)


async def test_session_that_ends_under_a_look_ends_the_look(desk: Desk):
    """It says so, and waits for nothing."""
    await desk.bury(*range(10))
    session = await desk.open()
    await session.close()
    with pytest.raises(ChoreoError):
        await asyncio.wait_for(desk.letters(session).look(), 5)
    await desk.ready(desk.dlq, 10)
