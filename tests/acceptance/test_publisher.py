"""A publisher that is used where it cannot be: after its end, on another event loop, in a forked process."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from typing import Any

import pytest

from choreo.config.broker_url import BrokerUrl
from choreo.rabbit import session as rabbit
from choreo.topology import Binding, Exchange, Names, Queue, Topology
from tests.conftest import environment

SCRIPT = """
import asyncio, json, os, socket, threading, time
import choreo

class Placed(choreo.Event, topic="lonely.placed", external=True):
    order: str

told = []

async def tell(what, publisher, order="1"):
    began = time.monotonic()
    try:
        await publisher.publish(Placed(order=order))
        said = "stored"
    except choreo.ChoreoError as error:
        said = f"{type(error).__name__}: {error}"
    told.append((what, said, time.monotonic() - began))

def tell_elsewhere(what, publisher):
    thread = threading.Thread(target=lambda: asyncio.run(tell(what, publisher)))
    thread.start()
    thread.join()

async def fork(publisher):
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        try:
            told.clear()
            await tell("wrong", publisher)
            asyncio._set_running_loop(None)
            asyncio.run(tell("wrong", publisher))
            asyncio.run(leave(publisher))
            os.write(writing, json.dumps([told, sorted(peers())]).encode())
        except BaseException as error:
            os.write(writing, json.dumps([[("child", repr(error), 0)], []]).encode())
        finally:
            os._exit(0)  # threads of the parent, which are not here, would be waited for
    os.close(writing)
    os.waitpid(child, 0)
    there, found = json.loads(os.read(reading, 65536))
    assert not found, f"the child has the connection to {found}"
    assert len(set(peers())) == 1
    told.extend(there)

async def leave(publisher):
    began = time.monotonic()
    try:
        await publisher.__aexit__(None, None, None)
    except choreo.ChoreoError as error:
        told.append(("wrong", f"{type(error).__name__}: {error}", time.monotonic() - began))

def peers():
    for name in os.listdir("/proc/self/fd"):
        try:
            with socket.socket(fileno=os.dup(int(name))) as found:
                if found.family == socket.AF_INET:
                    yield found.getpeername()[1]
        except OSError:
            pass  # closed meanwhile, no socket, or one that is not connected
"""

CASES = {
    "closed": (
        """
async def main():
    async with choreo.connect() as publisher:
        await tell("inside", publisher)
    await tell("wrong", publisher)
    async with publisher:
        await tell("again", publisher)
asyncio.run(main())
""",
        ["inside", "wrong", "again"],
        "`async with` is over",
    ),
    "closed, in another loop": (
        """
async def main():
    async with choreo.connect() as publisher:
        await tell("inside", publisher)
    return publisher
publisher = asyncio.run(main())
asyncio.run(tell("wrong", publisher))
async def again():
    async with publisher:
        await tell("again", publisher)
asyncio.run(again())
""",
        ["inside", "wrong", "again"],
        "`async with` is over",
    ),
    "another loop": (
        """
async def main():
    async with choreo.connect() as publisher:
        await tell("inside", publisher)
        await asyncio.to_thread(tell_elsewhere, "wrong", publisher)
        await tell("again", publisher)
asyncio.run(main())
""",
        ["inside", "wrong", "again"],
        "another event loop",
    ),
    "the loop is gone": (
        """
async def main():
    publisher = choreo.connect()
    await tell("inside", publisher)
    return publisher
publisher = asyncio.run(main())
asyncio.run(tell("wrong", publisher))
""",
        ["inside", "wrong"],
        "another event loop",
    ),
    "entered in one loop, left in another": (
        """
async def main():
    publisher = await choreo.connect().__aenter__()
    await tell("inside", publisher)
    return publisher
publisher = asyncio.run(main())
asyncio.run(leave(publisher))
""",
        ["inside", "wrong"],
        "another event loop",
    ),
    "a fork": (
        """
async def main():
    async with choreo.connect() as publisher:
        await tell("inside", publisher)
        await fork(publisher)
        await tell("again", publisher)
asyncio.run(main())
""",
        ["inside", "wrong", "wrong", "wrong", "again"],
        "forked from",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_publisher_where_it_cannot_work_says_so_at_once(broker_url: str, namespace: str, case: str) -> None:
    """One error that says what is wrong and what to do; nothing else is printed, waited for or broken: the publisher
    goes on where it belongs."""
    asyncio.run(declare(broker_url, Names(namespace)))
    script, order, words = CASES[case]
    told = run(SCRIPT + script + "\nprint(json.dumps(told))", broker_url, namespace)
    assert [what for what, *_ in told] == order
    for what, said, seconds in told:
        if what == "wrong":
            assert said.startswith("UsageError: ")
            assert words in said
            assert seconds < 3, "the pause for a broker that is away, which is not made here"
        else:
            assert said == "stored"


async def declare(url: str, names: Names) -> None:
    """Have somebody listen."""
    queue = Queue(names.queue("heard"), "work", "heard", {"x-queue-type": "classic"})
    binding = Binding(names.events, queue.name, "#")
    session = await rabbit.connect(BrokerUrl.parse_all(url), name="test")
    await session.declare(Topology((Exchange(names.events, "topic"),), (queue,), (binding,)))
    await session.close()


def run(script: str, broker_url: str, namespace: str) -> Any:
    """Run a program of its own, with asyncio's debugging and all warnings; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore:.*multi-threaded.*fork:DeprecationWarning", "-c", script],
        env=environment({"CHOREO_URL": broker_url, "CHOREO_NAMESPACE": namespace}),
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)
