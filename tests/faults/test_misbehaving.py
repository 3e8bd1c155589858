"""Reactions that end their process, hang, or raise what ends a process elsewhere.

Each is a dead letter with its reason; the neighbours in its queue, and in the other queues of its process, are handled.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest

from choreo import dead_letter
from choreo.config.broker_url import BrokerUrl
from choreo.message import Message, Reason
from choreo.rabbit import session as rabbit
from choreo.topology import DELIVERY_LIMIT, Names
from choreo.transport import Confirmed, Delivery, Session
from tests.conftest import Running, environment
from tests.faults.report import Row
from tests.waiting import eventually, until

if TYPE_CHECKING:
    from tests.faults.conftest import Scale

Report = Callable[[Row], None]
T = TypeVar("T")

AGENT = '''
"""An agent of the tests: it notes what it begins and what it has done, and does to itself what the order says."""
import asyncio
import ctypes
import multiprocessing
import os
import time
from pathlib import Path

from choreo import Agent, Event

class Placed(Event, topic="NAME.placed", external=True):
    order: str

class Slow(Event, topic="NAME.slow", external=True):
    order: str

class Again(Event, topic="NAME.again"):
    order: str

agent = Agent("NAME", timeout="2s")
ledger = os.open(os.environ["LEDGER"], os.O_WRONLY | os.O_APPEND)

forking = multiprocessing.get_context("fork")

def give_up_on_a_child() -> None:
    child = forking.Process(target=time.sleep, args=(60,))
    child.start()
    child.terminate()
    child.join()

def note(what: str, order: str) -> None:
    os.write(ledger, f"{what} NAME {order} {os.getpid()}\\n".encode())

@agent.on
async def work(placed: Placed) -> None:
    note("begun", placed.order)
    match placed.order.partition("-")[0]:
        case "exit":
            os._exit(13)
        case "segfault":
            ctypes.string_at(0)
        case "child":
            give_up_on_a_child()
        case "block":
            time.sleep(3600)
        case "hang":
            await asyncio.sleep(3600)
        case "memory":
            raise MemoryError
        case "systemexit":
            raise SystemExit(3)
        case "base":
            raise BaseException("neither an error nor an end")
    await asyncio.sleep(0.005)
    note("handled", placed.order)

@agent.on
def work_in_a_thread(slow: Slow) -> None:
    note("begun", slow.order)
    if slow.order.startswith("child"):
        give_up_on_a_child()
    time.sleep(6 if slow.order.startswith("hang") else 0.005)
    note("handled", slow.order)

@agent.on(max_tree=int(os.environ["MAX_TREE"]))
async def amplify(again: Again) -> list[Again]:
    note("begun", again.order)
    return [Again(order=again.order)] * 50
'''

# As a supervisor does it, but without the second that Python and the imports take: each worker is a fork.
RESTARTS = """
import asyncio
import contextlib
import os
import signal
import sys

from choreo import loader
from choreo.observe import logs
from choreo.composition.sessions import connector
from choreo.runtime.service import serve
from choreo.config.settings import load

settings = load()
logs.configure("warning", "json")
agents = [loader.load(name, settings.agents_folder) for name in sys.argv[1:]]
child, stopped = 0, False

def stop(*_):
    global stopped
    stopped = True
    with contextlib.suppress(ProcessLookupError):
        child and os.kill(child, signal.SIGTERM)

signal.signal(signal.SIGTERM, stop)
while not stopped:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # it is meant for one of the two, never for both
    child = os.fork()
    if not child:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    if not child:
        os._exit(asyncio.run(serve(agents, settings, connector, management=None)))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print("ended", code, flush=True)
"""


class Ledger:
    """Agents that misbehave, what they noted, and what the broker holds."""

    def __init__(self, project: Path, url: str, namespace: str, agents: int) -> None:
        self.names = Names(namespace)
        self.agents = [f"{namespace}_{number}" for number in range(agents)]
        for agent in self.agents:
            (project / "agents" / f"{agent}.py").write_text(AGENT.replace("NAME", agent))
        self.placed: set[tuple[str, str]] = set()  # agent and order
        self._url = url
        self._file = project / "ledger"
        self._file.touch()
        self.environment = {
            "CHOREO_URL": url,
            "CHOREO_NAMESPACE": namespace,
            "LEDGER": str(self._file),
            "MAX_TREE": "100000",
        }

    def place(self, orders: list[str], topic: str = "placed") -> None:
        """Publish each order to each agent, confirmed; the agents' queues must be there."""

        async def publish(session: Session) -> None:
            sent = [
                session.publish(
                    Message(json.dumps({"order": order}).encode(), message_id=f"{agent}-{order}"),
                    exchange=self.names.events,
                    routing_key=f"{agent}.{topic}",
                    timeout=30,
                )
                for order in orders
                for agent in self.agents
            ]
            assert set(await asyncio.gather(*sent)) == {Confirmed()}

        self.with_session(publish)
        self.placed.update((agent, order) for order in orders for agent in self.agents)

    def noted(self, what: str) -> Counter[tuple[str, str]]:
        """Return how often each order of each agent was begun, or handled."""
        lines = [line.split() for line in self._file.read_text().splitlines()]
        return Counter((agent, order) for noted, agent, order, _ in lines if noted == what)

    def dead(self) -> Counter[tuple[str, str, str]]:
        """Return agent, order and reason of every dead letter."""

        async def read(session: Session, agent: str) -> list[tuple[str, str, str]]:
            queue = self.names.dlq(agent)
            found = await session.stats(queue)
            assert found is not None
            got: list[Delivery] = []
            consumer = await session.consume(queue, prefetch=10_000, on_delivery=got.append)
            await eventually(lambda: len(got) >= found.ready)
            await consumer.close()
            letters = [dead_letter.read(each.message, agent=agent) for each in got]
            return [(agent, json.loads(letter.body)["order"], letter.reason) for letter in letters]

        async def read_all(session: Session) -> Counter[tuple[str, str, str]]:
            return Counter([letter for agent in self.agents for letter in await read(session, agent)])

        return self.with_session(read_all)

    def settle(self, within: float) -> None:
        """Wait until every order is handled or dead, and no queue of the agents holds anything."""

        async def ready(session: Session, queues: list[str]) -> int:
            found = [await session.stats(queue) for queue in queues]
            return sum(each.ready for each in found if each is not None)

        async def ended(session: Session) -> bool:
            dead = await ready(session, [self.names.dlq(agent) for agent in self.agents])
            left = await ready(session, [self.names.queue(agent) for agent in self.agents])
            return not left and len(self.noted("handled")) + dead >= len(self.placed)

        self.with_session(lambda session: eventually(partial(ended, session), within=within, what="the end of it all"))

    def with_session(self, work: Callable[[Session], Awaitable[T]]) -> T:
        async def connected() -> T:
            session = await rabbit.connect([BrokerUrl.parse(self._url)], name="ledger")
            try:
                return await work(session)
            finally:
                await session.close()

        return asyncio.run(connected())

    def row(self, fault: str, culprits: set[str], reason: str, must: str, note: str = "") -> Row:
        """Count what became of the orders: the culprits are dead for `reason`, all others are handled."""
        handled, dead = self.noted("handled"), self.dead()
        expected = {(agent, order, reason) for agent in self.agents for order in culprits}
        buried = {(agent, order) for agent, order, _ in dead}
        return Row(
            fault=fault,
            repetitions=len(expected),
            events=len(self.placed),
            lost=len(self.placed - set(handled) - buried),
            duplicated=handled.total() - len(handled) + dead.total() - len(dead),
            worst_recovery=None,
            must=must,
            met=set(dead) == expected and set(handled) >= {each for each in self.placed if each[1] not in culprits},
            note=note,
        )


@pytest.fixture
def restarting(project: Path) -> Iterator[Callable[..., Running]]:
    """Runs agents in one process that is started again whenever it crashes."""
    started: list[Running] = []

    def start(ledger: Ledger, *agents: str, **settings: str) -> Running:
        process = subprocess.Popen(
            [sys.executable, "-c", RESTARTS, *agents],
            cwd=project,
            env=environment(ledger.environment | settings),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(Running(process))
        return started[-1]

    yield start
    for running in started:
        running.end()


def declared(ledger: Ledger) -> bool:
    """Say whether the queues of all agents are there, with their consumers."""

    async def consumed(session: Session) -> bool:
        found = [await session.stats(ledger.names.queue(agent)) for agent in ledger.agents]
        return all(each is not None and each.consumers for each in found)

    return ledger.with_session(consumed)


def neighbours(count: int) -> list[str]:
    return [f"fine-{number}" for number in range(count)]


def among(orders: list[str], culprits: set[str]) -> list[str]:
    """The culprits in the midst of the others, so that all of them are held together."""
    step = len(orders) // (len(culprits) + 1)
    mixed = list(orders)
    for number, culprit in enumerate(sorted(culprits), start=1):
        mixed.insert(number * step, culprit)
    return mixed


@pytest.mark.timeout(300)
def test_reaction_that_ends_its_process_is_buried_without_its_neighbours(
    restarting: Callable[..., Running], project: Path, broker_url: str, namespace: str, scale: Scale, report: Report
) -> None:
    """A worker of two agents that is started again after each crash, and another one beside it. Each culprit crashes as
    often as the delivery limit allows; nobody else reaches it."""
    ledger = Ledger(project, broker_url, namespace, agents=2)
    culprits = {f"{('exit', 'segfault')[number % 2]}-{number}" for number in range(scale.of(10, short=1))}
    workers = [restarting(ledger, *ledger.agents) for _ in range(2)]
    until(lambda: declared(ledger))
    ledger.place(among(neighbours(scale.of(1_000, short=200)), culprits))
    ledger.settle(within=250)
    begun = ledger.noted("begun")
    most = max(times for (_, order), times in begun.items() if order in culprits)
    crashes = sum("ended" in line for worker in workers for line in worker.stdout)
    again = max(times for (_, order), times in begun.items() if order not in culprits)
    row = ledger.row(
        "reaction ends its process (os._exit, segfault)",
        culprits,
        Reason.CRASHED,
        f"culprits dead as crashed after at most {DELIVERY_LIMIT + 1} crashes, all other events handled",
        note=f"{crashes} crashes, at most {most} by one event; another event was begun at most {again} times",
    )
    report(row)
    for worker in workers:
        worker.send(signal.SIGTERM)
    assert [worker.wait() for worker in workers] == [0, 0]
    assert row.met, row
    assert row.lost == 0
    assert most <= DELIVERY_LIMIT + 1


@pytest.mark.timeout(400)
def test_reaction_that_blocks_the_loop_for_ever_is_buried_without_its_neighbours(
    restarting: Callable[..., Running], project: Path, broker_url: str, namespace: str, scale: Scale, report: Report
) -> None:
    """Each worker that is started again meets it as its first message, and ends with 70 all the same."""
    if scale.extent == "short":
        pytest.skip("each of twenty rounds lasts 7 s, the deadline and 5 s; one is in tests/acceptance")
    ledger = Ledger(project, broker_url, namespace, agents=1)
    worker = restarting(ledger, *ledger.agents)
    until(lambda: declared(ledger))
    ledger.place(among(neighbours(100), {"block-1"}))
    ledger.settle(within=350)
    begun = ledger.noted("begun")[ledger.agents[0], "block-1"]
    row = ledger.row(
        "reaction blocks the event loop for ever",
        {"block-1"},
        Reason.CRASHED,
        f"culprit dead as crashed after at most {DELIVERY_LIMIT + 1} ends with 70, all other events handled",
        note=f"begun {begun} times",
    )
    report(row)
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    assert {line for line in worker.stdout if line.startswith("ended")} - {"ended 0"} == {"ended 70"}
    assert row.met, row
    assert row.lost == 0
    assert begun <= DELIVERY_LIMIT + 1


@pytest.mark.timeout(300)
@pytest.mark.parametrize("topic", ["placed", "slow"], ids=["on-the-loop", "in-a-thread"])
def test_signals_to_the_children_of_a_reaction_cost_nothing(
    restarting: Callable[..., Running],
    project: Path,
    broker_url: str,
    namespace: str,
    scale: Scale,
    report: Report,
    topic: str,
) -> None:
    """Reactions fork children and terminate them while neighbours are handled: the worker neither ends nor drains,
    and nothing is lost or done twice."""
    ledger = Ledger(project, broker_url, namespace, agents=1)
    parents = {f"child-{number}" for number in range(scale.of(200, short=10))}
    worker = restarting(ledger, *ledger.agents)
    until(lambda: declared(ledger))
    ledger.place(among(neighbours(scale.of(1_000, short=100)), parents), topic)
    ledger.settle(within=250)
    where = {"placed": "on the loop", "slow": "in a thread"}[topic]
    must = "all handled, once, by the one worker"
    row = ledger.row(f"signals to the forked children of a reaction {where}", set(), "", must)
    row = replace(row, repetitions=len(parents), met=row.met and not row.lost and not row.duplicated)
    report(row)
    assert worker.process.poll() is None
    assert not worker.stdout, "it has not been started again"
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    assert row.met, row


@pytest.mark.timeout(300)
def test_crashing_reaction_under_a_supervisor_is_buried_without_its_neighbours(
    start_choreo: Callable[..., Running],
    project: Path,
    broker_url: str,
    namespace: str,
    scale: Scale,
    report: Report,
) -> None:
    """`choreo run --processes`: crashes go round among the processes, each of which is started again."""
    if scale.extent == "short":
        pytest.skip("twenty restarts of a whole Python take long; the test above does them by forking")
    ledger = Ledger(project, broker_url, namespace, agents=1)
    running = start_choreo("run", "--processes", "4", *ledger.agents, env=ledger.environment)
    until(lambda: declared(ledger))
    ledger.place(among(neighbours(1_000), {"exit-1"}))
    ledger.settle(within=250)
    row = ledger.row(
        "the same under choreo run --processes 4",
        {"exit-1"},
        Reason.CRASHED,
        "culprit dead as crashed, all other events handled",
        note=f"{sum('process ended' in line for line in running.stderr)} crashes",
    )
    report(row)
    running.send(signal.SIGTERM)
    assert running.wait(60) == 0
    assert row.met, row
    assert row.lost == 0


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("fault", "kind", "topic"),
    [
        ("reaction hangs beyond its deadline, on the loop", "hang", "placed"),
        ("reaction hangs beyond its deadline, in a thread", "hang", "slow"),
        ("reaction raises MemoryError", "memory", "placed"),
        ("reaction raises SystemExit", "systemexit", "placed"),
        ("reaction raises BaseException", "base", "placed"),
    ],
    ids=["hang", "hang in a thread", "MemoryError", "SystemExit", "BaseException"],
)
def test_reaction_that_fails_badly_is_buried_without_its_neighbours(
    restarting: Callable[..., Running],
    project: Path,
    broker_url: str,
    namespace: str,
    scale: Scale,
    report: Report,
    fault: str,
    kind: str,
    topic: str,
) -> None:
    """The worker goes on, and nobody is begun a second time."""
    ledger = Ledger(project, broker_url, namespace, agents=1)
    culprits = {f"{kind}-{number}" for number in range(scale.of(20, short=2))}
    worker = restarting(ledger, *ledger.agents)
    until(lambda: declared(ledger))
    ledger.place(among(neighbours(scale.of(1_000, short=100)), culprits), topic)
    ledger.settle(within=90)
    row = ledger.row(fault, culprits, Reason.FAILED, "culprits dead as failed, all other events handled once")
    report(row)
    begun = ledger.noted("begun")
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    assert row.met, row
    assert (row.lost, row.duplicated, set(begun.values())) == (0, 0, {1})
    assert worker.stdout == ["ended 0"]


@pytest.mark.timeout(180)
def test_fan_out_that_amplifies_itself_ends_after_a_few_rounds(
    restarting: Callable[..., Running], project: Path, broker_url: str, namespace: str, scale: Scale, report: Report
) -> None:
    """Fifty events for each of fifty, beside orders that are handled: the loop ends where `max_tree` would be passed,
    sixty rounds before `max_hops`, and everything that came of it is accounted for."""
    ledger = Ledger(project, broker_url, namespace, agents=1)
    (agent,) = ledger.agents
    worker = restarting(ledger, agent, MAX_TREE=str(scale.of(100_000, short=1_000)))
    until(lambda: declared(ledger))
    ledger.place(neighbours(100))
    last = scale.of(2_500, short=50)  # the events whose fifty would have been too many
    events = last + last // 50 + (last > 50)
    ledger.place(["amplify"], "again")
    until(lambda: ledger.noted("begun")[agent, "amplify"] >= events, within=60)
    until(lambda: ledger.dead().total() >= last, within=60)
    dead, handled = ledger.dead(), ledger.noted("handled")
    begun = ledger.noted("begun")[agent, "amplify"]
    row = Row(
        fault="fan-out x50 in a loop",
        repetitions=1,
        events=len(ledger.placed) + events - 1,
        lost=100 - len(handled) + last - dead.total(),
        duplicated=begun - events,
        worst_recovery=None,
        must=f"the last {last} events dead as loop, nothing beyond them, all other events handled",
        met=dead == {(agent, "amplify", Reason.LOOP): last} and begun == events and len(handled) == 100,
    )
    report(row)
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    assert row.met, row
    assert (row.lost, row.duplicated) == (0, 0)
