"""`choreo inspect` against a real node: over AMQP alone, with the management API, once and again and again."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from choreo.agent import Agent
from choreo.config.broker_url import BrokerUrl
from choreo.message import Message
from choreo.rabbit.session import RabbitSession, connect
from choreo.testing.rabbitmq.node import Node
from choreo.topology import Binding, Names, Topology
from tests.conftest import Running
from tests.waiting import until

Run = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., Running]

EVENTS = """
from choreo import Event

class OrderPlaced(Event, topic="order.placed", external=True):
    order: str

class OrderPaid(Event, topic="order.paid", terminal=True):
    order: str

class OrderDeclined(Event, topic="order.declined", terminal=True):
    order: str
"""
TILL = '''
"""The till takes money.

More on that."""
from choreo import Agent, Retry
from agents.events import OrderDeclined, OrderPaid, OrderPlaced

agent = Agent("till", retry=Retry(on=OSError, attempts=3), timeout="10s")

def declined(placed: OrderPlaced, error: Exception) -> OrderDeclined:
    return OrderDeclined(order=placed.order)

@agent.on(retry=Retry(on=ValueError, attempts=2, first="2s"), otherwise=declined)
async def charge(placed: OrderPlaced) -> OrderPaid:
    return OrderPaid(order=placed.order)

@agent.on(compensates=charge)
async def refund(declined: OrderDeclined) -> None:
    pass
'''
CLERK = """
from choreo import Agent
from agents.events import OrderPlaced

agent = Agent("the-clerk")

@agent.on
async def note(placed: OrderPlaced) -> None:
    raise RuntimeError("no ink")
"""


@pytest.fixture
def shop(project: Path) -> Path:
    """A project with two agents: a till with policies, and a clerk that always fails."""
    for name, text in {"events": EVENTS, "till": TILL, "the_clerk": CLERK}.items():
        (project / "agents" / f"{name}.py").write_text(text)
    return project


@pytest.fixture
def env(broker_url: str, namespace: str) -> dict[str, str]:
    return {"CHOREO_URL": broker_url, "CHOREO_NAMESPACE": namespace}


@pytest.fixture
def inspect(choreo: Run, shop: Path, env: dict[str, str]) -> Run:
    """Runs `choreo inspect ARGS` in the shop."""

    def run(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        return choreo("inspect", *arguments, env=env | changes)

    return run


@contextmanager
def opened(url: str) -> Iterator[Callable[..., Any]]:
    """Gives a function that runs a coroutine function with a session of the test's own."""
    with asyncio.Runner() as runner:
        session: RabbitSession = runner.run(connect(BrokerUrl.parse_all(url), name="test"))
        yield lambda work: runner.run(work(session))
        runner.run(session.close())


def data(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


def by(name: str, rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row[name]: row for row in rows}


def test_queues_before_anything_ran_are_missing(inspect: Run, namespace: str):
    """All queues that the agents need are named, with exactly the documented fields."""
    rows = data(inspect("queues", "-o", "json"))
    assert {tuple(row) for row in rows} == {("queue", "agent", "kind", "ready", "consumers", "state")}
    assert {row["state"] for row in rows} == {"missing"}
    assert {row["ready"] for row in rows} == {None}
    agents = {(row["queue"], row["agent"], row["kind"]) for row in rows if row["agent"]}
    assert agents == {
        (f"{namespace}.till", "till", "work"),
        (f"{namespace}.till.retry", "till", "retry"),
        (f"{namespace}.till.dlq", "till", "dlq"),
        (f"{namespace}.the-clerk", "the-clerk", "work"),
        (f"{namespace}.the-clerk.retry", "the-clerk", "retry"),
        (f"{namespace}.the-clerk.dlq", "the-clerk", "dlq"),
    }
    assert sum(row["kind"] == "delay" for row in rows) == 21


def test_queues_show_who_runs_and_what_waits(inspect: Run, start_choreo: Start, choreo: Run, namespace: str, env):
    """While one agent runs and another one does not, and a delivery has failed."""
    both = start_choreo("run", "--all", env=env)
    both.wait_for("consuming")
    assert choreo("publish", "order.placed", '{"order": "1"}', env=env).returncode == 0
    clerk = f"{namespace}.the-clerk"

    def queues() -> dict[str, dict[str, Any]]:
        return by("queue", data(inspect("queues", "-o", "json")))

    until(lambda: queues()[f"{clerk}.dlq"]["ready"])
    found = queues()
    assert (found[clerk]["state"], found[clerk]["consumers"], found[clerk]["ready"]) == ("running", 1, 0)
    assert found[f"{clerk}.dlq"]["state"] == "waiting"
    assert found[f"{namespace}.till.dlq"]["state"] == "empty"
    assert found[f"{namespace}.delay.0"]["state"] == "empty"
    assert (found[f"{clerk}.retry"]["state"], found[f"{clerk}.retry"]["consumers"]) == ("empty", 1)
    assert (found[f"{namespace}.delay.due"]["state"], found[f"{namespace}.delay.due"]["consumers"]) == ("empty", 1)

    both.send(signal.SIGTERM)
    assert both.wait() == 0
    assert choreo("publish", "order.placed", '{"order": "2"}', env=env).returncode == 0
    stopped = queues()[clerk]
    assert (stopped["state"], stopped["consumers"], stopped["ready"]) == ("no consumer", 0, 1)

    (row,) = [row for row in data(inspect("-o", "json")) if row["agent"] == "the-clerk"]
    assert (row["state"], row["ready"], row["consumers"], row["dead"]) == ("no consumer", 1, 0, 1)


def test_table_of_queues_leaves_empty_delays_out(inspect: Run, namespace: str):
    """Lines that say nothing, as those of empty queues for retries; --all shows them."""
    lines = inspect("queues").stdout.splitlines()
    assert lines[0].split() == ["queue", "agent", "kind", "ready", "consumers", "state"]
    assert lines[1].split() == [f"{namespace}.unclaimed.dlq", "-", "dlq", "-", "-", "missing"]
    assert len(lines) == 1 + 1 + 4
    assert len(inspect("queues", "--all").stdout.splitlines()) == len(lines) + 21 + 2


def test_agents_are_what_is_shown_without_a_word(inspect: Run):
    """What they take and emit, and their policies in words: also the one that a reaction does not name."""
    rows = by("agent", data(inspect("-o", "json")))
    assert data(inspect("agents", "-o", "json")) == list(rows.values())
    till = rows["till"]
    assert till["consumes"] == ["order.declined", "order.placed"]
    assert till["emits"] == ["order.declined", "order.paid"]
    assert till["reactions"] == ["charge", "refund"]
    assert till["retry"] == (
        "OSError: 3 attempts, 1s doubling to 5m, jittered; charge: ValueError: 2 attempts, 2s doubling to 5m, jittered"
    )
    assert till["timeout"] == 10.0
    assert till["description"] == "The till takes money."
    assert till["where"].startswith("agents/till.py:")
    assert rows["the-clerk"]["retry"] == "none: a failure is final"
    assert "none: a failure is final" in inspect().stdout


def test_one_agent_is_shown_in_full(inspect: Run, namespace: str):
    """Its reactions, one by one, and its queues."""
    found = data(inspect("till", "-o", "json"))
    assert (found["queue"], found["dlq"]) == (f"{namespace}.till", f"{namespace}.till.dlq")
    assert [row["state"] for row in found["queues"]] == ["missing"] * 3
    charge, refund = found["reactions"]
    assert charge["otherwise"] == "declined"
    assert charge["otherwise_emits"] == ["order.declined"]
    assert refund["compensates"] == "charge"
    assert (charge["retry"], refund["retry"]) == (
        "ValueError: 2 attempts, 2s doubling to 5m, jittered",
        "OSError: 3 attempts, 1s doubling to 5m, jittered",
    )
    text = inspect("till").stdout
    for line in ("The till takes money.", "compensates  charge", "otherwise    declined -> order.declined"):
        assert line in text


def test_bindings_follow_from_the_agents(inspect: Run, namespace: str):
    """As a table the ways of events, as JSON all of them."""
    table = inspect("bindings").stdout
    assert sorted(line.split() for line in table.splitlines()[1:]) == [
        [f"{namespace}.dead", "the-clerk", f"{namespace}.the-clerk.dlq", "the-clerk"],
        [f"{namespace}.dead", "till", f"{namespace}.till.dlq", "till"],
        [f"{namespace}.events", "order.declined", f"{namespace}.till", "till"],
        [f"{namespace}.events", "order.placed", f"{namespace}.the-clerk", "the-clerk"],
        [f"{namespace}.events", "order.placed", f"{namespace}.till", "till"],
    ]
    rows = data(inspect("bindings", "-o", "json"))
    assert {tuple(row) for row in rows} == {("source", "pattern", "destination", "to", "agent")}
    assert (f"{namespace}.delay.0", None) in {(row["source"], row["agent"]) for row in rows}


# With the management API.


@pytest.fixture
def told(choreo: Run, shop: Path, managed: Node, namespace: str) -> Run:
    """Runs `choreo inspect ARGS` in the shop, with the management API."""

    def run(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        env = {
            "CHOREO_URL": managed.url,
            "CHOREO_NAMESPACE": namespace,
            "CHOREO_MANAGEMENT_URL": managed.management_url,
        }
        return choreo("inspect", *arguments, env=env | changes)

    return run


def test_management_adds_rates_and_the_queues_of_others(told: Run, managed: Node, namespace: str):
    """What is held without being settled, memory, rates, and an agent of another project in this namespace."""
    names = Names(namespace)
    with opened(managed.url) as run:

        async def begin(session: RabbitSession) -> None:
            await session.declare(Topology.of([Agent("till"), Agent("stranger")], namespace))
            for number in range(5):
                message = Message(b"{}", message_id=str(number))
                await session.publish(message, exchange=names.dead, routing_key="till", timeout=10)
            await session.consume(names.dlq("till"), prefetch=3, on_delivery=lambda _: None)

        run(begin)

        def figures() -> dict[str, dict[str, Any]]:
            return by("queue", data(told("queues", "-o", "json")))

        def told_all() -> bool:
            row = figures()[names.dlq("till")]
            return row["unacked"] == 3 and None not in (row["publish_rate"], row["deliver_rate"], row["memory"])

        until(told_all, within=30)
        found = figures()
    row = found[names.dlq("till")]
    assert (row["ready"], row["consumers"], row["state"], row["declared"]) == (2, 1, "waiting", True)
    stranger = found[names.queue("stranger")]
    assert (stranger["agent"], stranger["kind"], stranger["state"]) == ("stranger", "work", "no consumer")
    assert stranger["declared"] is False
    assert found[names.dlq("stranger")]["kind"] == "dlq"
    assert "publish_rate" in told("queues").stdout.splitlines()[0]


def test_management_tells_which_bindings_are_there(told: Run, managed: Node, namespace: str):
    """A topic that an agent has given up still reaches its queue until the old binding is removed: it is shown."""
    names = Names(namespace)
    old = Binding(names.events, names.queue("till"), "order.forgotten")
    with opened(managed.url) as run:

        async def declare(session: RabbitSession) -> None:
            await session.declare(Topology.of([Agent("till")], namespace))
            await session.declare(Topology((), (), (old,)))

        run(declare)
    rows = data(told("bindings", "-o", "json"))
    facts = {(row["source"], row["pattern"], row["destination"]): (row["on_broker"], row["declared"]) for row in rows}
    assert facts[names.events, "order.forgotten", names.queue("till")] == (True, False)
    assert facts[names.dead, "till", names.dlq("till")] == (True, True)
    assert facts[names.events, "order.placed", names.queue("till")] == (False, True)
    line = next(line for line in told("bindings").stdout.splitlines() if "order.forgotten" in line)
    assert line.split()[-3:] == ["till", "yes", "no"]


def test_management_tells_who_consumes(told: Run, managed: Node, start_choreo: Start, namespace: str):
    """Where from, as whom, and how much each may hold."""
    running = start_choreo("run", "till", env={"CHOREO_URL": managed.url, "CHOREO_NAMESPACE": namespace})
    running.wait_for("consuming")

    def consumers() -> Any:
        return data(told("till", "-o", "json"))["consumer_details"]

    expected = [{"address": "127.0.0.1", "user": "guest", "prefetch": 100, "active": True}]
    until(lambda: consumers() == expected)
    assert "guest from 127.0.0.1, prefetch 100" in told("till").stdout


def test_without_agents_here_the_broker_is_shown(told: Run, managed: Node, namespace: str, tmp_path: Path):
    """An operator needs no code to look at what is there."""
    with opened(managed.url) as run:
        run(lambda session: session.declare(Topology.of([Agent("stranger")], namespace)))
    done = told("queues", "-o", "json", CHOREO_AGENTS=str(tmp_path / "nowhere"))
    assert done.returncode == 0
    assert "no agents folder" in done.stderr
    assert f"{namespace}.stranger" in by("queue", json.loads(done.stdout))


@pytest.mark.parametrize("what", ["queues", "agents", "bindings", "till"])
@pytest.mark.parametrize(
    ("url", "reason"), [("guest:s3cret@{}", "refused the user"), ("u:s3cret@127.0.0.1:1", "refused")]
)
def test_management_that_does_not_help_is_a_note(told: Run, managed: Node, what: str, url: str, reason: str):
    """Everything that AMQP tells is shown all the same, and no password."""
    place = f"http://{url.format(f'127.0.0.1:{managed.management_port}')}"
    done = told(what, "-o", "json", CHOREO_MANAGEMENT_URL=place)
    assert done.returncode == 0
    assert json.loads(done.stdout)
    assert done.stderr.startswith("choreo: no")
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1
    assert "s3cret" not in done.stdout + done.stderr


# Again and again.


@pytest.mark.parametrize(("what", "output"), [("agents", "json"), ("queues", "jsonl"), ("till", "json")])
def test_watch_writes_data_that_says_when(start_choreo: Start, shop: Path, env, what: str, output: str):
    """One look after the other, each with its time; Ctrl-C ends it with 130."""
    running = start_choreo("inspect", what, "--watch", "--interval", "200ms", "-o", output, env=env)
    running.wait_for('"time"', times=100 if output == "jsonl" else 3)
    running.send(signal.SIGINT)
    assert running.wait() == 130
    assert running.stderr == []
    times = set()
    for line in running.stdout:
        found = json.loads(line)
        times |= {row["time"] for row in (found if isinstance(found, list) else [found])}
    assert len(times) >= 2


def test_watch_writes_blocks_where_there_is_no_terminal(start_choreo: Start, shop: Path, env):
    running = start_choreo("inspect", "-w", "--interval", "200ms", env=env)
    running.wait_for("the-clerk", times=2)
    running.send(signal.SIGINT)
    assert running.wait() == 130
    assert sum(line.startswith("agent ") for line in running.stdout) >= 2


def test_watch_waits_for_a_broker_that_is_restarted(start_choreo: Start, shop: Path, fresh_node: Node, namespace: str):
    """It says that nobody answers, and shows the queues again when somebody does."""
    env = {"CHOREO_URL": fresh_node.url, "CHOREO_NAMESPACE": namespace}
    running = start_choreo("inspect", "--watch", "--interval", "200ms", env=env)
    running.wait_for("the-clerk")
    fresh_node.stop()
    running.wait_for("trying again")
    seen = sum("the-clerk" in line for line in running.stdout)
    fresh_node.start_again()
    running.wait_for("the-clerk", times=seen + 1, timeout=60)
    assert running.process.poll() is None


# What cannot be done.


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("tilt",), 2, "did you mean till?"),
        (("queue",), 2, "did you mean queues?"),
        (("../../etc/passwd",), 2, "is not an agent name"),
        (("os:system",), 2, "is a module of Python itself"),
        (("--watch", "--interval", "soon"), 2, "500ms, 30s"),
        (("--watch", "--interval", "0"), 2, "at least 100ms"),
        (("--url", "amqp://127.0.0.1:1"), 69, "127.0.0.1:1"),
        (("--watch", "--url", "amqp://127.0.0.1:1"), 69, "127.0.0.1:1"),
    ],
)
def test_what_cannot_be_shown_is_explained(inspect: Run, arguments: tuple[str, ...], code: int, says: str):
    done = inspect(*arguments)
    assert done.returncode == code
    assert done.stdout == ""
    assert done.stderr.startswith("choreo: ")
    assert says in done.stderr


def test_wrong_password_is_said_and_not_shown(inspect: Run, broker_url: str):
    done = inspect("queues", CHOREO_URL=broker_url.replace("guest:guest", "guest:s3cret"))
    assert done.returncode == 78
    assert "refused the user 'guest'" in done.stderr
    assert "s3cret" not in done.stderr


def test_error_of_the_users_own_code_surfaces(inspect: Run, shop: Path):
    """With its traceback, for it is theirs to mend."""
    (shop / "agents" / "broken.py").write_text(
        "from choreo import Agent\nimport nowhere.at.all\nagent = Agent('broken')\n"
    )
    done = inspect("agents")
    assert done.returncode == 78
    assert "Traceback" in done.stderr
    assert "No module named 'nowhere'" in done.stderr
    assert "agents/broken.py" in done.stderr


def test_queues_need_no_code_of_the_users(inspect: Run, shop: Path, namespace: str):
    """A module that is broken, even one that cannot be parsed, hides no queue; nothing is imported."""
    (shop / "agents" / "broken.py").write_text("from choreo import Agent\nimport nowhere\nagent = Agent('broken')\n")
    (shop / "agents" / "torn.py").write_text("def (")
    rows = by("queue", data(inspect("queues", "-o", "json")))
    assert {f"{namespace}.till", f"{namespace}.broken", f"{namespace}.torn.dlq"} <= rows.keys()


def test_queues_without_an_agents_folder(inspect: Run, namespace: str, tmp_path: Path):
    """What every agent shares is shown, and why no more is."""
    done = inspect("queues", "-o", "json", CHOREO_AGENTS=str(tmp_path / "nowhere"))
    assert f"{namespace}.unclaimed.dlq" in by("queue", json.loads(done.stdout))
    assert "there is no agents folder" in done.stderr
    assert "CHOREO_MANAGEMENT_URL" in done.stderr


def test_a_file_that_is_left_out_is_said(inspect: Run, shop: Path):
    """It looks like an agent's, and has no agent where it would be found."""
    (shop / "agents" / "made.py").write_text("from choreo import Agent\ndef make():\n    return Agent('made')\n")
    done = inspect("agents")
    assert done.returncode == 0
    assert "left out, for want of a line agent = Agent(" in done.stderr
    assert "made.py" in done.stderr
