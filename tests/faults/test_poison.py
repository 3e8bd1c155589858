"""Whatever a publisher sends, it costs nobody but itself: poison among good events, and what becomes of each."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Final

import pytest

from choreo.amqp import decode
from choreo.message import Reason
from choreo.testing.rabbitmq.node import Node
from choreo.testing.rabbitmq.release import find_server
from choreo.topology import Names
from tests.conftest import EMBEDDED, ROOT, Running, release
from tests.faults.conftest import Scale
from tests.faults.poison.corpus import CORPUS
from tests.faults.poison.fields import text
from tests.faults.poison.letter import USUAL, Poison
from tests.faults.raw_amqp import Raw, RawChannel, fields, listed, pack, unpack
from tests.faults.report import Row
from tests.waiting import until

Start = Callable[..., Running]
Run = Callable[..., subprocess.CompletedProcess[str]]
Fields = dict[bytes, tuple[str, bytes]]

GROWTH: Final = 64 * 2**20  # bytes that the worker may grow by
_LONGEST: Final = 4096  # bytes of properties that are learned
# An event with headers and ids like those that choreo writes.
GOOD: Final = Poison(
    "none",
    None,
    properties=USUAL
    | {"headers": text("ce-type", "order.placed") + text("h", "x") + text("ce-source", "x"), "app_id": b"shop"},
)
WARM: Final = 200  # good events before its memory is measured

SHOP = """
import os
from typing import Literal

from pydantic import Field
from choreo import Agent, Event

file = os.open("ledger", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

class Placed(Event, topic="NS.placed", external=True):
    order: int
    name: str = Field("", max_length=100)
    kind: Literal["book", "pen"] = "book"
    price: float = Field(0.0, ge=0)
    lines: list[int] = []

agent = Agent("shop")

@agent.on
async def take(placed: Placed) -> None:
    os.write(file, b"%d\\n" % placed.order)
"""

# What the broker would act upon once more stands aside, with its bytes.
ASIDE: Final = {"expiration": b"expiration", "user_id": b"user-id"}
# Headers that the broker or choreo writes: they are set aside, or written anew.
OVERWRITTEN: Final = (b"x-death", b"x-delivery-count", b"x-first-death-queue", b"CC", b"BCC")
WRITTEN_ANEW: Final = (b"choreo-topic", b"choreo-first-failure", b"choreo-aside", b"choreo-order")
NOTE: Final = b"choreo-dead-"
GONE_ON_REPLAY: Final = (b"choreo-attempt", b"choreo-first-failure")
NO_ID: Final = b"ce-id", "S", b""  # whoever comes without an id gets one


@dataclass(slots=True)
class Shop:
    """A worker with one agent, the file where it writes what it handled, and its dead letters."""

    project: Path
    names: Names
    channel: RawChannel
    start: Callable[[], Running]
    # Poison by its body, which no other has, and its order, which is nobody's if it is not to be read.
    sent: dict[bytes, tuple[Poison, int]] = field(default_factory=dict)

    @property
    def key(self) -> bytes:
        return self.names.namespace.encode() + b"."

    def declare_agent(self, text: str = SHOP) -> None:
        (self.project / "agents" / "shop.py").write_text(text.replace("NS", self.names.namespace))

    def open_wide(self) -> None:
        """Bind the queue to every topic, as by a binding that the code has lost."""
        self.channel.bind(self.names.queue("shop"), self.names.events, self.key + b"#")

    def place(self, orders: range) -> None:
        """Publish good events."""
        for order in orders:
            self.channel.send(self.names.events, self.key + b"placed", pack(**USUAL), good_body(order))
        self.channel.confirm()

    def send(self, poison: Poison, order: int) -> None:
        """Publish poison. Where its body is that of a good event, it is `order`."""
        self.post(poison, order)
        self.channel.confirm()

    def post(self, poison: Poison, order: int) -> None:
        """Publish poison, and do not wait for the confirmation."""
        body = good_body(order) if poison.body is None else poison.body
        assert body not in self.sent, poison.name
        self.sent[body] = poison, order
        self.channel.send(self.names.events, self.key + poison.key, pack(**poison.properties), body)

    def handled(self) -> Counter[int]:
        ledger = self.project / "ledger"
        return Counter(map(int, ledger.read_text().split())) if ledger.exists() else Counter()

    def settled(self, events: int) -> bool:
        """Say whether so many events have been handled or are dead letters."""
        return sum(self.handled().values()) + self.channel.ready(self.names.dlq("shop")) >= events

    def letters(self, port: int) -> dict[bytes, list[Raw]]:
        """Return the dead letters by body, and leave them where they are."""
        found = defaultdict(list)
        with RawChannel(port) as looking:
            for letter in looking.get_all(self.names.dlq("shop")):
                found[letter.body].append(letter)
        return found


@pytest.fixture
def shop(node: Node, project: Path, namespace: str, start_choreo: Start) -> Iterator[Shop]:
    environment = {"CHOREO_URL": node.url, "CHOREO_NAMESPACE": namespace}

    def start() -> Running:
        running = start_choreo("run", "shop", env=environment)
        running.wait_for('"state": "consuming"')
        return running

    with RawChannel(node.port) as channel:
        shop = Shop(project, Names(namespace), channel, start)
        shop.declare_agent()
        yield shop


def test_every_poison_has_a_name_and_a_body_of_its_own() -> None:
    assert len(CORPUS) >= 60
    assert max(Counter(poison.name for poison in CORPUS).values()) == 1
    assert max(Counter(poison.body for poison in CORPUS if poison.body is not None).values()) == 1
    assert {poison.end for poison in CORPUS} >= {
        Reason.UNDECODABLE,
        Reason.INVALID,
        Reason.TOO_LARGE,
        Reason.CONTENT_TYPE,
        Reason.HEADERS,
        Reason.LOOP,
        Reason.UNEXPECTED,
    }


@pytest.mark.timeout(300)
def test_poison_dies_unchanged_and_costs_nobody_else(
    shop: Shop, node: Node, scale: Scale, report: Callable[[Row], None]
) -> None:
    """Poison among good events: what must die is a dead letter with its reason and its bytes, all else is handled
    once, and the worker keeps its connections and its size."""
    good = scale.of(10_000, short=1_000)
    worker = shop.start()
    shop.open_wide()
    shop.place(range(WARM))
    until(lambda: shop.settled(WARM))
    connections, size = connections_of(node), memory(worker, "VmRSS")

    share = (good - WARM) // len(CORPUS) + 1
    placed = WARM
    for number, poison in enumerate(CORPUS):
        shop.place(range(placed, min(placed + share, good)))
        placed = min(placed + share, good)
        shop.send(poison, -1 - number)
    assert placed == good

    with contextlib.suppress(pytest.fail.Exception):  # what is missing then is in the balance
        until(lambda: shop.settled(good + len(CORPUS)), within=60 + good / 100)
    growth = memory(worker, "VmRSS") - size
    peak = memory(worker, "VmHWM") - size
    lost_sessions = sum("session lost" in line for line in worker.stderr)
    same = connections_of(node) == connections
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0

    handled, letters = shop.handled(), shop.letters(node.port)
    mistakes = [*balance(shop, range(good), handled, letters)]
    ends = [handled[order] + len(letters.get(good_body(order), [])) for order in range(good)]
    ends += [len(letters.get(body, [])) + handled[order] for body, (_, order) in shop.sent.items()]
    report(
        Row(
            fault=f"{len(CORPUS)} poisoned messages among good events",
            repetitions=1,
            events=len(ends),
            lost=max(ends.count(0) - shop.channel.ready(shop.names.queue("shop")), 0),
            duplicated=sum(each > 1 for each in ends),
            worst_recovery=None,
            must="each dead with its reason and its bytes, or handled; no session lost, at most 64 MiB more memory",
            met=not (mistakes or lost_sessions) and same and growth <= GROWTH,
            note=f"{sum(map(len, letters.values()))} dead letters, {lost_sessions} sessions lost, memory grew by"
            f" {growth / 2**20:.0f} MiB, at the peak {peak / 2**20:.0f} MiB, with one body of 16 MiB among them",
        )
    )
    assert not mistakes, "\n".join(mistakes)
    assert lost_sessions == 0
    assert same
    assert growth <= GROWTH


@pytest.mark.timeout(600)
def test_poison_that_comes_again_and_again_teaches_the_worker_nothing_wrong(
    shop: Shop, node: Node, scale: Scale, report: Callable[[Row], None]
) -> None:
    """Headers of every odd kind, each at least 64 times, in a row among good events and then all mixed: what reads
    messages faster the more often their shape has come learns from all of them, and takes none for another."""
    times, mixed = scale.of(256, short=64), scale.of(64, short=8)
    # What is longer is never learned, and comes once, above.
    kinds = [each for each in CORPUS if each.body is None and len(pack(**each.properties)) <= _LONGEST]
    assert len(kinds) > 150
    chance = random.Random(12)
    plan = [each for poison in kinds for each in (poison,) * times]
    plan += chance.sample(kinds * mixed, len(kinds) * mixed)
    worker = shop.start()
    shop.open_wide()
    connections = connections_of(node)
    good = 0
    for number, poison in enumerate(plan):
        shop.post(poison, -1 - number)
        if number % 4 == 0:  # as choreo's own are laid out, all but for the order
            shop.post(GOOD, good)
            good += 1
        if number % 512 == 0:
            shop.channel.confirm()
    shop.channel.confirm()

    with contextlib.suppress(pytest.fail.Exception):  # what is missing then is in the balance
        until(lambda: shop.settled(good + len(plan)), within=120 + len(plan) / 50)
    lost_sessions = sum("session lost" in line for line in worker.stderr)
    same = connections_of(node) == connections
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0

    handled, letters = shop.handled(), shop.letters(node.port)
    mistakes = [
        f"good event {order} was handled {handled[order]} times" for order in range(good) if handled[order] != 1
    ]
    ends = [handled[order] for order in range(good)]
    for body, (poison, order) in shop.sent.items():
        if order < 0:
            ends.append(handled[order] + len(letters.get(body, [])))
            if (handled[order], [reason(each) for each in letters.get(body, [])]) != (
                (1, []) if poison.end is None else (0, [poison.end])
            ):
                mistakes.append(f"{poison.name}: handled {handled[order]} times, {len(letters.get(body, []))} letters")
    report(
        Row(
            fault=f"{len(kinds)} kinds of poisoned headers, each {times} times in a row and {mixed} times mixed",
            repetitions=1,
            events=len(ends),
            lost=max(ends.count(0) - shop.channel.ready(shop.names.queue("shop")), 0),
            duplicated=sum(each > 1 for each in ends),
            worst_recovery=None,
            must="each dead with its reason, or handled once; no session lost",
            met=not (mistakes or lost_sessions) and same,
            note=f"{sum(map(len, letters.values()))} dead letters, {lost_sessions} sessions lost",
        )
    )
    assert not mistakes, f"{len(mistakes)} mistakes\n" + "\n".join(mistakes[:50])
    assert lost_sessions == 0
    assert same


def test_dead_letters_of_poison_can_be_looked_at_and_replayed(shop: Shop, node: Node, choreo: Run) -> None:
    """`choreo dlq` lists and shows every one of them, and replays one that the agent has learned to take meanwhile."""
    worker = shop.start()
    shop.open_wide()
    deadly = [poison for poison in CORPUS if poison.end is not None]
    for poison in deadly:
        shop.send(poison, -1 - len(shop.sent))
    until(lambda: shop.settled(len(deadly)), within=60)
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    before = Counter({body: len(found) for body, found in shop.letters(node.port).items()})

    def dlq(*arguments: str, code: int = 0) -> str:
        done = choreo("dlq", *arguments, env={"CHOREO_URL": node.url, "CHOREO_NAMESPACE": shop.names.namespace})
        assert done.returncode == code, done.stderr[-2_000:]
        assert "Traceback" not in done.stderr
        return done.stdout

    assert len(json.loads(dlq("list", "shop", "--limit", "1000", "--output", "json"))) == len(deadly)
    assert len(dlq("list", "shop", "--limit", "1000").splitlines()) > len(deadly)
    shown = json.loads(dlq("show", "shop", "--limit", "1000", "--output", "json"))
    assert len(shown) == len(deadly)
    portraits = dlq("show", "shop", "--limit", "1000")
    assert portraits.count("\nbody, ") == len(deadly)
    assert "\x1b" not in portraits
    assert Counter({body: len(found) for body, found in shop.letters(node.port).items()}) == before

    vase = next(row for row in shown if row["is_json"] and row["body"] == {"order": 1, "kind": "vase"})
    shop.declare_agent(SHOP.replace('"pen"', '"pen", "vase"'))
    worker = shop.start()
    dlq("replay", "shop", "--id", vase["id"])
    until(lambda: shop.handled() == Counter({1: 1}))
    left = before - Counter({b'{"order": 1, "kind": "vase"}': 1})
    assert Counter({body: len(found) for body, found in shop.letters(node.port).items()}) == left
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    everything_is_replayed_as_it_came(shop, node.port, dlq)


def everything_is_replayed_as_it_came(shop: Shop, port: int, dlq: Callable[..., str]) -> None:
    """Each letter goes back byte for byte; what nobody could read only when it is asked for, with its bytes on it. What
    dies again is the same letter again."""
    before = {body: reason(letter) for body, (letter,) in shop.letters(port).items()}
    unread = sum(not is_read(poison) for poison, _ in shop.sent.values())
    report = json.loads(dlq("replay", "shop", "--yes", "--output", "json", code=3))
    assert report["not_done"] == len(report["failures"]) == unread > 0
    assert all("cannot be read" in each["reason"] for each in report["failures"])
    dlq("replay", "shop", "--yes", "--without-headers")
    with RawChannel(port) as looking:
        for found in looking.get_all(shop.names.queue("shop")):
            poison, _ = shop.sent[found.body]
            assert not [*changes(poison, found, shop.key + poison.key, replayed=True)], poison.name
    handled = sum(shop.handled().values())
    worker = shop.start()
    until(lambda: shop.settled(len(before) + handled), within=60)
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    for body, (letter,) in shop.letters(port).items():
        poison, _ = shop.sent[body]
        died = [*changes(poison, letter, shop.key + poison.key, replayed=True)]
        assert not died, f"{poison.name}: {died}"
        if b"choreo-dead-headers" not in letter.properties:  # what could not be read is an event without headers now
            assert reason(letter) == before[body], poison.name


def balance(shop: Shop, good: range, handled: Counter[int], letters: dict[bytes, list[Raw]]) -> Iterator[str]:
    """Return everything that did not end as it had to, in words."""
    for order in good:
        if handled[order] != 1:
            yield f"good event {order} was handled {handled[order]} times"
    for body in letters.keys() - shop.sent.keys():
        yield f"nobody sent the dead letter {body[:60]!r}, or it was good"
    for body, (poison, order) in shop.sent.items():
        found = letters.get(body, [])
        if poison.end is None:
            if handled[order] != 1 or found:
                yield f"{poison.name}: handled {handled[order]} times, {[reason(each) for each in found]}"
        elif [reason(each) for each in found] != [poison.end]:
            yield f"{poison.name}: {[reason(each) for each in found]} in place of {poison.end}"
        else:
            yield from (f"{poison.name}: {change}" for change in changes(poison, found[0], shop.key + poison.key))


def changes(poison: Poison, letter: Raw, key: bytes, *, replayed: bool = False) -> Iterator[str]:
    """Return in what the letter differs from the message that it was. Its body is what it was found by."""
    sent, got = dict(poison.properties), unpack(letter.properties)
    headers, notes = sent.pop("headers", b""), listed(got.pop("headers"))
    aside = {ASIDE[name]: ("S", sent.pop(name)) for name in tuple(sent) if name in ASIDE}
    if got != sent:
        yield f"properties are {got!r:.200}, were {sent!r:.200}"
    told = {name: (kind, content) for name, kind, content in notes}
    if told.get(b"choreo-topic") != ("S", key):
        yield f"choreo-topic is {told.get(b'choreo-topic')}"
    if b"choreo-dead-dropped-headers" in told:
        yield f"dropped {told[b'choreo-dead-dropped-headers']}"
    unread = told.get(b"choreo-dead-headers")
    if (unread is None) != is_read(poison):
        yield f"unread: {unread!r:.80}"
    if unread is not None:
        if unread[1] != headers:
            yield f"headers that were not read are {unread!r:.80}"
        return
    yield from header_changes(headers, notes, aside, replayed=replayed)


def header_changes(
    headers: bytes, notes: list[tuple[bytes, str, bytes]], aside: Fields, *, replayed: bool
) -> Iterator[str]:
    before = [field for field in listed(headers) if not field[0].startswith(NOTE)]
    aside |= {name: (kind, content) for name, kind, content in before if name in OVERWRITTEN}
    aside.pop(b"x-delivery-count", None)
    aside.pop(b"BCC", None)  # of which the broker tells nobody
    kept = [content for name, _, content in notes if name == b"choreo-aside"]
    if (fields(kept[0]) if kept else {}) != aside:
        yield f"set aside is {kept!r:.200}, not {aside!r:.200}"
    gone = {*OVERWRITTEN, *WRITTEN_ANEW, *(GONE_ON_REPLAY if replayed else ())}
    whole = [field for field in before if field[0] not in gone and field != NO_ID]
    found = [field for field in notes if field[0] not in gone and not field[0].startswith(NOTE)]
    if all(name != b"ce-id" for name, _, _ in whole):
        found = [field for field in found if field[0] != b"ce-id"]
    if not replayed or b"x-delivery-count" in {name for name, _, _ in notes}:
        # RabbitMQ sorts them by name when it delivers a message again, as it has done with one that was looked at.
        found, whole = sorted(found, key=itemgetter(0)), sorted(whole, key=itemgetter(0))
    if not keeps_headers():
        found, whole = sorted(found, key=itemgetter(0)), list({each[0]: each for each in reversed(whole)}.values())
        whole.sort(key=itemgetter(0))
    if found != whole:
        yield f"headers are {found!r:.200}, were {whole!r:.200}"


def keeps_headers() -> bool:
    """Say whether headers are delivered as they came: RabbitMQ from 4.0 on sorts them, the first of each name."""
    server = None if EMBEDDED else find_server(ROOT)
    return server is None or int(release(server).partition(".")[0]) < 4


def is_read(poison: Poison) -> bool:
    """Say whether choreo can read the headers at all."""
    return decode.plainly(pack(**poison.properties), b"").unread is None


def reason(letter: Raw) -> str:
    notes = fields(unpack(letter.properties)["headers"])
    return notes[b"choreo-dead-reason"][1].decode() if b"choreo-dead-reason" in notes else "none: the broker did it"


def good_body(order: int) -> bytes:
    return b'{"order": %d}' % order


def connections_of(node: Node) -> set[str]:
    """Return the worker's connections; every one has another process in the broker."""
    return {line for line in node.ctl("list_connections", "pid", "client_properties").splitlines() if "choreo" in line}


def memory(worker: Running, what: str) -> int:
    """Return a figure of the kernel's about a process, in bytes: VmRSS is its memory now, VmHWM the most it had."""
    lines = Path(f"/proc/{worker.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{what}:")) * 1024
