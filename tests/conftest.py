"""A private RabbitMQ node for the tests that need one, and the real `choreo` program for those that run it.

CHOREO_TEST_RABBITMQ_ROOT: the root folder of another filesystem, to test against the release that it holds.
CHOREO_TEST_BROKER=embedded: test against the embedded broker; what needs the powers of a real node is skipped.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import pytest
from hypothesis import HealthCheck, settings

from choreo.broker.server.background import EmbeddedBroker
from choreo.errors import ChoreoError
from choreo.testing.rabbitmq.cluster import Cluster
from choreo.testing.rabbitmq.node import Node
from choreo.testing.rabbitmq.release import INSTALL, find_server
from tests.embedded_node import VERSION, EmbeddedNode, EmbeddedProcess

EMBEDDED = os.environ.get("CHOREO_TEST_BROKER") == "embedded"
ROOT = Path(os.environ["CHOREO_TEST_RABBITMQ_ROOT"]) if os.environ.get("CHOREO_TEST_RABBITMQ_ROOT") else None
MISSING = "RabbitMQ was not found"

pytest_plugins = ("pytester", "choreo.testing.plugin")

if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # as under nohup; what tests start would ignore it as well
    signal.signal(signal.SIGHUP, lambda *_: None)

# A machine that is busy with something else is not a failure; what has to be quick is measured by make bench.
settings.register_profile("choreo", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("choreo")


def pytest_addoption(parser: pytest.Parser) -> None:
    # Here, because pytest reads the options of the outermost conftest only.
    group = parser.getgroup("faults")
    group.addoption("--faults", choices=("short", "full", "long"), default="short", help="how often each fault happens")
    group.addoption("--faults-report", type=Path, help="write the table to this Markdown file")
    group = parser.getgroup("header fuzz")
    group.addoption("--fuzz-messages", type=int, default=60_000, help="how many messages both readers are given")
    group.addoption("--fuzz-seed", type=int, default=0, help="which ones")
    group = parser.getgroup("embedded broker")
    group.addoption("--model-steps", type=int, default=10_000, help="how many random steps brokers are compared in")
    group.addoption("--model-seed", type=int, default=0, help="which ones")


def release(server: Path) -> str:
    """The release of RabbitMQ that `server` belongs to."""
    found = next((server.parents[1] / "plugins").glob("rabbit-*"), server.parents[1])
    return found.name.removeprefix("rabbit-").removesuffix(".ez")


def pytest_configure() -> None:
    """Let Ctrl-C reach what the tests start: as a shell's background job, they would inherit that it is ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    if EMBEDDED:
        return "the embedded broker, in place of RabbitMQ"
    server = find_server(ROOT)
    return f"RabbitMQ {release(server)} from {server}" if server is not None else f"{MISSING}: {INSTALL}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        real = item.get_closest_marker("real_node")
        if EMBEDDED and real is not None:
            item.add_marker(pytest.mark.skip(reason=f"the embedded broker has no {real.args[0]}"))
        if {"node", "new_node"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("broker")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says loudly how much was not tested: a green run without a broker proves little."""
    skipped = [report for report in terminalreporter.stats.get("skipped", ()) if MISSING in str(report.longrepr)]
    if skipped:
        text = f"{MISSING}: {len(skipped)} broker tests did not run; {INSTALL}"
        terminalreporter.write_sep("!", "BROKER TESTS DID NOT RUN", red=True, bold=True)
        terminalreporter.write_line(text, red=True, bold=True)


@pytest.fixture(scope="session")
def new_node() -> Callable[..., Node]:
    """`Node.start` for the release under test. Without one the test is skipped, or fails where CI is set."""
    if EMBEDDED:
        return EmbeddedProcess.start  # type: ignore[return-value]  # with as much of a node as it has
    if find_server(ROOT) is not None:
        return lambda directory, **options: Node.start(directory, root=ROOT, **options)
    if os.environ.get("CI", "").lower() not in ("", "0", "false"):
        pytest.fail(f"{MISSING}, and CI is set: {INSTALL}", pytrace=False)
    pytest.skip(MISSING)


@pytest.fixture(scope="session")
def node(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node | EmbeddedNode]:
    """The node that tests share. Who stops or kills a node takes `fresh_node`."""
    if EMBEDDED:
        with EmbeddedBroker(VERSION, port=0) as broker:
            yield EmbeddedNode(broker)
        return
    node = request.getfixturevalue("new_node")(tmp_path_factory.mktemp("node"))
    yield node
    node.kill()


@pytest.fixture(scope="session")
def managed(new_node: Callable[..., Node], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node with the management plugin, whose figures are collected every second."""
    node = new_node(
        tmp_path_factory.mktemp("managed"),
        plugins=["rabbitmq_management"],
        config=["collect_statistics_interval = 1000"],
    )
    yield node
    node.kill()


@pytest.fixture
def broker_url(node: Node) -> str:
    """AMQP URL of the shared node, ending with "/", so that `broker_url + vhost` is one of that virtual host."""
    return node.url


@pytest.fixture
def namespace() -> str:
    """A namespace that no other test has, which keeps tests apart on the shared node."""
    return f"t{secrets.token_hex(4)}"


@pytest.fixture
def vhost(node: Node, namespace: str) -> Iterator[str]:
    """A virtual host of the test's own, gone afterwards."""
    node.ctl("add_vhost", namespace)
    node.ctl("set_permissions", "--vhost", namespace, "guest", ".*", ".*", ".*")
    yield namespace
    with contextlib.suppress(ChoreoError):
        node.ctl("delete_vhost", namespace)


@pytest.fixture
def start_node(new_node: Callable[..., Node], tmp_path: Path) -> Iterator[Callable[..., Node]]:
    """Starts nodes of the test's own, with the options of `Node.start`; they end with the test."""
    nodes: list[Node] = []

    def start(directory: Path | None = None, **options: Any) -> Node:
        nodes.append(new_node(directory or tmp_path / f"node{len(nodes)}", **options))
        return nodes[-1]

    yield start
    for node in nodes:
        node.kill()


@pytest.fixture
def fresh_node(start_node: Callable[..., Node]) -> Node:
    """A node of the test's own, to be stopped, killed and restarted at will."""
    return start_node()


@pytest.fixture
def start_cluster(new_node: Callable[..., Node], tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    """Starts clusters of the test's own, with the options of `Cluster.start`; they end with the test."""
    clusters: list[Cluster] = []

    def start(**options: Any) -> Cluster:
        clusters.append(Cluster.start(tmp_path / f"cluster{len(clusters)}", root=ROOT, **options))
        return clusters[-1]

    yield start
    for cluster in clusters:
        cluster.kill()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """An empty project: a folder with an `agents` package."""
    folder = tmp_path / "project"
    (folder / "agents").mkdir(parents=True)
    (folder / "agents" / "__init__.py").touch()
    return folder


class Running:
    """A `choreo` program that is running. What it prints is kept line by line, in `stdout` and `stderr`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.pid = process.pid
        self.stdout: list[str] = []
        self.stderr: list[str] = []
        self._printed = threading.Condition()
        self._readers = [
            threading.Thread(target=self._read, args=(stream, lines), daemon=True)
            for stream, lines in ((process.stdout, self.stdout), (process.stderr, self.stderr))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: IO[str], lines: list[str]) -> None:
        with stream:
            for line in stream:
                with self._printed:
                    lines.append(line.rstrip("\n"))
                    self._printed.notify_all()
        with self._printed:
            self._printed.notify_all()

    def wait_for(self, text: str, timeout: float = 60.0, *, times: int = 1) -> str:
        """The line with `text` (the `times`-th one), printed already or within `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while True:
            with self._printed:
                found = [line for line in (*self.stdout, *self.stderr) if text in line]
                if len(found) >= times:
                    return found[times - 1]
                over = not any(reader.is_alive() for reader in self._readers)
                if over or not self._printed.wait(deadline - time.monotonic()):
                    why = f"ended ({self.process.poll()})" if over else f"did not within {timeout:g} s"
                    pytest.fail(f"{text!r} was to be printed {times} times; the program {why}:\n{self.output}")

    def wait(self, timeout: float = 60.0) -> int:
        """The exit code, once it has ended and everything that it printed is here."""
        code = self.process.wait(timeout)
        for reader in self._readers:
            reader.join(timeout)
        return code

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    @property
    def output(self) -> str:
        return "\n".join(["-- stdout", *self.stdout, "-- stderr", *self.stderr])

    def end(self) -> None:
        """Ends the program, by force if need be, and the processes that it started."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.wait()


def environment(changes: Mapping[str, str] | None) -> dict[str, str]:
    """Ours without CHOREO_* settings and colours, so that the program is the choreo that the tests import."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("CHOREO_") and name not in ("FORCE_COLOR", "CLICOLOR_FORCE")
    }
    spec = find_spec("choreo")
    assert spec is not None
    assert spec.origin is not None
    inherited["PYTHONPATH"] = str(Path(spec.origin).parents[1])
    return inherited | dict(changes or {})


@pytest.fixture
def choreo(project: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `choreo ARGS` to its end: choreo(*args, cwd=project, env=None, stdin="", timeout=60)."""

    def run(
        *arguments: str,
        cwd: Path = project,
        env: Mapping[str, str] | None = None,
        stdin: str = "",
        timeout: float = 60.0,
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "choreo", *arguments],
            cwd=cwd,
            env=environment(env),
            input=stdin,
            timeout=timeout,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture
def start_choreo(project: Path) -> Iterator[Callable[..., Running]]:
    """Starts `choreo ARGS`, returns it Running, ends it with the test: start_choreo(*args, cwd=project, env=None)."""
    started: list[Running] = []

    def start(*arguments: str, cwd: Path = project, env: Mapping[str, str] | None = None) -> Running:
        process = subprocess.Popen(
            [sys.executable, "-m", "choreo", *arguments],
            cwd=cwd,
            env=environment(env),
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
