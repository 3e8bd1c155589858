"""Floods of an agent's own making: everything fails at once, or events call each other for ever."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from choreo import dead_letter
from choreo.message import Message, Reason
from choreo.transport import Confirmed, Delivery
from tests.faults.conftest import Scale
from tests.faults.report import Row
from tests.faults.stream import Stream
from tests.waiting import eventually

if TYPE_CHECKING:
    from tests.conftest import Running

RATE = 200.0  # events a second for the healthy agent
CALM = 3.0  # seconds for which it is measured without the storm

# Every delivery fails twice and is retried by the broker.
STORM = """
import os
from pathlib import Path
from choreo import Agent, Context, Event, Retry

class Stormed(Event, topic="NS.stormed", external=True):
    number: int

class Unreachable(Exception):
    pass

agent = Agent("storm", retry=Retry(on=Unreachable, attempts=3, first="1s", ceiling="1s"))
file = os.open("storm", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

@agent.on
async def suffer(stormed: Stormed, ctx: Context) -> None:
    os.write(file, f"{stormed.number} {ctx.attempt}\\n".encode())
    if ctx.attempt < 3:
        raise Unreachable
"""

LOOP = {
    "loop": """
import os
from choreo import Event

class Ping(Event, topic="NS.ping", external=True):
    number: int

class Pong(Event, topic="NS.pong"):
    number: int

file = os.open("loop", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def write(number):
    os.write(file, f"{number}\\n".encode())
""",
    "ping": """
from agents.loop import Ping, Pong, write
from choreo import Agent

agent = Agent("ping")

@agent.on
async def there(event: Ping) -> Pong:
    write(event.number)
    return Pong(number=event.number)
""",
    "pong": """
from agents.loop import Ping, Pong, write
from choreo import Agent

agent = Agent("pong")

@agent.on
async def back(event: Pong) -> Ping:
    write(event.number)
    return Ping(number=event.number)
""",
}


@pytest.mark.timeout(600)
async def test_retry_storm_leaves_a_healthy_agent_its_throughput(
    start_choreo: Callable[..., Running],
    project: Path,
    broker_url: str,
    namespace: str,
    scale: Scale,
    report: Callable[[Row], None],
) -> None:
    """One agent fails at everything it is given, all at once; another one, in a process of its own, goes on."""
    stream = Stream(project, start_choreo, broker_url, namespace)
    (project / "agents" / "storm.py").write_text(STORM.replace("NS", namespace))
    stream.start()
    # The storm waits in a queue that nobody consumes yet: it begins when its worker does.
    count = scale.of(10_000, short=1_000)
    start_choreo("run", "storm", env=stream.environment).wait_for('"state": "consuming"')
    async with stream.flowing(RATE):
        assert await stream.flows(time.monotonic(), within=60)
        calm = await throughput(stream, CALM)
        began = time.monotonic()
        await publish(stream, f"{namespace}.stormed", count)
        await eventually(lambda: storm_over(project, count), within=300, what="the end of the storm")
        length = time.monotonic() - began
        during = rate(stream, began)
        calm = min(calm, await throughput(stream, CALM))  # the machine may have got other things to do meanwhile
    account = await stream.account()
    attempts = tries(project)
    whole = dict.fromkeys(range(count), 3)
    report(
        Row(
            fault="retry storm beside a healthy agent",
            repetitions=1,
            events=count + account.confirmed,
            lost=account.lost + len(whole.keys() - attempts.keys()),
            duplicated=account.duplicated + sum((attempts - Counter(whole)).values()),
            worst_recovery=length,
            must="lost 0, the healthy agent keeps half of its throughput",
            met=account.lost == 0 and attempts == whole and during >= calm / 2,
            note=f"{count} deliveries failed twice each; beside it {during:.0f} events/s, without it {calm:.0f}",
        )
    )
    assert (account.lost, account.dead) == (0, {})
    assert attempts == whole
    assert during >= calm / 2


async def throughput(stream: Stream, seconds: float) -> float:
    """Events a second that the desk handles in the `seconds` to come."""
    began = time.monotonic()
    await asyncio.sleep(seconds)
    return rate(stream, began)


def rate(stream: Stream, began: float) -> float:
    """Events a second that the desk has handled since `began`."""
    return sum(when > began for _, when in stream.handled) / (time.monotonic() - began)


def tries(project: Path) -> Counter[int]:
    """How often each event of the storm was tried."""
    return Counter(int(line.split()[0]) for line in (project / "storm").read_text().splitlines())


def storm_over(project: Path, count: int) -> bool:
    found = tries(project)
    return len(found) == count and min(found.values()) >= 3


async def publish(stream: Stream, topic: str, count: int) -> None:
    """Publish `count` events numbered from 0, each confirmed."""
    async with stream.session() as session:
        results = await asyncio.gather(
            *(
                session.publish(
                    Message(json.dumps({"number": number}).encode(), message_id=f"{topic}-{number}"),
                    exchange=stream.names.events,
                    routing_key=topic,
                    timeout=120,
                )
                for number in range(count)
            )
        )
        assert set(results) == {Confirmed()}


@pytest.mark.timeout(300)
async def test_loop_ends_in_the_dead_letter_queue(
    start_choreo: Callable[..., Running],
    project: Path,
    broker_url: str,
    namespace: str,
    scale: Scale,
    report: Callable[[Row], None],
) -> None:
    """Two agents that answer each other are stopped after 64 events of a transaction, with the reason `loop`."""
    stream = Stream(project, start_choreo, broker_url, namespace)
    for name, text in LOOP.items():
        (project / "agents" / f"{name}.py").write_text(text.replace("NS", namespace))
    count = scale.of(100, short=5)
    worker = start_choreo("run", "ping", "pong", env=stream.environment)
    worker.wait_for('"state": "consuming"')
    await publish(stream, f"{namespace}.ping", count)
    await asyncio.to_thread(worker.wait_for, '"event": "dead letter"', 60, times=count)
    letters = [letter for agent in ("ping", "pong") for letter in await dead(stream, agent)]
    reactions = Counter(map(int, (project / "loop").read_text().split()))
    stopped = {json.loads(letter.body)["number"] for letter in letters if letter.reason == Reason.LOOP}
    bounded = dict.fromkeys(range(count), 64)
    report(
        Row(
            fault="loop of two agents",
            repetitions=count,
            events=count,
            lost=count - len(stopped),
            duplicated=sum((reactions - Counter(bounded)).values()),
            worst_recovery=None,
            must="stopped after 64 reactions, dead letters with the reason loop",
            met=len(stopped) == len(letters) == count and reactions == bounded,
        )
    )
    assert stopped == set(range(count))
    assert len(letters) == count
    assert reactions == bounded
    assert worker.process.poll() is None


async def dead(stream: Stream, agent: str) -> list[dead_letter.DeadLetter]:
    """The dead letters of an agent."""
    queue, got = stream.names.dlq(agent), list[Delivery]()
    async with stream.session() as session:
        found = await session.stats(queue)
        assert found is not None
        await session.consume(queue, prefetch=10_000, on_delivery=got.append)
        await eventually(lambda: len(got) >= found.ready)
    return [dead_letter.read(each.message, agent=agent) for each in got]
