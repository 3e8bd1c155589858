"""`choreo run`, the real program: ready, drained, supervised, and clear about what it cannot do."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import re
import resource
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from choreo.agent import Agent
from choreo.config.broker_url import BrokerUrl
from choreo.message import Message
from choreo.rabbit import session as rabbit
from choreo.testing.rabbitmq.node import Node
from choreo.topology import Names, Topology
from choreo.transport import Confirmed, Session
from tests.waiting import until

if TYPE_CHECKING:
    from tests.conftest import Running

Choreo = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., "Running"]
T = TypeVar("T")

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

AGENT = '''
"""An agent of the tests: it says what it does, and holds on to an order until the file `go` is there."""
import asyncio
import time
from pathlib import Path

from choreo import Agent, Context, Event

class Placed(Event, topic="NAME.placed", external=True):
    order: str

class Done(Event, topic="NAME.done", terminal=True):
    order: str

agent = Agent("NAME")
'''
PATIENT = (
    AGENT
    + """
@agent.on
async def work(placed: Placed, ctx: Context) -> Done:
    print(f"begun {placed.order}\\n", end="", flush=True)  # one write: several threads print
    while not Path("go").exists():
        await asyncio.sleep(0.01)
    print("done", placed.order, flush=True)
    return Done(order=placed.order)
"""
)
STUBBORN = (
    AGENT
    + """
@agent.on
def work(placed: Placed) -> None:
    print(f"begun {placed.order}\\n", end="", flush=True)  # one write: several threads print
    time.sleep(3600)
"""
)
FAILING = (
    AGENT
    + """
@agent.on
async def work(placed: Placed) -> None:
    raise LookupError("no such customer")
"""
)


class Post:
    """The broker as the tests see it."""

    def __init__(self, url: str, namespace: str) -> None:
        self.url = url
        self.names = Names(namespace)
        self.environment = {"CHOREO_URL": url, "CHOREO_NAMESPACE": namespace}

    def send(self, topic: str, *orders: str) -> None:
        """Publish an order each; somebody must be bound for the topic."""

        async def publish(session: Session) -> None:
            for order in orders:
                message = Message(json.dumps({"order": order}).encode(), message_id=f"id-{order}")
                result = await session.publish(message, exchange=self.names.events, routing_key=topic, timeout=10)
                assert result == Confirmed()

        self._with_session(publish)

    def ready(self, queue: str) -> int | None:
        """Return how many messages are ready in a queue, None when it does not exist."""

        async def look(session: Session) -> int | None:
            found = await session.stats(queue)
            return None if found is None else found.ready

        return self._with_session(look)

    def declare(self, agent: str, **changes: Any) -> str:
        """Declare the queue of an agent as choreo does, but with `changes` in its arguments; return its name."""
        topology = Topology.of([Agent(agent)], self.names.namespace)
        queue = next(each for each in topology.queues if each.kind == "work")
        changed = replace(queue, arguments={**queue.arguments, **changes})
        self._with_session(lambda session: session.declare(Topology((), (changed,), ())))
        return queue.name

    def _with_session(self, work: Callable[[Session], Awaitable[T]]) -> T:
        async def connected() -> T:
            session = await rabbit.connect([BrokerUrl.parse(self.url)], name="test")
            try:
                return await work(session)
            finally:
                await session.close()

        return asyncio.run(connected())


@pytest.fixture
def post(broker_url: str) -> Post:
    """One namespace for all tests of this module: the ladder is declared once, agents have names of their own."""
    return Post(broker_url, "test-run")


@pytest.fixture
def name(project: Path) -> str:
    return f"agent{secrets.token_hex(4)}"


@pytest.fixture
def write(project: Path, name: str) -> Callable[[str], str]:
    """Write the module of the agent NAME: write(text)."""

    def write_one(text: str) -> str:
        (project / "agents" / f"{name}.py").write_text(text.replace("NAME", name))
        return name

    return write_one


def consuming(running: Running, times: int = 1) -> Running:
    running.wait_for('"state": "consuming"', times=times)
    return running


def log_lines(lines: list[str]) -> list[dict[str, Any]]:
    """Every line of stderr is one JSON object, whatever logged it."""
    return [json.loads(line) for line in lines]


# Quick to start.


def test_worker_is_ready_soon_after_its_start(
    start_choreo: Start, write: Callable[[str], str], post: Post, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under a second after the broker answers, on a machine that is not busy; the bound here is for a busy one."""
    agent = write(PATIENT)
    consuming(start_choreo("run", agent, env=post.environment)).end()  # the ladder is there now
    began = time.monotonic()
    running = consuming(start_choreo("run", agent, env=post.environment))
    took = time.monotonic() - began
    with capsys.disabled():
        print(f" [ready {took:.2f} s after the program's start]", end="")
    assert took < 15
    states = [line["state"] for line in log_lines(running.stderr) if "state" in line]
    assert states == ["consuming"]


def test_help_is_quick(choreo: Choreo, capsys: pytest.CaptureFixture[str]) -> None:
    """`choreo --help` needs none of the libraries that the work needs: under 300 ms, counted in CPU time because the
    machine may be busy."""
    imported = choreo("--help", env={"PYTHONPROFILEIMPORTTIME": "1"}).stderr
    assert "typer" in imported
    for library in ("aio_pika", "aiormq", "pydantic", "structlog", "tenacity"):
        assert library not in imported

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert choreo("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    spent = statistics.median(seconds() for _ in range(5))
    with capsys.disabled():
        print(f" [choreo --help: {1000 * spent:.0f} ms of CPU]", end="")
    assert spent < 0.3


# Draining.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_first_signal_finishes_what_runs_and_hands_back_the_rest(
    start_choreo: Start, write: Callable[[str], str], post: Post, project: Path, number: signal.Signals
) -> None:
    """The running reaction ends with its event emitted and settled, the prefetched ones are in the queue again, and
    the program ends with 0."""
    agent = write(PATIENT)
    running = consuming(start_choreo("run", agent, "--concurrency", "1", env=post.environment))
    post.send(f"{agent}.placed", "1", "2", "3")
    running.wait_for("begun 1")
    running.send(number)
    running.wait_for('"state": "draining"')
    until(lambda: post.ready(post.names.queue(agent)) == 2)
    (project / "go").touch()
    assert running.wait() == 0
    assert running.stdout == ["begun 1", "done 1"]
    assert post.ready(post.names.queue(agent)) == 2
    assert post.ready(post.names.dlq(agent)) == 0
    assert [line["event"] for line in log_lines(running.stderr) if line["level"] != "info"] == []


@pytest.mark.parametrize("text", [PATIENT, STUBBORN], ids=["on the loop", "in a thread"])
def test_drain_time_that_is_over_ends_with_75(
    start_choreo: Start, write: Callable[[str], str], post: Post, text: str
) -> None:
    """What could not be finished is delivered again; a thread that hangs does not keep the program from ending."""
    agent = write(text)
    running = consuming(start_choreo("run", agent, "--drain", "300ms", env=post.environment))
    post.send(f"{agent}.placed", "1")
    running.wait_for("begun 1")
    running.send(signal.SIGTERM)
    assert running.wait(timeout=8) == 75
    until(lambda: post.ready(post.names.queue(agent)) == 1)
    again = consuming(start_choreo("run", agent, "--drain", "100ms", env=post.environment))
    again.wait_for("begun 1")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_second_signal_ends_at_once(
    start_choreo: Start, write: Callable[[str], str], post: Post, number: signal.Signals, code: int
) -> None:
    """Whoever does not want to wait for the drain says so again; nothing is lost."""
    agent = write(PATIENT)
    running = consuming(start_choreo("run", agent, "--drain", "1h", env=post.environment))
    post.send(f"{agent}.placed", "1")
    running.wait_for("begun 1")
    running.send(number)
    running.wait_for('"state": "draining"')
    running.send(number)
    assert running.wait() == code  # long before the drain is over
    until(lambda: post.ready(post.names.queue(agent)) == 1)


def test_signal_while_waiting_for_the_broker_ends_with_0(start_choreo: Start, write: Callable[[str], str]) -> None:
    """Nothing runs, so nothing is to be drained."""
    url = f"amqp://127.0.0.1:{closed_port()}"
    running = start_choreo("run", write(PATIENT), "--wait", "1h", env={"CHOREO_URL": url})
    running.wait_for("not connected")
    running.send(signal.SIGTERM)
    assert running.wait() == 0


# Telling the truth about itself.


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """A datagram socket that listens as systemd does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.setblocking(False)
        yield listener


def test_systemd_is_told(start_choreo: Start, write: Callable[[str], str], post: Post, manager: socket.socket) -> None:
    """READY once it consumes and not before, STATUS in words, WATCHDOG twice per interval, STOPPING at the drain."""
    agent, told = write(PATIENT), list[str]()

    def hears(text: str, times: int = 1) -> bool:
        with contextlib.suppress(BlockingIOError):
            while True:
                told.append(manager.recv(4096).decode())
        return sum(text in line for line in told) >= times

    environment = {"NOTIFY_SOCKET": str(manager.getsockname()), "WATCHDOG_USEC": "2000000"}
    running = start_choreo("run", agent, env=post.environment | environment)
    until(lambda: hears("READY=1"))
    until(lambda: hears(f"STATUS=consuming from {post.names.queue(agent)}"))
    seen = sum(line == "WATCHDOG=1" for line in told)
    until(lambda: hears("WATCHDOG=1", times=seen + 3))
    assert "STOPPING=1" not in told
    running.send(signal.SIGTERM)
    until(lambda: hears("STATUS=stopped"))
    assert running.wait() == 0
    order = [told.index(next(line for line in told if line.startswith(each))) for each in ("READY", "STOPPING")]
    assert order == sorted(order)
    assert told.count("READY=1") == 1
    assert any(line.startswith("STATUS=draining") for line in told)


def get(port: int, path: str) -> tuple[int, str]:
    """Return status code and `status` of a health answer; 0 while nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, json.load(answer)["status"]
    except ConnectionError:
        return 0, ""
    finally:
        connection.close()


def health_port(running: Running) -> int:
    return int(json.loads(running.wait_for('"event": "health endpoint"'))["port"])


def test_health_endpoint_tells_the_truth(
    start_choreo: Start, write: Callable[[str], str], fresh_node: Node, namespace: str
) -> None:
    """/live as long as the loop turns, /ready only while it consumes: not while the broker is away, and again when it
    is back, which the worker finds by itself."""
    agent = write(PATIENT)
    environment = {"CHOREO_URL": fresh_node.url, "CHOREO_NAMESPACE": namespace}
    running = start_choreo("run", agent, "--health-port", "0", env=environment)
    port = health_port(running)
    assert get(port, "/live")[0] == 200
    consuming(running)
    assert get(port, "/ready") == (200, f"consuming from {namespace}.{agent}")
    fresh_node.flush()
    fresh_node.kill()
    until(lambda: get(port, "/ready")[0] == 503)
    assert get(port, "/live")[0] == 200
    until(lambda: "attempt" in get(port, "/ready")[1])
    code, status = get(port, "/ready")
    assert code == 503
    assert f"127.0.0.1:{fresh_node.port}" in status
    fresh_node.start_again()
    until(lambda: get(port, "/ready")[0] == 200, within=60)
    Post(fresh_node.url, namespace).send(f"{agent}.placed", "1")
    running.wait_for("begun 1")
    running.send(signal.SIGTERM)
    until(lambda: get(port, "/ready") == (503, "draining for at most 30 s"))
    running.send(signal.SIGTERM)
    running.wait()
    assert get(port, "/live")[0] == 0


def test_failures_are_one_json_line_each_with_their_ids(
    start_choreo: Start, write: Callable[[str], str], post: Post
) -> None:
    """Not on a terminal every line of stderr is JSON; a failure names agent, event and transaction."""
    agent = write(FAILING)
    running = consuming(start_choreo("run", agent, env=post.environment))
    post.send(f"{agent}.placed", "1", "2")
    running.wait_for('"dead letter"', times=2)
    running.send(signal.SIGTERM)
    assert running.wait() == 0
    failures = [line for line in log_lines(running.stderr) if line["level"] == "warning"]
    assert [line["event"] for line in failures] == ["dead letter"] * 2
    for line in failures:
        assert line["agent"] == agent
        assert line["event_id"] in ("id-1", "id-2")
        assert line["correlation_id"] == line["event_id"]
        assert (line["reaction"], line["topic"], line["attempt"]) == ("work", f"{agent}.placed", 1)
        assert "no such customer" in line["error"]
    assert running.stdout == []


def test_every_event_is_one_line_at_debug(
    start_choreo: Start, write: Callable[[str], str], post: Post, project: Path
) -> None:
    """What was handled is said with its ids when asked for, and not otherwise."""
    agent = write(PATIENT)
    (project / "go").touch()
    running = consuming(start_choreo("run", agent, env=post.environment | {"CHOREO_LOG_LEVEL": "debug"}))
    post.send(f"{agent}.placed", "1", "2")
    running.wait_for('"handled"', times=2)
    running.send(signal.SIGTERM)
    assert running.wait() == 0
    handled = [line for line in log_lines(running.stderr) if line["event"] == "handled"]
    assert {line["event_id"] for line in handled} == {"id-1", "id-2"}
    for line in handled:
        assert (line["agent"], line["correlation_id"], line["level"]) == (agent, line["event_id"], "debug")
        assert line["emitted"] == [f"{agent}.done"]


# Saying what is wrong: one message, the right exit code, no traceback, no password.


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def one_message(done: subprocess.CompletedProcess[str], code: int, *words: str) -> str:
    """Return the message after the log lines, which is one line and at most one with the way out."""
    text = f"{done.stdout}{done.stderr}"
    assert done.returncode == code, text
    assert "Traceback" not in text
    assert "s3cret" not in text
    assert done.stdout == ""
    said = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert said[0].startswith("choreo: ")
    assert len(said) <= 2
    assert all(line.startswith("  ") for line in said[1:])
    for word in words:
        assert word in "\n".join(said)
    return said[0]


def test_broker_that_is_down(choreo: Choreo, write: Callable[[str], str]) -> None:
    """Exit 69 after the time that --wait allows, whatever the environment does."""
    port = closed_port()
    environment = {"CHOREO_URL": f"amqp://u:s3cret@127.0.0.1:{port}", "CHOREO_WAIT": "1h"}
    done = choreo("run", write(PATIENT), "--wait", "1s", env=environment)
    one_message(done, 69, f"127.0.0.1:{port}", "CHOREO_URL")


def test_wrong_password(choreo: Choreo, write: Callable[[str], str], node: Node) -> None:
    done = choreo("run", write(PATIENT), env={"CHOREO_URL": f"amqp://guest:s3cret@127.0.0.1:{node.port}"})
    one_message(done, 78, "guest", "password", f"127.0.0.1:{node.port}")


def test_wrong_virtual_host(choreo: Choreo, write: Callable[[str], str], broker_url: str) -> None:
    done = choreo("run", write(PATIENT), env={"CHOREO_URL": f"{broker_url}nowhere"})
    one_message(done, 78, "'nowhere'", "list_vhosts")


def test_queue_with_other_arguments(choreo: Choreo, write: Callable[[str], str], post: Post) -> None:
    """The message names the queue, the argument and both values, and the queue is left as it is."""
    agent = write(PATIENT)
    queue = post.declare(agent, **{"x-delivery-limit": 3})
    one_message(choreo("run", agent, env=post.environment), 78, queue, "x-delivery-limit", "3", "20")
    assert post.ready(queue) == 0


def test_unknown_agent(choreo: Choreo, write: Callable[[str], str]) -> None:
    """The message lists the known ones and the nearest name."""
    agent = write(PATIENT)
    said = one_message(choreo("run", agent.upper().lower()[:-1]), 2)
    assert agent[:-1] in said
    assert agent in choreo("run", agent[:-1]).stderr


@pytest.mark.parametrize(
    "hostile",
    [
        "../../etc/passwd",
        "os:system",
        "/etc/passwd",
        "a/b",
        "..",
        "",
        "Agent",
        "a" * 64,
        "x;reboot",
        "posix:_exit",
        "a\nb",
    ],
)
def test_hostile_name(choreo: Choreo, project: Path, hostile: str) -> None:
    """A name is checked before anything is imported or opened for it."""
    (project / "agents" / "evil.py").write_text("raise SystemExit('imported')")
    done = choreo("run", "--", hostile)
    one_message(done, 2)
    assert "imported" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        ([], 2, "--all"),
        (["--all", "NAME"], 2, "--all"),
        (["NAME", "--concurrency", "0"], 2, "--concurrency '0'"),
        (["NAME", "--prefetch", "65536"], 2, "--prefetch '65536'"),
        (["NAME", "--drain", "soon"], 2, "--drain 'soon'"),
        (["NAME", "--health-port", "70000"], 2, "--health-port '70000'"),
        (["NAME", "--url", "http://localhost"], 2, "amqp://"),
        (["NAME", "--url", "amqp://rabbit.example"], 2, "user"),
        (["json:loads"], 2, "json:loads"),
    ],
)
def test_wrong_option(choreo: Choreo, write: Callable[[str], str], arguments: list[str], code: int, word: str) -> None:
    agent = write(PATIENT)
    done = choreo("run", *(each.replace("NAME", agent) for each in arguments))
    one_message(done, code, word)


def test_health_port_in_use(choreo: Choreo, write: Callable[[str], str], post: Post) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        done = choreo("run", write(PATIENT), "--health-port", port, "--wait", "200ms", env=post.environment)
    one_message(done, 75, port)


def test_health_port_that_becomes_free_is_taken(start_choreo: Start, write: Callable[[str], str], post: Post) -> None:
    """It was that of the worker that this one replaces, which drained."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        arguments = ("--health-port", str(port), "--wait", "1m")
        running = start_choreo("run", write(PATIENT), *arguments, env=post.environment)
        running.wait_for("health endpoint waits")
    assert health_port(consuming(running)) == port


def test_wrong_declaration(choreo: Choreo, write: Callable[[str], str]) -> None:
    """A reaction that is declared wrongly is the user's mistake in one place: the message names it, with no
    traceback through choreo."""
    done = choreo("run", write(AGENT + "\n@agent.on\ndef work(placed: Placed):\n    pass\n"))
    one_message(done, 78, "'work'", "no return annotation")


@pytest.mark.parametrize(
    ("text", "last"),
    [
        ("import no_such_package_anywhere", "ModuleNotFoundError: No module named 'no_such_package_anywhere'"),
        ("from choreo import Agnt", "ImportError: cannot import name 'Agnt' from 'choreo'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_error_in_the_users_own_module_shows_its_traceback(
    choreo: Choreo, write: Callable[[str], str], text: str, last: str
) -> None:
    """It is not "no such agent": the traceback leads to the line in the user's file."""
    agent = write(text + "\n")
    done = choreo("run", agent)
    assert done.returncode == 78
    assert "Traceback" in done.stderr
    assert f"{agent}.py" in done.stderr
    assert last in done.stderr


# What to run.


def test_all_agents_and_a_reference(
    start_choreo: Start, write: Callable[[str], str], post: Post, project: Path
) -> None:
    """`--all` runs every agent of the folder; `package.module:attribute` an agent anywhere; twice named is once."""
    agent = write(PATIENT)
    other = f"{agent}-b"
    (project / "agents" / f"{agent}_b.py").write_text(PATIENT.replace("NAME", other))
    running = start_choreo("run", "--all", env=post.environment)
    line = json.loads(running.wait_for('"state": "consuming"'))
    assert line["agents"] == [agent, other]
    running = start_choreo("run", f"agents.{agent}:agent", agent, env=post.environment)
    assert json.loads(running.wait_for('"state": "consuming"'))["agents"] == [agent]
    post.send(f"{agent}.placed", "1")
    until(lambda: post.ready(post.names.queue(agent)) == 0)


# Several processes.


def children(pid: int) -> set[int]:
    """Return the ids of the running processes that `pid` has started."""
    found = set()
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            state, parent = file.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == pid and state != "Z":
                found.add(int(file.parent.name))
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def supervised(start_choreo: Start, write: Callable[[str], str], post: Post) -> tuple[Running, int, str]:
    """Two processes of one agent, the port of their health endpoint, and the agent's name."""
    agent = write(PATIENT)
    running = start_choreo("run", agent, "--processes", "2", "--health-port", "0", env=post.environment)
    port = health_port(running)
    until(lambda: get(port, "/ready") == (200, "2 of 2 processes are ready"), within=20)
    return running, port, agent


@linux
def test_killed_process_is_started_again_and_a_signal_drains_all(
    supervised: tuple[Running, int, str], post: Post, project: Path
) -> None:
    """Of two processes one is killed: the supervisor is not ready until there are two again. SIGTERM lets both finish
    what they run, and all end with 0."""
    running, port, agent = supervised
    workers = children(running.pid)
    assert len(workers) == 2
    module = project / "agents" / f"{agent}.py"
    module.write_text(module.read_text() + 'while Path("hold").exists():\n    time.sleep(0.01)\n')
    (project / "hold").touch()
    os.kill(min(workers), signal.SIGKILL)
    running.wait_for('"event": "process ended"')
    until(lambda: get(port, "/ready")[0] == 503)
    (project / "hold").unlink()
    until(lambda: get(port, "/ready")[0] == 200, within=20)
    again = children(running.pid)
    assert len(again) == 2
    assert max(workers) in again
    post.send(f"{agent}.placed", *(str(n) for n in range(6)))
    for n in range(6):
        running.wait_for(f"begun {n}")
    running.send(signal.SIGTERM)
    running.wait_for('"state": "draining"', times=2)
    (project / "go").touch()
    assert running.wait() == 0
    assert sorted(line for line in running.stdout if line.startswith("done")) == [f"done {n}" for n in range(6)]
    assert not any(map(alive, again))
    assert post.ready(post.names.queue(agent)) == 0


@linux
def test_killed_supervisor_takes_its_processes_along(supervised: tuple[Running, int, str], post: Post) -> None:
    """Nobody else would ever stop them: they drain and end, and what they held is in the queue."""
    running, _, agent = supervised
    workers = children(running.pid)
    post.send(f"{agent}.placed", "1")
    running.wait_for("begun 1")
    running.send(signal.SIGKILL)
    running.wait_for('"state": "draining"', times=2)
    until(lambda: sum(map(alive, workers)) == 1)
    for pid in filter(alive, workers):
        os.kill(pid, signal.SIGTERM)
    until(lambda: not any(map(alive, workers)))
    until(lambda: post.ready(post.names.queue(agent)) == 1)


@linux
def test_processes_that_cannot_start_end_the_supervisor(choreo: Choreo, write: Callable[[str], str]) -> None:
    """What is wrong for one is wrong for all: no endless restarts, the same message and exit code as without them."""
    done = choreo(
        "run",
        write(PATIENT),
        "--processes",
        "2",
        "--wait",
        "500ms",
        env={"CHOREO_URL": f"amqp://u:s3cret@127.0.0.1:{closed_port()}"},
    )
    assert done.returncode == 69
    assert "s3cret" not in done.stderr
    assert "Traceback" not in done.stderr
    assert re.search("^choreo: no broker can be reached", done.stderr, re.MULTILINE)


@linux
def test_password_of_the_command_line_is_not_on_that_of_the_processes(
    start_choreo: Start, write: Callable[[str], str], post: Post
) -> None:
    """It goes by the environment, which other users of the machine cannot read."""
    agent = write(PATIENT)
    environment = {"CHOREO_NAMESPACE": post.names.namespace}
    running = start_choreo("run", agent, "--processes", "2", "--url", post.url, env=environment)
    consuming(running, times=2)
    lines = [Path(f"/proc/{pid}/cmdline").read_text() for pid in children(running.pid)]
    assert len(lines) == 2
    assert not any("guest" in line for line in lines)
    assert any("can be seen" in line for line in running.stderr)


def test_reload_starts_anew_when_a_file_changes(start_choreo: Start, write: Callable[[str], str], post: Post) -> None:
    """The agent is as its file says, after each change; a file that cannot be imported is mended by the next change."""
    pytest.importorskip("watchfiles")
    agent = write(PATIENT)
    running = consuming(start_choreo("run", agent, "--reload", env=post.environment))
    write("def f(:")
    running.wait_for("when a file changes")
    write(PATIENT.replace("begun", "started"))
    consuming(running, times=2)
    post.send(f"{agent}.placed", "1")
    running.wait_for("started 1")
    running.send(signal.SIGTERM)
    running.wait_for('"state": "draining"', times=2)
    running.send(signal.SIGTERM)
    running.wait()


@linux
def test_agents_run_apart_have_a_process_each(
    start_choreo: Start, project: Path, post: Post, write: Callable[[str], str]
) -> None:
    """One that blocks its event loop holds up no other; `--process-per-agent` with `--all` finds them by itself."""
    quick = write(PATIENT)
    slow = f"{quick}slow"
    blocking = STUBBORN.replace("NAME", slow).replace("def work", "async def work").replace("3600", "4")
    (project / "agents" / f"{slow}.py").write_text(blocking)
    (project / "go").touch()
    running = start_choreo("run", "--all", "--process-per-agent", env=post.environment)
    running.wait_for(f'"consuming from {post.names.queue(quick)}"')
    running.wait_for(f'"consuming from {post.names.queue(slow)}"')
    assert len(children(running.pid)) == 2
    post.send(f"{slow}.placed", "1")
    running.wait_for("begun 1")
    post.send(f"{quick}.placed", "2")
    running.wait_for("done 2")
