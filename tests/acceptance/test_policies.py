"""Policies that destroy what choreo's queues hold, on a real node with the management API: they are named."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from choreo import dead_letter
from choreo.agent import Agent
from choreo.config.broker_url import BrokerUrl
from choreo.message import Message
from choreo.operate.dlq import DeadLetterQueue
from choreo.rabbit.session import RabbitSession, connect
from choreo.testing.rabbitmq.node import Node
from choreo.topology import Names, Topology
from choreo.transport import Confirmed
from tests.conftest import Running
from tests.waiting import until

pytestmark = pytest.mark.real_node("policies")

LETTERS = [f"id-{number}" for number in range(40)]
LOOKS = 5  # more than the limit


@pytest.fixture
def till(project: Path) -> Path:
    """A project with one agent."""
    (project / "agents" / "till.py").write_text(
        "from choreo import Agent, Event\n\n"
        "class Paid(Event, topic='policies.paid', external=True):\n    order: str\n\n"
        "agent = Agent('till')\n\n@agent.on\nasync def note(paid: Paid) -> None: ...\n"
    )
    return project


@pytest.fixture
def env(managed: Node, namespace: str) -> dict[str, str]:
    return {
        "CHOREO_URL": managed.url,
        "CHOREO_NAMESPACE": namespace,
        "CHOREO_MANAGEMENT_URL": managed.management_url,
    }


@pytest.fixture
def set_policy(managed: Node, namespace: str) -> Iterator[Callable[..., None]]:
    """Sets a policy on queues of the namespace whose names end with something; it goes with the test."""
    login = base64.b64encode(b"guest:guest").decode()
    made: list[str] = []

    def ask(method: str, place: str, body: object = None) -> None:  # a rabbitmqctl takes a second and more
        url = f"http://127.0.0.1:{managed.management_port}/api/{place}"
        headers = {"Authorization": f"Basic {login}", "Content-Type": "application/json"}
        with urlopen(Request(url, json.dumps(body).encode(), headers, method=method)) as answer:
            answer.read()

    def set_one(name: str, ending: str, definition: dict[str, object], kind: str = "policies") -> None:
        made.append(f"{kind}/%2F/{namespace}-{name}")
        pattern = f"^{namespace}\\..*{ending}$"
        ask("PUT", made[-1], {"pattern": pattern, "definition": definition, "apply-to": "queues"})

    yield set_one
    for place in made:
        ask("DELETE", place)


@asynccontextmanager
async def buried(managed: Node, namespace: str) -> AsyncIterator[RabbitSession]:
    """Give a session, with dead letters of the till there."""
    session, names = await connect(BrokerUrl.parse_all(managed.url), name="test"), Names(namespace)
    await session.declare(Topology.of([Agent("till")], namespace))
    for each in LETTERS:
        letter = dead_letter.write(
            Message(b"{}", message_id=each, type="policies.paid"),
            topic="policies.paid",
            agent="till",
            reason="failed",
            error=RuntimeError("no ink"),
            reaction="note",
            attempts=1,
            first_failure=None,
            code_version=None,
        )
        stored = await session.publish(letter, exchange=names.dead, routing_key="till", timeout=60)
        assert stored == Confirmed()
    yield session
    await session.close()


def ids(done: subprocess.CompletedProcess[str]) -> Sequence[str]:
    assert done.returncode == 0, done.stderr
    return [row["id"] for row in json.loads(done.stdout)]


async def test_looks_do_not_count_or_are_said_to(
    till: Path, choreo: Callable[..., subprocess.CompletedProcess[str]], managed: Node, namespace: str, env, set_policy
):
    """Under a delivery limit, letters may be looked at as often as one likes from RabbitMQ 4.3 on. Before, each look
    counts whatever is done: it is said before the look, with the policy's name, or that nobody could be asked."""
    policy = f"{namespace}-looks"
    set_policy("looks", "", {"delivery-limit": 2})
    async with buried(managed, namespace) as session:

        def known() -> bool:
            return policy in choreo("inspect", "queues", env=env).stderr

        await asyncio.to_thread(until, known)  # the policy is there, and the management API shows it
        letters = DeadLetterQueue(session, Names(namespace), "till")
        said = await asyncio.to_thread(choreo, "dlq", "list", "till", "-o", "json", env=env)
        assert ids(said) == LETTERS
        assert f"'{policy}'" in said.stderr
        assert "delivery-limit=2" in said.stderr
        unknown = await asyncio.to_thread(
            choreo, "dlq", "list", "till", "-o", "json", env=env | {"CHOREO_MANAGEMENT_URL": ""}
        )
        assert ids(unknown) == LETTERS
        assert ("each look counts" in unknown.stderr) == session.server.counts_returns
        if session.server.counts_returns:
            return
        for look in range(LOOKS):
            found = await letters.look(limit=1 + 3 * look)
            assert [each.facts.id for each in found.letters] == LETTERS[: 1 + 3 * look]
        stats = await session.stats(letters.queue)
        assert stats is not None
        assert stats.ready == len(LETTERS)
        # What was taken out in between takes nothing with it.
        assert (await letters.drop(ids=LETTERS[3:5])).done == 2
        assert [each.facts.id for each in (await letters.look()).letters] == LETTERS[:3] + LETTERS[5:]


@pytest.mark.parametrize("kind", ["policies", "operator-policies"])
async def test_inspect_names_policies(
    till: Path,
    choreo: Callable[..., subprocess.CompletedProcess[str]],
    managed: Node,
    namespace: str,
    env,
    set_policy,
    kind: str,
):
    """A user's and an operator's, with what they do and the way out; none that does no harm."""
    name = f"{namespace}-short"
    set_policy("short", "dlq", {"message-ttl": 86400000, "expires": 172800000}, kind)
    set_policy("harmless", "till", {"max-length": 100000}, kind)
    async with buried(managed, namespace):

        def told() -> str:
            return choreo("inspect", "queues", env=env).stderr

        await asyncio.to_thread(until, lambda: name in told())
        line = next(each for each in (await asyncio.to_thread(told)).splitlines() if name in each)
    assert f"{namespace}.till.dlq" in line
    assert "message-ttl=86400000 drops messages" in line
    assert "expires=172800000 deletes the queue" in line
    assert "Leave such queues out of its pattern" in line
    assert "harmless" not in line


@pytest.mark.parametrize("command", ["run", "dev"])
async def test_worker_names_what_destroys_at_its_start(
    till: Path, start_choreo: Callable[..., Running], managed: Node, namespace: str, env, set_policy, command: str
):
    """One loud line each for policies that destroy, and for dead-letter queues that an earlier release has declared."""
    set_policy("gone", "", {"expires": 172800000})
    older = next(each for each in Topology.of([Agent("till")], namespace).queues if each.name.endswith("till.dlq"))
    assert older.before is not None
    session = await connect(BrokerUrl.parse_all(managed.url), name="test")
    await session.declare(Topology((), (replace(older, arguments=older.before, before=None),), ()))
    await session.close()
    worker = start_choreo(command, "till", env=env | {"CHOREO_LOG_FORMAT": "json"})
    line = json.loads(await asyncio.to_thread(worker.wait_for, '"dead-letter queues of an earlier release"'))
    assert line["level"] == "error"
    assert line["queues"] == [older.name]
    assert "rabbitmqctl delete_queue" in line["way_out"]
    line = json.loads(await asyncio.to_thread(worker.wait_for, '"policies destroy messages"'))
    assert line["level"] == "error"
    assert f"'{namespace}-gone'" in line["found"][0]
    worker.send(signal.SIGTERM)
    assert await asyncio.to_thread(worker.wait) == 0


def test_worker_needs_no_management_api(till: Path, start_choreo: Callable[..., Running], managed: Node, env):
    """One that refuses is said, and that is all."""
    worker = start_choreo("run", "till", env=env | {"CHOREO_MANAGEMENT_URL": "http://guest:s3cret@127.0.0.1:1"})
    worker.wait_for('"state": "consuming"')
    assert "refused" in worker.wait_for('"policies not known"')
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    assert "s3cret" not in worker.output
