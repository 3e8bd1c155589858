"""Private RabbitMQ nodes: they start, keep their data, stand beside each other and leave nothing behind."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import aio_pika
import pytest

from choreo.errors import BrokerUnreachable, ConfigurationError
from choreo.testing.rabbitmq import probe
from choreo.testing.rabbitmq.cluster import Cluster
from choreo.testing.rabbitmq.node import Node
from choreo.testing.rabbitmq.ports import Ports
from choreo.testing.rabbitmq.release import find_server
from tests.waiting import until

pytestmark = pytest.mark.real_node("nodes of RabbitMQ")
linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
NOBODY = "65534"


STARTER = """
import encodings.idna, os, pathlib, sys
from choreo.testing.rabbitmq.node import Node
folder, root, user = sys.argv[1:]
if user:
    os.setgroups([]), os.setgid(int(user)), os.setuid(int(user))
node = Node.start(pathlib.Path(folder), root=pathlib.Path(root) if root else None)
print(node.pid, flush=True)
sys.stdin.read()
node.stop()
"""


@contextlib.contextmanager
def starter(*, root: str = "", user: str = "") -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Another Python process that starts a node, with the VM's pid. It stops the node when its input ends.

    It becomes `user` only after its imports: that user may not be allowed to read this interpreter.
    """
    with tempfile.TemporaryDirectory() as folder:
        if user:
            os.chown(folder, int(user), int(user))
        process = subprocess.Popen(
            [sys.executable, "-c", STARTER, folder, root, user],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        with process:
            try:
                assert process.stdout is not None
                yield process, int(process.stdout.readline())
            finally:
                process.kill()


def processes(epmd: int) -> set[int]:
    """The ids of all processes of the node with this epmd port, known by their environment."""
    mark, found = f"ERL_EPMD_PORT={epmd}\0".encode(), set()
    for file in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it has just ended, or is not ours
            if mark in file.read_bytes():
                found.add(int(file.parent.name))
    return found


def all_gone(pids: set[int], seconds: float = 10.0) -> bool:
    """Whether processes that are not our children end in time. What a dead VM's helpers read ends with the VM."""
    deadline = time.monotonic() + seconds
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            handle = os.pidfd_open(pid)
            try:
                poll = select.poll()
                poll.register(handle, select.POLLIN)
                if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                    return False
            finally:
                os.close(handle)
    return True


async def put(node: Node, queue: str, body: bytes) -> None:
    async with await aio_pika.connect(node.url) as connection, connection.channel() as channel:
        await channel.declare_queue(queue, durable=True, arguments={"x-queue-type": "quorum"})
        message = aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await channel.default_exchange.publish(message, queue)


async def get(node: Node, queue: str) -> bytes:
    async with await aio_pika.connect(node.url) as connection, connection.channel() as channel:
        message = await (await channel.get_queue(queue)).get(timeout=10)
        assert message is not None
        return message.body


async def test_started_node_answers(node: Node, namespace: str) -> None:
    await put(node, namespace, b"here")
    assert await get(node, namespace) == b"here"
    assert node.running
    assert node.version.count(".") == 2
    assert node.version in node.ctl("version")


async def test_kill_9_keeps_what_was_confirmed(fresh_node: Node) -> None:
    """A crash of the VM costs no durable data, and the node comes back on the same port under another pid."""
    await put(fresh_node, "orders", b"kept")
    fresh_node.flush()
    pid, port = fresh_node.pid, fresh_node.port
    os.kill(pid, signal.SIGKILL)
    assert all_gone({pid})
    assert not fresh_node.running
    fresh_node.start_again()
    assert (fresh_node.port, await get(fresh_node, "orders")) == (port, b"kept")
    assert fresh_node.pid != pid


async def test_restart_keeps_what_was_confirmed(fresh_node: Node) -> None:
    await put(fresh_node, "orders", b"kept")
    pid, port = fresh_node.pid, fresh_node.port
    fresh_node.restart()
    assert (fresh_node.port, await get(fresh_node, "orders")) == (port, b"kept")
    assert fresh_node.pid != pid


@linux
@pytest.mark.parametrize("end", [Node.stop, Node.kill])
def test_stopped_or_killed_node_leaves_no_process(fresh_node: Node, end: Callable[[Node], None]) -> None:
    """The VM, its epmd and the small programs that Erlang starts are gone; ending again does nothing."""
    pids = processes(fresh_node.ports.epmd)
    assert fresh_node.pid in pids
    assert len(pids) > 2
    end(fresh_node)
    assert all_gone(pids)
    assert processes(fresh_node.ports.epmd) == set()
    end(fresh_node)
    assert not fresh_node.running
    with pytest.raises(BrokerUnreachable, match="does not run"):
        fresh_node.ctl("status")
    with pytest.raises(BrokerUnreachable, match="does not run"):
        _ = fresh_node.pid


@linux
def test_node_ends_when_its_starter_is_killed(new_node: object) -> None:
    """Kill -9 of the process that started a node ends the VM, its epmd and what Erlang started."""
    with starter(root=os.environ.get("CHOREO_TEST_RABBITMQ_ROOT", "")) as (process, pid):
        environment = Path(f"/proc/{pid}/environ").read_text().split("\0")
        epmd = next(int(line.partition("=")[2]) for line in environment if line.startswith("ERL_EPMD_PORT="))
        pids = processes(epmd)
        assert pid in pids
        assert len(pids) > 2
        process.kill()
        assert all_gone(pids)
    assert processes(epmd) == set()


@linux
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_ordinary_user_can_run_a_node(new_node: object) -> None:
    """Neither root nor the user rabbitmq is needed for a release of the machine itself."""
    if find_server() is None:
        pytest.skip("the machine itself has no RabbitMQ")
    with starter(user=NOBODY) as (process, pid):
        assert Path(f"/proc/{pid}").stat().st_uid == int(NOBODY)
        process.communicate("")
        assert process.returncode == 0
        assert all_gone({pid})


async def test_two_nodes_stand_side_by_side(node: Node, fresh_node: Node) -> None:
    """They share no port and no name; what is done to one leaves the other alone."""
    assert node.name != fresh_node.name
    ports = {getattr(one.ports, name) for one in (node, fresh_node) for name in Ports.__slots__}
    assert len(ports) == 10
    await put(fresh_node, "only-here", b"mine")
    assert "only-here" in fresh_node.ctl("list_queues", "name")
    assert "only-here" not in node.ctl("list_queues", "name")
    fresh_node.kill()
    assert node.running
    assert "only-here" not in node.ctl("list_queues", "name")


def knows(node: Node) -> int:
    """How many other nodes this one is connected with."""
    return int(node.ctl("eval", "length(nodes())."))


async def test_nodes_form_a_cluster(start_cluster: Callable[..., Cluster]) -> None:
    """What one confirmed, the others have, also when it is killed, cut off or paused; it comes back each time."""
    cluster = start_cluster()
    first, second, third = cluster.nodes
    await put(second, "orders", b"kept")
    assert cluster.leader("orders") is second

    second.cut([first, third])
    assert (knows(second), knows(first)) == (0, 1)
    second.heal([first, third])
    until(lambda: (knows(second), knows(first)) == (2, 2))

    second.kill()
    assert first.running
    until(lambda: cluster.leader("orders") in {first, third})
    assert await get(third, "orders") == b"kept"
    second.start_again()
    until(lambda: knows(second) == 2)

    second.pause()
    assert second.running
    assert probe.accepts(second.port)  # by the kernel
    assert probe.greeting(second.port) == {}
    second.resume()
    until(lambda: probe.greeting(second.port))
    second.pause()
    began = time.monotonic()
    second.stop()
    assert time.monotonic() - began < 90
    assert not second.running


@linux
def test_paused_node_ends_with_its_group(fresh_node: Node) -> None:
    pids = processes(fresh_node.ports.epmd)
    fresh_node.pause()
    fresh_node.kill()
    assert all_gone(pids)


def test_folder_serves_one_node_at_a_time(fresh_node: Node, start_node: Callable[..., Node]) -> None:
    settings = (fresh_node.directory / "rabbitmq.conf").read_text()
    with pytest.raises(ConfigurationError, match="another node runs in"):
        start_node(fresh_node.directory)
    with pytest.raises(ConfigurationError, match="runs already"):
        fresh_node.start_again()
    assert (fresh_node.directory / "rabbitmq.conf").read_text() == settings
    fresh_node.kill()
    assert start_node(fresh_node.directory).running


def test_plugin_and_settings_are_the_nodes_own(start_node: Callable[..., Node]) -> None:
    """The management API answers as soon as the node is started; a line of rabbitmq.conf is in force."""
    with start_node(plugins=["rabbitmq_management"], config=["heartbeat = 7"]) as node:
        request = urllib.request.Request(f"http://127.0.0.1:{node.management_port}/api/overview")
        request.add_header("Authorization", "Basic Z3Vlc3Q6Z3Vlc3Q=")  # guest:guest
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert node.version.encode() in answer.read()
        assert "7" in node.ctl("eval", "application:get_env(rabbit, heartbeat).")
    assert not node.running


def test_port_that_was_asked_for_is_used(start_node: Callable[..., Node]) -> None:
    port = Ports.choose().amqp
    assert start_node(port=port).url == f"amqp://guest:guest@127.0.0.1:{port}/"


def test_port_in_use_is_named(start_node: Callable[..., Node]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"port {port} .*in use"):
            start_node(port=port)


def test_lost_race_for_a_port_is_run_again(
    node: Node, start_node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When another node got the port first, its answer is not taken for ours, and other ports are chosen."""
    lost, won = replace(Ports.choose(), amqp=node.port), Ports.choose()
    chosen = [lost, won]
    monkeypatch.setattr(Ports, "choose", lambda amqp: chosen.pop(0))
    assert start_node().ports == won
    assert node.running


def test_wrong_setting_is_in_the_message(start_node: Callable[..., Node], tmp_path: Path) -> None:
    with pytest.raises(BrokerUnreachable, match=r"nonsense\.key") as caught:
        start_node(tmp_path / "wrong", config=["nonsense.key = 1"])
    assert str(tmp_path / "wrong" / "log") in caught.value.way_out


def test_unknown_plugin_is_refused(start_node: Callable[..., Node]) -> None:
    with pytest.raises(ConfigurationError, match="no plugin rabbitmq_nonsense") as caught:
        start_node(plugins=["rabbitmq_nonsense"])
    assert "rabbitmq_management" in caught.value.way_out


def test_start_is_bounded(start_node: Callable[..., Node], tmp_path: Path) -> None:
    """A node that does not come up in time is ended, and its folder is free again."""
    with pytest.raises(BrokerUnreachable, match=r"did not answer on 127\.0\.0\.1:[0-9]+ within 0\.2 s"):
        start_node(tmp_path / "slow", timeout=0.2)
    assert start_node(tmp_path / "slow").running


def test_refusal_of_rabbitmqctl_is_an_error(node: Node) -> None:
    with pytest.raises(ConfigurationError, match=r"(?s)rabbitmqctl delete_vhost.*no_such"):
        node.ctl("delete_vhost", "no_such")


def test_missing_server_is_a_named_error(tmp_path: Path) -> None:
    """The message says what was looked for, the way out how to get it; nothing is written."""
    assert find_server(tmp_path) is None
    with pytest.raises(ConfigurationError, match="RabbitMQ was not found") as caught:
        Node.start(tmp_path / "node", root=tmp_path)
    assert "apt-get install rabbitmq-server" in caught.value.way_out
    assert not (tmp_path / "node").exists()


def test_server_is_found_where_a_release_was_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RABBITMQ_HOME comes first, then PATH; a wrapper without the release's other scripts is passed over."""
    wrapper, unpacked, linked = tmp_path / "wrapper", tmp_path / "rabbitmq_server-9.9.9", tmp_path / "linked"
    for folder, names in ((wrapper, ["rabbitmq-server"]), (unpacked / "sbin", ["rabbitmq-server", "rabbitmq-env"])):
        folder.mkdir(parents=True)
        for name in names:
            (folder / name).touch()
    linked.mkdir()
    (linked / "rabbitmq-server").symlink_to(unpacked / "sbin" / "rabbitmq-server")
    monkeypatch.delenv("RABBITMQ_HOME", raising=False)
    monkeypatch.setenv("PATH", f"{wrapper}:{linked}")
    assert find_server() == unpacked / "sbin" / "rabbitmq-server"
    monkeypatch.setenv("PATH", str(wrapper))
    monkeypatch.setenv("RABBITMQ_HOME", str(unpacked))
    assert find_server() == unpacked / "sbin" / "rabbitmq-server"
