"""`choreo bench` against a real node: what it prints, and that nothing of it is left whatever ends it."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from collections.abc import Callable

import pytest

from choreo.agent import Agent
from choreo.composition.sessions import connector
from choreo.config.broker_url import BrokerUrl
from choreo.config.settings import Settings
from choreo.operate.bench import SIZE, Bench
from choreo.rabbit.session import connect
from choreo.testing.rabbitmq.node import Node
from choreo.testing.rabbitmq.ports import Ports
from choreo.topology import Topology
from tests.conftest import Running
from tests.waiting import until

Run = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., Running]


def queues(node: Node, vhost: str) -> set[str]:
    return set(node.ctl("list_queues", "--vhost", vhost, "--no-table-headers", "name").split())


def exchanges(node: Node, vhost: str) -> set[str]:
    """Those that RabbitMQ does not have by itself."""
    found = node.ctl("list_exchanges", "--vhost", vhost, "--no-table-headers", "name").split()
    return {name for name in found if not name.startswith("amq.")}


@pytest.fixture
def neighbour(node: Node, vhost: str) -> tuple[set[str], set[str]]:
    """What an agent of the user's has on the broker already."""

    async def declare() -> None:
        session = await connect([BrokerUrl.parse(node.url + vhost)], name="neighbour")
        await session.declare(Topology.of([Agent("neighbour")]))
        await session.close()

    asyncio.run(declare())
    return queues(node, vhost), exchanges(node, vhost)


def test_each_workload_is_measured_and_nothing_is_left(
    node: Node, vhost: str, neighbour: tuple[set[str], set[str]], choreo: Run
) -> None:
    result = choreo("bench", "--events", "200", "-o", "jsonl", env={"CHOREO_URL": node.url + vhost})
    assert result.returncode == 0, result.stderr
    rows = {row["workload"]: row for row in map(json.loads, result.stdout.splitlines())}
    assert list(rows) == ["publish", "consume", "latency", "hop"]
    assert all(row["events"] in {199, 200} for row in rows.values())
    assert all(rows[name]["per_second"] > 0 and rows[name]["cpu_us"] > 0 for name in ("publish", "consume", "hop"))
    assert 0 < rows["latency"]["p50_ms"] <= rows["latency"]["p99_ms"]
    assert "bench-" in result.stderr
    assert (queues(node, vhost), exchanges(node, vhost)) == neighbour


def test_seconds_bound_every_workload(node: Node, vhost: str, choreo: Run) -> None:
    """More events than can be published in the time: what was done by then counts."""
    arguments = ("bench", "--events", "10000000", "--seconds", "3", "-o", "json")
    result = choreo(*arguments, env={"CHOREO_URL": node.url + vhost})
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout)
    assert all(0 < row["events"] < 1_000_000 for row in rows)
    assert queues(node, vhost) == set()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_nothing_is_left(
    number: signal.Signals, node: Node, vhost: str, start_choreo: Start
) -> None:
    running = start_choreo("bench", "--events", "10000000", "--seconds", "60", env={"CHOREO_URL": node.url + vhost})
    until(lambda: any(name.endswith(".taker") for name in queues(node, vhost)), within=60)
    running.send(number)
    assert running.wait(60) == 130, running.output
    assert running.stdout == []
    assert queues(node, vhost) == set()
    assert exchanges(node, vhost) == set()


def test_a_user_who_may_not_is_told_what_it_needs(node: Node, vhost: str, choreo: Run) -> None:
    node.ctl("add_user", vhost, "secret")
    node.ctl("set_permissions", "--vhost", vhost, vhost, r"^choreo\.", r"^choreo\.", r"^choreo\.")
    result = choreo("bench", env={"CHOREO_URL": f"amqp://{vhost}:secret@127.0.0.1:{node.port}/{vhost}"})
    node.ctl("delete_user", vhost)
    assert result.returncode == 78
    assert "^bench-" in result.stderr
    assert "left behind" not in result.stderr


async def test_what_is_gone_already_is_removed_without_an_error(broker_url: str, namespace: str) -> None:
    topology = Topology.of([Agent("short-lived")], namespace)
    session = await connect([BrokerUrl.parse(broker_url)], name="remover")
    await session.declare(topology)
    await session.remove(topology)
    assert await session.stats(topology.queues[-1].name) is None
    await session.remove(topology)
    assert not session.lost.done()
    await session.close()


def test_without_a_broker_it_says_so(choreo: Run) -> None:
    url = f"amqp://127.0.0.1:{Ports.choose().amqp}"
    result = choreo("bench", env={"CHOREO_URL": url})
    assert result.returncode == 69
    assert "left behind" not in result.stderr


def test_too_few_events_are_refused(choreo: Run) -> None:
    result = choreo("bench", "--events", "1")
    assert result.returncode == 2
    assert "--events" in result.stderr


def test_an_event_has_the_size_that_is_told() -> None:
    from choreo.operate.bench import Asked, Taken, order

    assert {len(order(kind, 7).model_dump_json()) for kind in (Taken, Asked)} == {SIZE}


def test_each_run_has_a_namespace_of_its_own() -> None:
    made = {Bench(Settings(), connector(Settings(), "bench"), events=100, seconds=1).namespace for _ in range(10)}
    assert len(made) == 10
    assert all(name.startswith("bench-") for name in made)
