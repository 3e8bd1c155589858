"""Reactions and lifespans that do not behave, under the real `choreo run`."""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from choreo.config.broker_url import BrokerUrl
from choreo.message import Message
from choreo.rabbit import session as rabbit
from choreo.topology import Names
from choreo.transport import Confirmed
from tests.waiting import eventually

if TYPE_CHECKING:
    from tests.conftest import Running

Start = Callable[..., "Running"]

NAMESPACE = "test-misbehaving"
AGENT = '''
"""An agent of the tests."""
import asyncio
import time

from choreo import Agent, Event

class Placed(Event, topic="NAME.placed", external=True):
    order: str
'''


class Stage:
    """An agent of the real program, and a way to send it orders."""

    def __init__(self, project: Path, start: Start, url: str) -> None:
        self.agent = f"agent{secrets.token_hex(4)}"
        self._project = project
        self._start = start
        self._url = url

    def run(self, text: str, *arguments: str, state: str | None = "consuming", query: str = "") -> Running:
        """Start the program, with `query` behind its URL, and return it when it is in `state`."""
        (self._project / "agents" / f"{self.agent}.py").write_text((AGENT + text).replace("NAME", self.agent))
        environment = {"CHOREO_URL": self._url + query, "CHOREO_NAMESPACE": NAMESPACE}
        running = self._start("run", self.agent, *arguments, env=environment)
        if state is not None:
            running.wait_for(f'"state": "{state}"')
        return running

    def wait_until_bound(self) -> None:
        """Return when the agent's queue is there, and consumed from."""

        async def consumed() -> None:
            session = await rabbit.connect([BrokerUrl.parse(self._url)], name="test")
            queue = Names(NAMESPACE).queue(self.agent)

            async def is_consumed() -> bool:
                found = await session.stats(queue)
                return found is not None and found.consumers > 0

            await eventually(is_consumed)
            await session.close()

        asyncio.run(consumed())

    def touch(self, name: str) -> None:
        """Make a file in the folder that the program runs in."""
        (self._project / name).touch()

    def send(self, order: str, topic: str = "placed") -> None:
        async def publish() -> None:
            session = await rabbit.connect([BrokerUrl.parse(self._url)], name="test")
            message = Message(json.dumps({"order": order}).encode())
            key, exchange = f"{self.agent}.{topic}", Names(NAMESPACE).events
            result = await session.publish(message, exchange=exchange, routing_key=key, timeout=10)
            await session.close()
            assert result == Confirmed()

        asyncio.run(publish())


@pytest.fixture
def stage(project: Path, start_choreo: Start, broker_url: str) -> Stage:
    return Stage(project, start_choreo, broker_url)


def logged(running: Running, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in running.stderr]
    return [line for line in lines if line["event"] == event]


def test_reaction_that_blocks_the_loop_for_ever_ends_the_process(stage: Stage) -> None:
    """Said after a second, with its name and stack; beyond every deadline the worker says why and ends with 70."""
    running = stage.run("""
agent = Agent("NAME", timeout="100ms")

@agent.on
async def compute(placed: Placed) -> None:
    time.sleep(3600)
""")
    stage.send("1")
    assert running.wait(timeout=60) == 70
    first = logged(running, "event loop blocked")[0]
    assert (first["agent"], first["reaction"], first["task"]) == (stage.agent, "compute", f"{stage.agent}-0")
    assert f"{stage.agent}.py:15 compute" in first["stack"]
    (last,) = logged(running, "event loop blocked beyond every deadline")
    assert last["seconds"] > max(5, first["seconds"])


BLOCKING = """
agent = Agent("NAME", timeout="100ms")

@agent.on
async def compute(placed: Placed) -> None:
    time.sleep(3600)
"""


@pytest.mark.parametrize("arguments", [(), ("--processes", "2"), ("--reload",)], ids=["alone", "processes", "reload"])
def test_reaction_that_blocks_from_the_first_message_on_ends_the_process(
    stage: Stage, arguments: tuple[str, ...]
) -> None:
    """The message is there before the worker, as it is after every 70. A supervisor starts the process again."""
    running = stage.run(BLOCKING)
    running.send(signal.SIGTERM)
    assert running.wait() == 0
    stage.send("1")
    running = stage.run(BLOCKING, *arguments, state=None)
    running.wait_for("event loop blocked beyond every deadline", times=2 if arguments else 1)
    if not arguments:
        assert running.wait() == 70
        return
    ended = logged(running, "process ended")[0]
    assert ended["code"] == 70
    assert "restart_in" in ended


@pytest.mark.skipif(sys.platform != "linux", reason="only there a call that keeps the lock is told from a SIGSTOP")
@pytest.mark.real_node("patience of two heartbeats, after which it closes the connection")
def test_reaction_that_costs_its_session_again_and_again_is_buried(stage: Stage) -> None:
    """A `def` reaction in a call that keeps Python's global lock for longer than the broker waits for a heartbeat. The
    log says whose fault it was, the third round is the last, and the neighbour is handled."""
    running = stage.run(
        """
import ctypes

agent = Agent("NAME", timeout="60s")

@agent.on
def compute(placed: Placed) -> None:
    print("begun", placed.order, flush=True)
    if placed.order == "heavy":
        ctypes.PyDLL(None).sleep(6)
""",
        query="?heartbeat=1",
    )
    stage.send("heavy")
    stage.send("light")
    running.wait_for('"reason": "stalled"')
    running.wait_for("begun light")
    running.send(signal.SIGTERM)
    assert running.wait() == 0
    assert running.stdout.count("begun heavy") == 3
    blocked = logged(running, "event loop blocked")
    assert {(each["agent"], each["reaction"]) for each in blocked} == {(stage.agent, "compute")}
    lost = logged(running, "session lost")
    assert len(lost) == 3
    assert all(f"'compute' of agent {stage.agent} held everything up" in each["cause"] for each in lost)
    (dead,) = logged(running, "dead letter")
    assert "kept the whole process from running" in dead["error"]


def test_reaction_that_blocks_the_loop_for_a_while_goes_on(stage: Stage) -> None:
    """It is said when it begins and when it is over, and nothing else happens."""
    running = stage.run("""
agent = Agent("NAME")

@agent.on
async def compute(placed: Placed) -> None:
    time.sleep(3)
    print("done", flush=True)
""")
    stage.send("1")
    running.wait_for("event loop turns again")
    running.wait_for("done")
    running.send(signal.SIGTERM)
    assert running.wait() == 0
    assert 1 <= len(logged(running, "event loop blocked")) <= 3  # after a second, then each time twice as late
    assert len(logged(running, "event loop turns again")) == 1


def test_long_deadlines_narrow_the_window(stage: Stage) -> None:
    """Two at once that may take a quarter of an hour each: more than those two would be held for too long. It is said
    once."""
    running = stage.run(
        """
agent = Agent("NAME", timeout="15m")

@agent.on
async def wait(placed: Placed) -> None:
    print("begun", placed.order, flush=True)
    await asyncio.sleep(3600)
""",
        "--concurrency",
        "2",
        "--drain",
        "0s",
    )
    for order in "1234":
        stage.send(order)
    running.wait_for("begun", times=2)
    running.send(signal.SIGTERM)
    assert running.wait() == 75
    (line,) = logged(running, "prefetch narrowed")
    assert (line["prefetch"], line["setting"]) == (2, 100)


LIFESPAN = """
from contextlib import asynccontextmanager

async def for_ever(stubborn: bool) -> None:
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            if not stubborn:
                raise

@asynccontextmanager
async def lifespan():
    BEFORE
    yield
    AFTER

agent = Agent("NAME", lifespan=lifespan)

@agent.on
async def work(placed: Placed) -> None:
    print("begun", flush=True)
    REACTION
"""


def with_lifespan(before: str = "pass", after: str = "pass", reaction: str = "pass") -> str:
    return LIFESPAN.replace("BEFORE", before).replace("AFTER", after).replace("REACTION", reaction)


def test_lifespan_that_does_not_begin_is_named_and_ends_with_the_signal(stage: Stage) -> None:
    """The worker does not sit there without a word; nothing runs, so it has drained."""
    running = stage.run(with_lifespan(before="await for_ever(stubborn=False)"), state=None)
    running.wait_for("lifespan hangs")
    running.send(signal.SIGTERM)
    assert running.wait() == 0
    (line,) = logged(running, "lifespan hangs")
    assert (line["agent"], line["where"]) == (stage.agent, "before its yield")
    assert line["seconds"] >= 5


@pytest.mark.parametrize("stubborn", [False, True])
def test_lifespan_that_does_not_end_keeps_the_exit_code(stage: Stage, stubborn: bool) -> None:
    """Everything that ran was finished, so the program ends with 0, 5 s after the drain time at the latest. A lifespan
    that lets itself be cancelled is; another one goes with the process."""
    running = stage.run(with_lifespan(after=f"await for_ever({stubborn})"), "--drain", "200ms")
    running.send(signal.SIGTERM)
    assert running.wait() == 0
    assert not stubborn or not logged(running, "lifespan hangs")
    if not stubborn:
        (line,) = logged(running, "lifespan hangs")
        assert (line["agent"], line["where"]) == (stage.agent, "at its end")


@pytest.mark.parametrize("when", ["before its yield", "at its end"])
def test_lifespan_that_fails_is_named_in_one_line(stage: Stage, when: str) -> None:
    """With its agent, the error and the user's own line, in the log and in the last word, not a traceback."""
    failing = 'raise OSError("no such database")'
    text = with_lifespan(**{"before" if when == "before its yield" else "after": failing})
    running = stage.run(text, state=None)
    if when == "at its end":
        running.wait_for('"state": "consuming"')
        running.send(signal.SIGTERM)
    assert running.wait() == 1
    lines = [line for line in running.stderr if line.startswith("{")]
    (line,) = [json.loads(each) for each in lines if "lifespan failed" in each]
    assert (line["agent"], line["when"]) == (stage.agent, when)
    assert "no such database" in line["error"]
    assert line["where"].startswith(f"agents/{stage.agent}.py:")
    assert line["where"].endswith(" lifespan")
    said = [line for line in running.stderr if not line.startswith("{")]
    assert len(said) <= 2
    assert said[0].startswith(f"choreo: the lifespan of agent {stage.agent} failed {when}")


def test_thread_that_outlives_its_deadline_is_spoken_of(stage: Stage) -> None:
    """When the deadline passes, when it ends after all, and when it is cut off because the process ends."""
    running = stage.run("""
from pathlib import Path

agent = Agent("NAME", timeout="200ms")

@agent.on
def work(placed: Placed) -> None:
    while not Path(placed.order).exists():
        time.sleep(0.01)
""")
    stage.send("go")
    running.wait_for('"deadline passed"')
    stage.touch("go")
    running.wait_for('"late thread ended"')
    stage.send("never")
    running.wait_for('"deadline passed"', times=2)
    running.wait_for('"dead letter"', times=2)
    running.send(signal.SIGTERM)
    assert running.wait() == 0
    (ended,), (cut,) = logged(running, "late thread ended"), logged(running, "thread cut off")
    for line in (*logged(running, "deadline passed"), ended, cut):
        assert (line["agent"], line["reaction"]) == (stage.agent, "work")
    assert min(ended["seconds"], cut["seconds"]) >= 0.2


def test_reaction_that_swallows_its_cancellation_does_not_keep_the_program(stage: Stage) -> None:
    """It is cut off 5 s after the drain time at the latest, with the code that says so; the lifespan ends before."""
    text = with_lifespan(after='print("closed", flush=True)', reaction="await for_ever(stubborn=True)")
    running = stage.run(text, "--drain", "200ms")
    stage.send("1")
    running.wait_for("begun")
    running.send(signal.SIGTERM)
    assert running.wait() == 75
    assert running.stdout[-1] == "closed"
