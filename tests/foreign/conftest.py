"""Foreign clients as programs of their own, against the embedded broker over AMQP and against a real node."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Awaitable, Callable, Iterator

import aiormq
import pytest

from choreo.broker.server.background import EmbeddedBroker
from tests.conftest import Running
from tests.embedded_node import VERSION
from tests.foreign.clients import BRINGS, NODE_MODULES, PROGRAMS
from tests.waiting import eventually

REAL = pytest.param("rabbitmq", marks=pytest.mark.real_node("RabbitMQ to be compared with"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says loudly, in one line, what a green run has not tried."""
    skipped = [report for report in terminalreporter.stats.get("skipped", ()) if BRINGS in str(report.longrepr)]
    if skipped:
        line = f"FOREIGN CLIENTS WERE NOT TRIED: {len(skipped)} tests did not run; {BRINGS}"
        terminalreporter.write_line(line, red=True, bold=True)


@pytest.fixture(scope="session")
def served() -> Iterator[EmbeddedBroker]:
    """The embedded broker that all clients share, as they would share a node."""
    with EmbeddedBroker(VERSION, port=0) as broker:
        yield broker


@pytest.fixture(params=["embedded", REAL])
def url(request: pytest.FixtureRequest) -> str:
    """The AMQP URL of the broker that is tried, without a virtual host: clients understand the default one by that."""
    if request.param == "rabbitmq":
        return str(request.getfixturevalue("node").url).removesuffix("/")
    broker: EmbeddedBroker = request.getfixturevalue("served")
    return f"amqp://guest:guest@127.0.0.1:{broker.port}"


@pytest.fixture
def start(url: str, namespace: str) -> Iterator[Callable[..., Running]]:
    """Starts a command, returns it Running, ends it with the test. FOREIGN_* tell it what it is to use."""
    running: list[Running] = []

    def start(*command: str, **variables: str) -> Running:
        told = {"FOREIGN_URL": url, "FOREIGN_NAMESPACE": namespace, "NODE_PATH": str(NODE_MODULES)} | variables
        process = subprocess.Popen(
            command,
            cwd=PROGRAMS,
            env={"PATH": os.environ["PATH"], "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1", **told},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        running.append(Running(process))
        return running[-1]

    yield start
    for each in running:
        each.end()


@pytest.fixture
def run(start: Callable[..., Running]) -> Callable[..., list[str]]:
    """Runs a command to its good end, and returns the lines that it printed."""

    def run(*command: str, **variables: str) -> list[str]:
        running = start(*command, **variables)
        assert running.wait(30) == 0, running.output
        return running.stdout

    return run


@pytest.fixture
def left(url: str) -> Callable[[dict[str, int]], Awaitable[None]]:
    """Fails the test unless the queues have soon as many messages as they should."""

    async def look(expected: dict[str, int]) -> bool:
        connection = await aiormq.connect(url)
        channel = await connection.channel()
        found = {name: (await channel.queue_declare(name, passive=True)).message_count for name in expected}
        await connection.close()
        return found == expected

    async def left(expected: dict[str, int]) -> None:
        await eventually(lambda: look(expected), what=f"{expected} left")

    return left
