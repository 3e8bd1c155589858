"""A start that takes its time, and processes that hang: whoever supervises is told the truth, and the rest works on."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.acceptance.test_run import FAILING, PATIENT, Post, alive, children, consuming, get, health_port
from tests.waiting import until

if TYPE_CHECKING:
    from tests.conftest import Running

Start = Callable[..., "Running"]
Write = Callable[[str], str]

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

IMPORTING = """
import time
from pathlib import Path

Path("imported").touch()
try:
    time.sleep(3600)
except BaseException:  # as careless code does
    time.sleep(3600)
"""


@pytest.fixture
def post(broker_url: str) -> Post:
    return Post(broker_url, "test-run")


@pytest.fixture
def write(project: Path) -> Write:
    """Write the module of an agent NAME and return its name."""
    name = f"agent{secrets.token_hex(4)}"

    def write_one(text: str) -> str:
        (project / "agents" / f"{name}.py").write_text(text.replace("NAME", name))
        return name

    return write_one


class Manager:
    """Listens as systemd does."""

    def __init__(self, path: Path) -> None:
        self.told: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)
        self.environment = {"NOTIFY_SOCKET": str(path)}

    def hears(self, text: str, times: int = 1) -> bool:
        with contextlib.suppress(BlockingIOError):
            while True:
                self.told.append(self._socket.recv(4096).decode())
        return sum(text in line for line in self.told) >= times

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    found = Manager(tmp_path / "notify")
    yield found
    found.close()


def logged(running: Running, event: str) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, running.stderr) if line["event"] == event]


# The start.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("arguments", [(), ("--processes", "2", "--reload")], ids=["alone", "supervised"])
def test_signal_while_the_agents_are_imported_ends_it_at_once(
    start_choreo: Start, write: Write, project: Path, number: signal.Signals, arguments: tuple[str, ...]
) -> None:
    """With 0, since nothing had begun, whatever the module does with exceptions."""
    if arguments:
        pytest.importorskip("watchfiles")
    running = start_choreo("run", write(IMPORTING), *arguments, env={"CHOREO_URL": "amqp://127.0.0.1:1"})
    until((project / "imported").exists)
    running.send(number)
    assert running.wait(20) == 0
    assert logged(running, "signal")


@linux
def test_first_process_of_a_container_hears_the_signal_while_it_imports(project: Path, write: Write) -> None:
    """The kernel drops a signal to the first process of a namespace that has no handler for it."""
    import subprocess

    from tests.conftest import environment

    unshare = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]
    if subprocess.run([*unshare, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine lets nobody make a namespace of processes")
    command = [*unshare, sys.executable, "-m", "choreo", "run", write(IMPORTING)]
    with subprocess.Popen(command, cwd=project, env=environment({"CHOREO_URL": "amqp://127.0.0.1:1"})) as process:
        until((project / "imported").exists)
        (first,) = children(process.pid)
        os.kill(first, signal.SIGTERM)
        assert process.wait(20) == 0


def test_start_that_takes_its_time_says_why_and_asks_for_more(
    start_choreo: Start, write: Write, post: Post, project: Path, manager: Manager
) -> None:
    """systemd hears what is imported, whose lifespan has not begun, and every few seconds that it must not give up,
    also while both block; READY comes once all of it is over."""
    agent = write(
        """
import contextlib
import time
from pathlib import Path

from choreo import Agent

def wait_for(name: str) -> None:
    while not Path(name).exists():
        time.sleep(0.01)

wait_for("import")

@contextlib.asynccontextmanager
async def lifespan():
    wait_for("begin")
    yield

agent = Agent("NAME", lifespan=lifespan)
"""
        + PATIENT.partition("agent = Agent")[0].partition('"""')[2].partition('"""')[2]
        + PATIENT.partition('agent = Agent("NAME")')[2]
    )
    running = start_choreo("run", agent, env=post.environment | manager.environment)
    until(lambda: manager.hears(f"STATUS=starting: importing {agent}"))
    until(lambda: manager.hears("EXTEND_TIMEOUT_USEC=20000000", times=2))
    (project / "import").touch()
    until(lambda: manager.hears(f"STATUS=starting: the lifespan of agent {agent}"))
    seen = sum("EXTEND" in line for line in manager.told)
    until(lambda: manager.hears("EXTEND_TIMEOUT_USEC=20000000", times=seen + 2))
    assert not manager.hears("READY=1")
    (project / "begin").touch()
    until(lambda: manager.hears("READY=1"))
    until(lambda: manager.hears("STATUS=consuming"))
    running.send(signal.SIGTERM)
    assert running.wait() == 0


SLOW_IMPORT = """
import time
from pathlib import Path

while not Path("import").exists():
    time.sleep(0.01)
"""


@pytest.mark.parametrize("arguments", [(), ("--processes", "2")], ids=["alone", "supervised"])
def test_import_that_takes_its_time_is_asked_about(
    start_choreo: Start, write: Write, post: Post, project: Path, manager: Manager, arguments: tuple[str, ...]
) -> None:
    """From before the imports on: /live is 200, /ready is 503 and says why, systemd hears it; then /ready is 200, at
    the same port, and nobody who asks meanwhile is turned away."""
    agent = write(SLOW_IMPORT + PATIENT)
    environment = post.environment | manager.environment
    running = start_choreo("run", agent, *arguments, "--health-port", "0", env=environment)
    port = health_port(running)
    until(lambda: manager.hears(f"STATUS=starting: importing {agent}"))
    assert get(port, "/live") == (200, "alive")
    assert get(port, "/ready") == (503, f"starting: importing {agent}")
    with socket.create_connection(("127.0.0.1", port)) as slow:  # accepted now, and asks when the workers are ready
        (project / "import").touch()
        codes = set[int]()
        while 200 not in codes:  # the test has its deadline
            codes.add(get(port, "/ready")[0])
        slow.settimeout(10)
        slow.sendall(b"GET /live HTTP/1.1\r\n\r\n")
        answer = slow.recv(100)
    assert codes == {503, 200}
    assert answer.startswith(b"HTTP/1.1 200") or not answer  # it had five seconds to ask
    assert len(logged(running, "health endpoint")) == 1
    running.send(signal.SIGTERM)
    assert running.wait() == 0


def test_health_port_in_use_while_the_agents_are_imported(
    start_choreo: Start, write: Write, post: Post, project: Path
) -> None:
    """It is taken as soon as it is free, be it in the middle of an import."""
    agent = write(SLOW_IMPORT + PATIENT)
    with socket.create_server(("127.0.0.1", 0)) as old:
        port = old.getsockname()[1]
        running = start_choreo("run", agent, "--health-port", str(port), env=post.environment)
        running.wait_for("health endpoint waits")
    until(lambda: get(port, "/ready") == (503, f"starting: importing {agent}"))
    (project / "import").touch()
    until(lambda: get(port, "/ready")[0] == 200)


def test_ready_says_what_the_start_waits_for(start_choreo: Start, write: Write) -> None:
    """Which broker does not answer, and why, instead of only that it starts."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    url = f"amqp://u:s3cret@127.0.0.1:{port}"
    running = start_choreo("run", write(PATIENT), "--wait", "1h", "--health-port", "0", env={"CHOREO_URL": url})
    health = health_port(running)
    until(lambda: "attempt" in get(health, "/ready")[1])
    code, status = get(health, "/ready")
    assert code == 503
    assert status.startswith("starting: ")
    assert f"127.0.0.1:{port}" in status
    assert "s3cret" not in status
    running.send(signal.SIGTERM)
    assert running.wait() == 0


# Processes under a supervisor.


@linux
@pytest.mark.parametrize("how", ["blocked", "stopped"])
def test_process_that_hangs_is_ended_alone_and_started_again(
    start_choreo: Start, write: Write, post: Post, project: Path, how: str
) -> None:
    """/live and /ready speak for it. Its stacks are in the log, its sibling finishes what it runs, and all drain."""
    text = PATIENT.replace("while not", 'Path(placed.order).write_text(str(__import__("os").getpid()))\n    while not')
    if how == "blocked":  # so that its own watch cannot end it either
        text = text.replace(
            "    while not",
            '    if placed.order == "hang" and not Path("hung").exists():\n        Path("hung").touch()\n'
            '        __import__("ctypes").PyDLL(None).sleep(600)\n    while not',
        )
    agent = write(text.replace('Agent("NAME")', 'Agent("NAME", timeout="2s")'))
    environment = post.environment | {"WATCHDOG_USEC": "600000000", "CHOREO_CONCURRENCY": "1", "CHOREO_PREFETCH": "1"}
    running = start_choreo("run", agent, "--processes", "2", "--health-port", "0", env=environment)
    port = health_port(running)
    until(lambda: get(port, "/ready") == (200, "2 of 2 processes are ready"))
    post.send(f"{agent}.placed", "hang")
    until(lambda: (project / "hang").exists() and (project / "hang").read_text())
    hung = int((project / "hang").read_text())
    (sibling,) = children(running.pid) - {hung}
    if how == "stopped":
        os.kill(hung, signal.SIGSTOP)
    until(lambda: get(port, "/live")[0] == 503)
    assert "no sign of life" in get(port, "/live")[1]
    assert get(port, "/ready")[0] == 503
    running.wait_for('"process hangs"')
    ended = json.loads(running.wait_for('"process ended"'))
    assert ended["code"] == -signal.SIGABRT
    assert "Current thread" in ended["stacks"]
    assert how == "stopped" or f'{agent}.py", line' in ended["stacks"]
    (project / "go").touch()
    until(lambda: get(port, "/ready") == (200, "2 of 2 processes are ready"))
    assert get(port, "/live") == (200, "alive")
    assert sibling in children(running.pid)
    running.wait_for("done hang")
    running.send(signal.SIGTERM)
    assert running.wait() == 0
    assert not alive(hung)


@linux
def test_supervisor_needs_no_temporary_folder_and_leaves_none(
    start_choreo: Start, write: Write, post: Post, tmp_path: Path
) -> None:
    """Nothing of it is on disk, so that a killed one leaves nothing either."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    folder.chmod(0o500)
    running = start_choreo("run", write(FAILING), "--processes", "2", env=post.environment | {"TMPDIR": str(folder)})
    consuming(running, times=2)
    assert list(folder.iterdir()) == []
    running.send(signal.SIGTERM)
    assert running.wait() == 0
