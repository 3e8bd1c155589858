"""Reactions with children of their own: only what is meant for the worker reaches it, and they keep nothing of it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.acceptance.test_misbehaving import Stage, logged
from tests.acceptance.test_run import alive, get, health_port

if TYPE_CHECKING:
    from tests.conftest import Running

Start = Callable[..., "Running"]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

# What the children do is ordered by name; each returns when its child is gone.
CHILDREN = """
import multiprocessing
import os
import signal
import subprocess
import sys

forking = multiprocessing.get_context("fork")

def terminated() -> None:
    child = forking.Process(target=time.sleep, args=(60,))
    child.start()
    child.terminate()
    child.join()
    assert child.exitcode == -signal.SIGTERM, child.exitcode

def pool() -> None:
    with forking.Pool(2) as workers:  # its end terminates them
        assert workers.map(abs, [-1, -2]) == [1, 2]

def forked(number: int) -> None:
    readable, writable = os.pipe()
    child = os.fork()
    if not child:
        try:
            if number == signal.SIGINT:  # as at the start of any Python program
                assert signal.getsignal(number) is signal.default_int_handler
                signal.signal(number, signal.SIG_DFL)
            os.write(writable, b"ready")
            time.sleep(60)
        finally:
            os._exit(0)
    assert os.read(readable, 5) == b"ready"
    os.kill(child, number)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -number, status

def program() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"],
                             stdout=subprocess.PIPE)
    child.stdout.readline()
    child.terminate()
    assert child.wait() == -signal.SIGTERM

KINDS = {
    "terminated": terminated,
    "pool": pool,
    "sigterm": lambda: forked(signal.SIGTERM),
    "sigint": lambda: forked(signal.SIGINT),
    "sighup": lambda: forked(signal.SIGHUP),
    "program": program,
}
"""
SIGNALLED = (
    CHILDREN
    + """
class Called(Event, topic="NAME.called", external=True):
    order: str

agent = Agent("NAME")

@agent.on
async def on_the_loop(placed: Placed) -> None:
    KINDS[placed.order]()
    print("done", placed.order, flush=True)

@agent.on
def in_a_thread(called: Called) -> None:
    KINDS[called.order]()
    print("done", called.order, flush=True)
"""
)
KINDS = ("terminated", "pool", "sigterm", "sigint", "sighup", "program")


@pytest.fixture
def stage(project: Path, start_choreo: Start, broker_url: str) -> Stage:
    return Stage(project, start_choreo, broker_url)


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_signal_to_a_child_of_a_reaction_is_none_to_the_worker(stage: Stage, project: Path, loop: str) -> None:
    """Whichever way the child was made, on the loop or in a thread, and whichever signal ends it: the worker works on.
    The child dies of the signal as any process does."""
    if loop == "asyncio":
        (project / "uvloop.py").write_text("raise ImportError")
    else:
        pytest.importorskip("uvloop")
    running = stage.run(SIGNALLED)
    for kind in KINDS:
        stage.send(kind)
        stage.send(kind, "called")
    for kind in KINDS:
        running.wait_for(f"done {kind}", times=2)
    assert not logged(running, "signal")
    assert not logged(running, "dead letter")
    running.send(signal.SIGTERM)
    assert running.wait() == 0
    (told,) = logged(running, "signal")
    assert told["name"] == "SIGTERM"


LINGERING = """
import os

agent = Agent("NAME")

@agent.on
async def work(placed: Placed) -> None:
    child = os.fork()
    if not child:
        time.sleep(120)
        os._exit(0)
    print("begun", placed.order, child, flush=True)
    await asyncio.sleep(3600)
"""


def test_child_that_lives_on_keeps_neither_the_broker_nor_the_port(stage: Stage, broker_url: str) -> None:
    """Its worker is killed: the broker sees that at once, long before a heartbeat is missed, and another worker gets
    the delivery, at the same health port."""
    running = stage.run(LINGERING, "--health-port", "0", query="?heartbeat=300")
    port = health_port(running)
    stage.send("1")
    child = int(running.wait_for("begun 1").split()[2])
    running.send(signal.SIGKILL)
    again = stage.run(LINGERING, "--health-port", str(port), query="?heartbeat=300")
    again.wait_for("begun 1")
    assert alive(child)
    assert get(port, "/live")[0] == 200
    again.send(signal.SIGKILL)


RETURNING = """
import os

class Called(Event, topic="NAME.called", external=True):
    order: str

agent = Agent("NAME")

async def wait() -> None:
    await asyncio.sleep(0.01)

@agent.on
async def on_the_loop(placed: Placed) -> None:
    child = os.fork()
    if not child:
        match placed.order:
            case "returns":
                return
            case "raises":
                raise LookupError
            case "waits":
                await wait()
                print("never", flush=True)
    print("done", placed.order, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)

@agent.on
def in_a_thread(called: Called) -> None:
    child = os.fork()
    if not child:
        if called.order == "raises":
            raise LookupError
        return
    print("done", called.order, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_child_that_comes_back_from_its_reaction_ends(stage: Stage) -> None:
    """It is a copy of the worker, and must not go on as one: nothing is settled or begun twice."""
    running = stage.run(RETURNING)
    for order in ("returns", "raises", "waits"):
        stage.send(order)
        running.wait_for(f"done {order} 70")
    for order in ("returns", "raises"):
        stage.send(order, "called")
        running.wait_for(f"done {order} 70", times=2)
    running.send(signal.SIGTERM)
    assert running.wait() == 0
    assert len(running.stdout) == 5
    assert len(logged(running, "forked child")) >= 4  # one that waits ends when the loop turns, or cannot wait at all
    assert not logged(running, "dead letter")
