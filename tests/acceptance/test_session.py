"""What a worker says of its session with the broker, and the session that it is told to use."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import aio_pika
import pytest
from aio_pika.exceptions import ChannelPreconditionFailed

from choreo import ChoreoError, Event, connect
from choreo.runtime import consumer_watchdog
from choreo.testing.rabbitmq.node import Node
from tests.waiting import eventually, until

if TYPE_CHECKING:
    from tests.conftest import Running

Start = Callable[..., "Running"]

AGENT = """
import asyncio
from pathlib import Path

from choreo import Agent, Event

class Placed(Event, topic="desk-session.placed", external=True):
    order: str

class Done(Event, topic="desk-session.done", terminal=True):
    order: str

agent = Agent("desk")

@agent.on
async def work(placed: Placed) -> Done:
    print("begun", placed.order, flush=True)
    while Path("hold").exists():
        await asyncio.sleep(0.01)
    return Done(order=placed.order)
"""


class Placed(Event, topic="desk-session.placed", external=True):
    order: str


@pytest.fixture
def start(project: Path, start_choreo: Start, namespace: str) -> Callable[..., Running]:
    """Starts the agent's worker on the broker at a URL, with further variables; returns it when it consumes."""
    (project / "agents" / "desk.py").write_text(AGENT)

    def start_one(url: str, **environment: str) -> Running:
        running = start_choreo("run", "desk", env={"CHOREO_URL": url, "CHOREO_NAMESPACE": namespace} | environment)
        running.wait_for('"state": "consuming"')
        return running

    return start_one


async def test_worker_says_that_its_publishes_wait(
    start: Callable[..., Running], fresh_node: Node, project: Path, namespace: str
) -> None:
    """While the broker is short of memory the worker goes on consuming, and says what does not go on, until it does."""
    worker = await asyncio.to_thread(start, fresh_node.url)
    (project / "hold").touch()
    async with connect(fresh_node.url, namespace=namespace) as publisher:
        await publisher.publish(Placed(order="1"))
    await asyncio.to_thread(worker.wait_for, "begun 1")
    await asyncio.to_thread(fresh_node.ctl, "set_vm_memory_high_watermark", "0.0001")
    (project / "hold").unlink()
    await asyncio.to_thread(worker.wait_for, "publishes wait: the broker blocks publishers, low on memory")
    await asyncio.sleep(2 * (consumer_watchdog.PERIOD + consumer_watchdog.PATIENCE))
    await asyncio.to_thread(fresh_node.ctl, "set_vm_memory_high_watermark", "0.6")
    await asyncio.to_thread(worker.wait_for, '"state": "consuming"', times=3)
    states = [json.loads(line) for line in worker.stderr if '"event": "worker"' in line]
    assert [each["state"] for each in states] == ["consuming"] * 3, "it was ready all the time"
    assert states[0]["status"] == states[2]["status"] != states[1]["status"]


class Access:
    """A user of the shared node in a virtual host of its own, and ways to take away what it may do and to give it back.

    Each of them ends the connections that are there, as an operator would.
    """

    def __init__(self, node: Node, name: str) -> None:
        self.node = node
        self.name = name
        self.url = f"amqp://{name}:right@127.0.0.1:{node.port}/{name}?heartbeat=2"
        self.node.ctl("add_user", name, "right")
        self.add_vhost()

    def add_vhost(self) -> None:
        self.node.ctl("add_vhost", self.name)
        self.allow()

    def delete_vhost(self) -> None:
        self.node.ctl("delete_vhost", self.name)

    def allow(self) -> None:
        self.node.ctl("set_permissions", "--vhost", self.name, self.name, ".*", ".*", ".*")

    def forbid(self) -> None:
        self.node.ctl("set_permissions", "--vhost", self.name, self.name, "^$", "^$", "^$")
        self._close()

    def lock_out(self) -> None:
        self.node.ctl("change_password", self.name, "wrong")
        self._close()

    def let_in(self) -> None:
        self.node.ctl("change_password", self.name, "right")

    def replace_queue(self) -> None:
        """Put a queue with other arguments in the place of the agent's, which declares its own again soon."""

        async def replaced() -> bool:
            async with await aio_pika.connect(self.url) as connection, connection.channel() as channel:
                await channel.queue_delete(f"{self.name}.desk")
                with contextlib.suppress(ChannelPreconditionFailed):
                    await channel.declare_queue(f"{self.name}.desk", durable=True)
                    return True
                return False

        asyncio.run(eventually(replaced))

    def delete_queue(self) -> None:
        async def deleted() -> None:
            async with await aio_pika.connect(self.url) as connection, connection.channel() as channel:
                await channel.queue_delete(f"{self.name}.desk")

        asyncio.run(deleted())

    def _close(self) -> None:
        self.node.ctl("close_all_connections", "--vhost", self.name, "access has changed")


@pytest.fixture
def access(node: Node, namespace: str) -> Iterator[Access]:
    access = Access(node, namespace)
    yield access
    with contextlib.suppress(ChoreoError):
        access.delete_vhost()
    node.ctl("delete_user", namespace)


@pytest.mark.parametrize(
    ("take_away", "give_back", "words"),
    [
        (Access.lock_out, Access.let_in, ["refused the user", "password"]),
        (Access.delete_vhost, Access.add_vhost, ["refused the virtual host"]),
        (Access.forbid, Access.allow, ["ACCESS_REFUSED"]),
        (Access.replace_queue, Access.delete_queue, ["exists on the broker with"]),
    ],
    ids=["password", "virtual host", "permission", "arguments"],
)
def test_worker_that_is_refused_later_says_why_and_recovers(
    start: Callable[..., Running],
    access: Access,
    take_away: Callable[[Access], None],
    give_back: Callable[[Access], None],
    words: list[str],
) -> None:
    """At the start a refusal is the end; later it may be mended: not ready, the reason in the status and one line for
    each attempt, and consuming again soon after it is."""
    worker = start(access.url, CHOREO_HEALTH_PORT="0")
    port = int(json.loads(worker.wait_for('"event": "health endpoint"'))["port"])
    assert ready(port)[0] == 200
    take_away(access)
    for word in words:
        worker.wait_for(word)
    worker.wait_for('"event": "not connected"', times=2)
    until(lambda: ready(port)[0] == 503 and words[0] in ready(port)[1])
    give_back(access)
    worker.wait_for('"state": "consuming"', times=2)
    assert ready(port)[0] == 200
    attempts = [json.loads(line)["attempt"] for line in worker.stderr if '"event": "not connected"' in line]
    assert attempts == list(range(1, len(attempts) + 1)), "one line per attempt"
    said = [line for line in worker.stderr if words[0] in line and '"attempt"' not in line]
    assert len(said) <= 1, "the session that was lost may have had the same reason"
    assert all("Traceback" not in line for line in worker.stderr)


@pytest.mark.parametrize("take_away", [Access.lock_out, Access.delete_vhost, Access.forbid])
def test_worker_that_is_refused_at_the_start_ends_at_once(
    choreo: Callable[..., subprocess.CompletedProcess[str]],
    access: Access,
    project: Path,
    namespace: str,
    take_away: Callable[[Access], None],
) -> None:
    """At the first attempt, with the code of a configuration error, one message and a way out."""
    (project / "agents" / "desk.py").write_text(AGENT)
    with contextlib.suppress(ChoreoError):  # there is no connection to be closed
        take_away(access)
    done = choreo("run", "desk", env={"CHOREO_URL": access.url, "CHOREO_NAMESPACE": namespace})
    assert done.returncode == 78, done.stderr
    assert "not connected" not in done.stderr  # as is said before each further attempt
    assert done.stderr.count("choreo: ") == 1
    assert "Traceback" not in done.stderr


def ready(port: int) -> tuple[int, str]:
    """The answer of /ready."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    with contextlib.closing(connection):
        connection.request("GET", "/ready")
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def test_a_program_without_a_broker_gets_one_clear_error() -> None:
    """One traceback, and no other account of it: what the client library tried is not chained to it."""
    program = """
import asyncio, choreo

async def main():
    async with choreo.connect("amqp://127.0.0.1:1"):
        pass

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    first, *_, last = done.stderr.splitlines()
    assert first.startswith("Traceback")
    assert last.startswith(
        "choreo.errors.BrokerUnreachable: no broker can be reached at 127.0.0.1:1: Connection refused;"
    )
    assert done.stderr.count("Traceback") == 1
    assert "aiormq" not in done.stderr


def test_password_that_was_changed_is_found_in_its_file(
    project: Path,
    start: Callable[..., Running],
    choreo: Callable[..., subprocess.CompletedProcess[str]],
    node: Node,
    vhost: str,
    namespace: str,
) -> None:
    """It is read at each connect, and shown nowhere: neither the old one nor the new one."""
    user, file = f"user-{vhost}", project / "password"
    node.ctl("add_user", user, "first-1")
    node.ctl("set_permissions", "--vhost", vhost, user, ".*", ".*", ".*")
    file.write_text("first-1\n")
    url = f"{node.url}{vhost}".replace("guest:guest@", f"{user}@")
    worker = start(url, CHOREO_PASSWORD_FILE=str(file))
    node.ctl("change_password", user, "second-2")
    node.ctl("close_all_connections", "--vhost", vhost, "rotated")
    worker.wait_for("refused the user")
    file.write_text("second-2\n")
    worker.wait_for('"state": "consuming"', times=2)
    environment = {"CHOREO_URL": url, "CHOREO_NAMESPACE": namespace}
    wrong = choreo("inspect", "queues", env=environment | {"CHOREO_PASSWORD": "third-3"})
    assert wrong.returncode == 78
    assert "CHOREO_PASSWORD or CHOREO_PASSWORD_FILE" in wrong.stderr
    for secret in ("first-1", "second-2", "third-3"):
        assert secret not in worker.output + wrong.stderr
    node.ctl("delete_user", user)


def test_limit_of_connections_passes(
    start: Callable[..., Running],
    choreo: Callable[..., subprocess.CompletedProcess[str]],
    node: Node,
    vhost: str,
    namespace: str,
) -> None:
    """A command ends with 69 and the broker's reason; a worker goes on trying, and comes back."""
    environment = {"CHOREO_URL": f"{node.url}{vhost}", "CHOREO_NAMESPACE": namespace}
    worker = start(environment["CHOREO_URL"])
    node.ctl("set_vhost_limits", "--vhost", vhost, '{"max-connections": 0}')
    refused = choreo("inspect", "queues", env=environment)
    assert refused.returncode == 69
    assert "connection limit (0) is reached" in refused.stderr
    node.ctl("close_all_connections", "--vhost", vhost, "to see what comes")
    worker.wait_for("connection limit (0) is reached")
    node.ctl("clear_vhost_limits", "--vhost", vhost)
    worker.wait_for('"state": "consuming"', times=2)
    missing = choreo("inspect", "queues", env=environment | {"CHOREO_URL": f"{node.url}{vhost}-not"})
    assert missing.returncode == 78
    assert "not found" in missing.stderr


def test_publisher_needs_no_more_than_to_write_to_events_and_delays(
    start: Callable[..., Running],
    choreo: Callable[..., subprocess.CompletedProcess[str]],
    node: Node,
    vhost: str,
    namespace: str,
) -> None:
    """With the permissions that docs/topology.md names it publishes, now and later; it reads and declares nothing."""
    start(f"{node.url}{vhost}")
    user, page = f"user-{vhost}", Path(__file__).parents[2] / "docs" / "topology.md"
    lines = page.read_text().splitlines()
    documented = next(line for line in lines if line.startswith("rabbitmqctl set_permissions") and "events" in line)
    permissions = [each.replace("choreo", namespace) for each in shlex.split(documented)[5:]]
    node.ctl("add_user", user, "pw")
    node.ctl("set_permissions", "--vhost", vhost, user, *permissions)
    url = f"{node.url}{vhost}".replace("guest:guest@", f"{user}:pw@")
    environment = {"CHOREO_URL": url, "CHOREO_NAMESPACE": namespace}
    for delay in ((), ("--delay", "1s")):
        sent = choreo("publish", "desk-session.placed", "--set", "order=1", *delay, env=environment)
        assert sent.returncode == 0, sent.stderr
    assert choreo("run", "desk", env=environment).returncode == 78, "it may declare nothing"
    node.ctl("delete_user", user)


def test_broker_that_would_drop_dead_letters_is_refused(
    project: Path,
    choreo: Callable[..., subprocess.CompletedProcess[str]],
    start_node: Callable[..., Node],
    tmp_path: Path,
    namespace: str,
) -> None:
    """Without the feature flag stream_queue, at-least-once dead-lettering is at-most-once, and nothing says so."""
    folder = tmp_path / "without-streams"
    folder.mkdir()
    flags = "[quorum_queue,implicit_default_bindings,virtual_host_metadata,maintenance_mode_status,user_limits]"
    (folder / "advanced.config").write_text(f"[{{rabbit,[{{forced_feature_flags_on_init,{flags}}}]}}].\n")
    node = start_node(folder)
    if not node.ctl("version").startswith(("3.10.", "3.11.")):
        pytest.skip("later releases always have it")
    (project / "agents" / "desk.py").write_text(AGENT)
    environment = {"CHOREO_URL": node.url, "CHOREO_NAMESPACE": namespace}
    refused = choreo("run", "desk", env=environment)
    assert refused.returncode == 78, refused.stderr
    assert "rabbitmqctl enable_feature_flag stream_queue" in refused.stderr
    assert "Traceback" not in refused.stderr
